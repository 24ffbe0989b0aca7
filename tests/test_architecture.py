"""The rules of the house: which room may know which (README, "How it is built")."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
GROUND = (
    'fluidjax.fluid',
    'fluidjax.models',
    'fluidjax.diffusion',
    'fluidjax.training',
    'fluidjax.detect',
    'data_pipelines',
)
SOURCES = sorted(
    p for top in ('fluidjax', 'data_pipelines', 'configs') for p in (CHECKOUT / top).rglob('*.py')
)


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def module_of(path: Path) -> str:
    return '.'.join(path.relative_to(CHECKOUT).with_suffix('').parts)


def touches(names: set[str], package: str) -> bool:
    return any(name == package or name.startswith(package + '.') for name in names)


@pytest.mark.parametrize('room', GROUND)
def test_ground_floor_rooms_do_not_know_each_other(room):
    files = [p for p in SOURCES if module_of(p).startswith(room + '.')]
    assert files
    others = [r for r in GROUND if r != room] + ['fluidjax.methods', 'configs']
    for path in files:
        assert not [other for other in others if touches(imports(path), other)], path


def test_methods_know_neither_training_nor_data():
    for path in SOURCES:
        if module_of(path).startswith('fluidjax.methods'):
            for forbidden in ('fluidjax.training', 'fluidjax.detect', 'data_pipelines', 'configs'):
                assert not touches(imports(path), forbidden), path


def test_tensorflow_is_imported_by_the_pipeline_and_the_builders_alone():
    users = {
        module_of(p)
        for p in SOURCES
        if touches(imports(p), 'tensorflow') or touches(imports(p), 'tensorflow_datasets')
    }
    assert users == {
        'data_pipelines.input_pipeline',
        'data_pipelines.template_cohort',
        'data_pipelines.nifti_cohort',
    }


def test_data_pipelines_know_no_jax():
    for path in SOURCES:
        if module_of(path).startswith('data_pipelines'):
            assert not touches(imports(path), 'jax'), path


@pytest.mark.parametrize(
    'word,home',
    [('jax.pmap', 'fluidjax.training.parallel'), ('orbax', 'fluidjax.training.checkpoint')],
)
def test_pmap_and_orbax_have_one_home(word, home):
    def code_names(path: Path) -> set[str]:
        tree = ast.parse(path.read_text())
        return {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, (ast.Attribute, ast.Name))}

    users = {
        module_of(p) for p in SOURCES if touches(code_names(p), word) or touches(imports(p), word)
    }
    assert users == {home}
