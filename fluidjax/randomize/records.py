"""Draws as JSON and back: numbers as they are, random keys as their two words."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.image_files import checksum
from fluidjax.base import __version__
from fluidjax.base.errors import UserError
from fluidjax.base.files import read_json
from fluidjax.base.settings import settings_from
from fluidjax.fluid.draws import Draw, SeedDraw, draw_pair
from fluidjax.fluid.settings import FluidSettings

# In format 1 the strength of a lesion did not multiply the spread of its intensities, so lesions of
# strength 1 are the same in both.
FORMAT = 2
ADVICE = 'give the draws.json that randomize wrote'


def to_record(draw: Draw) -> dict[str, Any]:
    """A draw as plain numbers; `seeds` lists only those that are used."""
    fields = {name: _plain(value) for name, value in draw._asdict().items() if name != 'seeds'}
    seeds = [
        {name: _plain(value[i]) for name, value in draw.seeds._asdict().items()}
        for i in range(int(draw.count))
    ]
    return fields | {'seeds': seeds}


def from_record(record: dict[str, Any], settings: FluidSettings, where: str) -> Draw:
    """The draw of a record.

    Raises:
        UserError: a field is missing, unknown, or not of its kind.
    """
    template = _any_draw(settings)
    most = settings.lesion_count[1]
    try:
        seeds = [
            _typed(SeedDraw, seed, jax.tree.map(lambda x: x[0], template.seeds))
            for seed in record['seeds']
        ]
        if not 1 <= len(seeds) <= most:
            raise ValueError(f'{len(seeds)} seeds, settings allow 1 to {most}')
        seeds += [seeds[-1]] * (most - len(seeds))  # not used: `count` says how many are
        stacked = jax.tree.map(lambda *fields: jnp.stack(fields), *seeds)
        if record['count'] != len(record['seeds']):
            raise ValueError(f'count is {record["count"]} and seeds are {len(record["seeds"])}')
        draw = _typed(Draw, record | {'seeds': None}, template)
        return draw._replace(seeds=stacked, count=jnp.int32(len(record['seeds'])))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f'{where}: not a draw of this version ({error}); restore the file, or draw again'
        ) from error


@functools.cache
def _any_draw(settings: FluidSettings) -> Draw:
    return draw_pair(jax.random.key(0), settings, 1)


def _typed(kind: type, record: dict[str, Any], template: Any) -> Any:
    unknown = set(record) ^ set(kind._fields)
    if unknown:
        raise ValueError(f"field '{sorted(unknown)[0]}' is unknown or missing")
    values = {}
    for name, like in template._asdict().items():
        if name == 'seeds':
            values[name] = None
        elif jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            words = np.asarray(record[name], np.uint32)
            if words.shape != jax.random.key_data(like).shape:
                raise ValueError(f"field '{name}' has {words.shape} words")
            values[name] = jax.random.wrap_key_data(words)
        else:
            if like.dtype == bool and not isinstance(record[name], bool):
                raise ValueError(f"field '{name}' must be true or false")
            value = jnp.asarray(record[name], like.dtype)
            if value.shape != like.shape or not np.isfinite(np.asarray(value, float)).all():
                raise ValueError(f"field '{name}' has shape {value.shape} or is not finite")
            values[name] = value
    return kind(**values)


def _plain(value: jax.Array) -> Any:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value).tolist()


def header(settings: FluidSettings, seed: int, num_pairs: int) -> dict[str, Any]:
    """The part of a draws.json that all its pairs share."""
    return {
        'format': FORMAT,
        'fluidjax': __version__,
        'seed': seed,
        'n': num_pairs,
        'settings': dataclasses.asdict(settings),
    }


def load(path: Path) -> tuple[dict[str, Any], FluidSettings]:
    """Read a draws.json; returns it and its settings.

    Raises:
        UserError: no such file, or not a draws.json of this version.
    """
    if not path.is_file():
        raise UserError(f'{path}: no such file; {ADVICE}')
    record = read_json(path, ADVICE)
    try:
        version, settings = record['format'], record['settings']
        scans = [
            (s['path'], s['sha256'], [pair['draw'] for pair in s['pairs']]) for s in record['scans']
        ]
        _ = record['seed'], record['n']
        masks = len((record['lesions'] or {'files': {}})['files'])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: is not a draws.json ({error}); {ADVICE}') from error
    lesions = [draw for *_, draws in scans for draw in draws]
    same_as_now = version == 1 and all(draw.get('strength') == 1.0 for draw in lesions)
    if not (version == FORMAT or same_as_now) or not scans:
        raise UserError(
            f'{path}: is of format {version}, this version reads {FORMAT}; use the '
            f'fluidjax that wrote it ({record.get("fluidjax")})'
        )
    for path_, _, draws in scans:
        for draw in draws:
            _check_bank(draw, masks, f'{path}, {path_}')
    return record, settings_from(FluidSettings, settings, 'settings')


def _check_bank(draw: dict[str, Any], masks: int, where: str) -> None:
    for seed in draw.get('seeds') or []:
        index = seed.get('bank_index')
        if seed.get('from_bank') and not (isinstance(index, int) and 0 <= index < masks):
            raise UserError(f'{where}: bank_index {index} of {masks} masks; give 0 to {masks - 1}')


def check_files(checksums: Mapping[str, str]) -> None:
    """Check that files are those that the draws were made for.

    Args:
        checksums: SHA-256 by path.

    Raises:
        UserError: a file is missing or has changed.
    """
    for path, expected in checksums.items():
        if not Path(path).is_file():
            raise UserError(
                f'{path}: no such file; put the scans and masks back where they were, or '
                'edit the path in draws.json'
            )
        if checksum(path) != expected:
            raise UserError(
                f'{path}: has changed since it was drawn for; restore it, or draw again'
            )
