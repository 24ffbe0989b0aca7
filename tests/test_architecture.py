"""The import rules of the house (CONTRIBUTING.md, "What the rooms may know"), and its size."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
FIXED = ('__init__.py', '__main__.py', 'main.py', 'eval.py')
# Each room with the rooms and modules that it may import, beside itself.
GROUND = ('fluid', 'synthesis', 'models', 'diffusion', 'training', 'detect', 'data_pipelines')
BELOW_RUNS = ('base', *GROUND, 'methods')
DOORS = ('predict', 'randomize', 'sweep', 'bench', 'main', 'eval')
MAY_IMPORT = {
    'base': (),
    **dict.fromkeys(GROUND, ('base',)),
    'configs': ('base', 'fluid.settings'),
    'methods': ('base', 'fluid', 'synthesis', 'models', 'diffusion'),
    'runs': BELOW_RUNS,
    **dict.fromkeys(DOORS, (*BELOW_RUNS, 'runs', 'configs')),
    '__main__': ('base',),
    '': ('base',),
}
MOST_ENTRIES, MOST_LINES = 17, 400


def module_of(path: Path) -> str:
    """A file's dotted name, without `fluidjax.` and `.__init__`."""
    name = '.'.join(path.relative_to(CHECKOUT).with_suffix('').parts)
    return name.removesuffix('.__init__').removeprefix('fluidjax').lstrip('.')


SOURCES = {
    module_of(path): path
    for top in ('fluidjax', 'data_pipelines', 'configs')
    for path in sorted((CHECKOUT / top).rglob('*.py'))
}


def imported_names(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: imports are absolute'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    """The modules of ours that a file imports, named as the keys of `SOURCES`."""
    modules = set()
    for name in imported_names(path):
        if name.split('.')[0] in ('fluidjax', 'data_pipelines', 'configs'):
            short = name.removeprefix('fluidjax').lstrip('.')
            modules.add(short if short in SOURCES else short.rpartition('.')[0])
    return modules


IMPORTS = {module: imported_modules(path) for module, path in SOURCES.items()}


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(f'{place}.')


def users_of(package: str) -> set[str]:
    """The modules that import a package."""
    return {
        module
        for module, path in SOURCES.items()
        if any(is_in(name, package) for name in imported_names(path))
    }


def test_the_rooms_are_the_ones_that_are_known():
    entries = [path.name for path in (CHECKOUT / 'fluidjax').iterdir() if path.name[:3] != '__p']
    files = sorted(name for name in entries if name.endswith('.py'))
    assert files == sorted(FIXED)
    folders = {name for name in entries if '.' not in name}
    assert folders == set(MAY_IMPORT) - {
        '',
        '__main__',
        'main',
        'eval',
        'configs',
        'data_pipelines',
    }
    assert len(entries) <= MOST_ENTRIES


@pytest.mark.parametrize('room', MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room):
    modules = [m for m in SOURCES if m == room or (room and is_in(m, room))]
    assert modules
    allowed = (room, *MAY_IMPORT[room]) if room else MAY_IMPORT[room]
    for module in modules:
        for imported in IMPORTS[module]:
            assert any(is_in(imported, place) for place in allowed), f'{module} imports {imported}'


def test_no_module_imports_itself_by_way_of_others():
    def reachable(module: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(IMPORTS[module])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += IMPORTS.get(name, ())
        return seen

    assert [module for module in SOURCES if module in reachable(module)] == []


def test_tensorflow_is_imported_only_by_the_pipeline_and_the_builders():
    users = users_of('tensorflow') | users_of('tensorflow_datasets')
    assert users == {
        'data_pipelines.input_pipeline',
        'data_pipelines.template_cohort',
        'data_pipelines.nifti_cohort',
    }


def test_data_pipelines_do_not_know_jax():
    assert not [m for m in users_of('jax') | users_of('flax') if is_in(m, 'data_pipelines')]


@pytest.mark.parametrize(
    'name,home', [('jax.pmap', 'training.parallel'), ('orbax', 'training.checkpoint')]
)
def test_pmap_and_orbax_have_one_home(name, home):
    def mentions(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text()))
        words = {ast.unparse(n) for n in nodes if isinstance(n, (ast.Attribute, ast.Name))}
        return any(is_in(word, name) for word in words | imported_names(path))

    assert {module for module, path in SOURCES.items() if mentions(path)} == {home}


def test_files_hold_one_idea():
    long = {m: n for m, p in SOURCES.items() if (n := p.read_text().count('\n')) > MOST_LINES}
    assert not long
