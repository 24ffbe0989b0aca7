"""From a nested configuration to frozen settings, and the argument after a config file's colon."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from fluidjax.errors import UserError
from fluidjax.files import write_text

T = TypeVar('T')


def parse_argument(argument: str | None, choices: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Read `demo,cohort=nifti`, what follows the colon of `--config=configs/ldm.py:...`.

    A bare word is the value of the first choice.

    Args:
        argument: the text after the colon, or None.
        choices: for each name its allowed values; the first is the default.

    Raises:
        UserError: an unknown name or value, with the ones there are.
    """
    chosen = {name: values[0] for name, values in choices.items()}
    for item in filter(None, (argument or '').split(',')):
        name, _, value = item.partition('=')
        if not value:
            name, value = next(iter(choices)), name
        if name not in choices:
            raise UserError(f"config argument '{item}': no '{name}'; there are "
                            f'{", ".join(choices)}')
        if value not in choices[name]:
            raise UserError(f"config argument '{item}': {name} is one of "
                            f'{", ".join(choices[name])}')
        chosen[name] = value
    return chosen


def settings_from(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from a mapping; nested dataclasses are made from nested mappings.

    Args:
        kind: the dataclass.
        values: its fields; lists become tuples.
        where: dotted place in the configuration, for the message; '' for the whole of it.

    Raises:
        UserError: a field the dataclass does not have or is missing, or a section that is none.
    """
    at = f'config.{where}' if where else 'config'
    if not isinstance(values, Mapping | ConfigDict):
        raise UserError(f'{at}: is {values!r}, must be a section of settings')
    types = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise UserError(f'{at}.{unknown[0]}: no such field; there are '
                        f'{", ".join(sorted(fields))}')
    made = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]):
            value = settings_from(types[name], value, f'{where}.{name}')
        elif isinstance(value, (list, tuple)):
            value = tuple(value)
        made[name] = value
    try:
        return kind(**made)
    except TypeError as error:
        raise UserError(f'{at}: {error}') from error


def save_config(path: Path, config: ConfigDict) -> None:
    """Write a configuration as JSON, beside and renamed."""
    try:
        write_text(path, json.dumps(config.to_dict(), indent=2) + '\n')
    except OSError as error:
        raise UserError(f'{path}: cannot write ({error.strerror}); choose another --workdir'
                        ) from error


def load_config(path: Path) -> ConfigDict:
    """Read the configuration a run was trained with.

    Raises:
        UserError: there is none, or it is not JSON.
    """
    if not path.is_file():
        raise UserError(f'{path}: no such file, so this is no trained run; train one first: '
                        f'python -m fluidjax.main --config=configs/ldm.py:demo '
                        f'--workdir={path.parent}')
    return parse_config(path.read_text(), str(path))


def parse_config(text: str, where: str) -> ConfigDict:
    """A configuration from its JSON; `where` names it in messages.

    Raises:
        UserError: it is none.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: not a configuration ({error}); train again') from error
    if not isinstance(values, dict):
        raise UserError(f'{where}: not a configuration, but {type(values).__name__}; train again')
    return ConfigDict(values)


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
