"""Configurations: reading and comparing them, and turning them into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from fluidjax.base.disk import is_of_disk, reason
from fluidjax.base.errors import DiskError, UserError
from fluidjax.base.files import parse_json, write_json
from fluidjax.base.names import shown

T = TypeVar('T')
# The folder that holds `configs`: the checkout, or where the package is installed.
INSTALLED = Path(__file__).parents[2]
TRAIN_AGAIN = 'train again'
# Other names of the sizes.
SYNONYMS = {'4mm': 'demo'}


def check(holds: bool, where: str, value: Any, advice: str) -> None:
    """Check a setting.

    Args:
        holds: whether its value is allowed.
        where: its dotted name in the configuration, without `config.`.
        value: its value.
        advice: what it must be.

    Raises:
        UserError: the value is not allowed: `config.WHERE: VALUE ADVICE`.
    """
    if not holds:
        raise UserError(f'config.{where}: {value!r} {advice}')


def config_file(path: str) -> Path:
    """Find a configuration file in the current folder, else in the installed package.

    Args:
        path: as a user writes it, `configs/ldm.py`.

    Raises:
        UserError: there is no such file.
    """
    for place in (Path(path).expanduser(), INSTALLED / path):
        if place.is_file():
            return place
    names = [str(p.relative_to(INSTALLED)) for p in sorted((INSTALLED / 'configs').rglob('*.py'))]
    near = difflib.get_close_matches(path, names, n=1)
    raise UserError(
        f"--config: no file '{path}', neither here nor in the package; "
        f'{f"did you mean {near[0]}" if near else "try configs/ldm.py:demo"}?'
    )


def read_config_file(name: str) -> ConfigDict:
    """The configuration that a file returns for its argument.

    Args:
        name: the file with its argument, `configs/ldm.py:demo,method=cldm`.

    Raises:
        UserError: there is no such file, or it does not accept the argument.
    """
    path, _, argument = name.partition(':')
    spec = importlib.util.spec_from_file_location('fluidjax_config_file', config_file(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def parse_argument(argument: str | None, choices: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Read `demo,cohort=nifti`, the text after the colon of `--config=configs/ldm.py:...`.

    A bare word is the value of the first choice.

    Args:
        argument: the text after the colon, or None.
        choices: the allowed values of each name; the first is the default.

    Raises:
        UserError: an unknown name or value; the message lists the known ones.
    """
    chosen = {name: values[0] for name, values in choices.items()}
    for item in filter(None, (argument or '').split(',')):
        name, _, value = item.partition('=')
        if not value:
            name, value = next(iter(choices)), name
        if name not in choices:
            raise UserError(
                f"config argument '{item}': no '{name}'; there are {', '.join(choices)}"
            )
        if value not in choices[name]:
            raise UserError(
                f"config argument '{item}': {name} is one of {', '.join(choices[name])}"
            )
        chosen[name] = value
    return chosen


def settings_from(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from a mapping; nested mappings become nested dataclasses.

    Args:
        kind: the dataclass.
        values: its fields; lists become tuples.
        where: dotted name of the section, for messages; '' for the whole configuration.

    Raises:
        UserError: a field that is unknown or missing, or a value where a section is expected.
    """
    at = f'config.{where}' if where else 'config'
    if not isinstance(values, Mapping | ConfigDict):
        raise UserError(f'{at}: is {values!r}, must be a section of settings')
    types = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise UserError(f'{at}.{unknown[0]}: no such field; there are {", ".join(sorted(fields))}')
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]):
            value = settings_from(types[name], value, f'{where}.{name}')
        elif isinstance(value, (list, tuple)):
            value = tuple(value)
        arguments[name] = value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(f'{at}: {error}') from error


def save_config(path: Path, config: ConfigDict) -> None:
    """Write a configuration as JSON."""
    try:
        write_json(path, config.to_dict())
    except OSError as error:
        kind = DiskError if is_of_disk(error) else UserError
        raise kind(f'{shown(path)}: {reason(error, path)}') from error


def load_config(path: Path) -> ConfigDict:
    """Read the configuration that a run was trained with.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    if not path.is_file():
        raise UserError(
            f'{path}: no such file, so this is not a trained run; train one first: '
            f'fluidjax train --config=configs/ldm.py:demo --workdir={path.parent}'
        )
    return parse_config(path.read_text('utf-8'), str(path))


def parse_config(text: str, where: str) -> ConfigDict:
    """A configuration from JSON; `where` names the file in messages.

    Raises:
        UserError: the text is not a configuration.
    """
    return ConfigDict(parse_json(text, where, TRAIN_AGAIN))


def differences(old: ConfigDict, new: ConfigDict, prefix: str = '') -> list[str]:
    """Dotted names of the fields in which two configurations differ."""
    names = []
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, ConfigDict) and isinstance(b, ConfigDict):
            names += differences(a, b, f'{prefix}{name}.')
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            names.append(f'{prefix}{name}')
    return names


def field_of(config: ConfigDict, name: str) -> Any:
    """The value of a dotted name, or None if a part of it is absent."""
    for part in name.split('.'):
        config = config.get(part) if config is not None else None
    return config


def changed_config(name: str, changes: Mapping[str, Any]) -> ConfigDict:
    """The configuration of `read_config_file` with some fields replaced.

    Raises:
        UserError: a field that it does not have, or a value of another type.
    """
    config = read_config_file(name)
    known = dict(_flat(config))
    for field in changes:
        if field not in known:
            raise UserError(f"sweep: {name} has no field '{field}'")
    try:
        config.update_from_flattened_dict(dict(changes))
    except (TypeError, ValueError) as error:
        raise UserError(f'sweep: {" ".join(str(error).split())}') from error
    return config


def _flat(config: ConfigDict, prefix: str = '') -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            rows += _flat(value, f'{prefix}{name}.')
        else:
            rows.append((prefix + name, value))
    return rows
