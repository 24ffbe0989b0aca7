"""What a sweep tries: a configuration and the fields that its trials change.

A file in `configs/sweeps/` returns `sweep(base, trials=grid({...}))`, or `random_search`, or
`search={...}` for Optuna.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fluidjax.base.errors import UserError

Fields = Mapping[str, Any]
DEFAULT_SCORE = 'validation_ap'


@dataclasses.dataclass(frozen=True)
class Between:
    """A number between two others, drawn evenly, or evenly in its logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise UserError(
                f'sweep: no range from {self.low} to {self.high}'
                + (' in logarithms' if self.log else '')
            )


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some values, drawn evenly."""

    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep tries.

    Attributes:
        base: a configuration file with its argument, 'configs/ldm.py:demo'.
        trials: for each trial the fields it changes, dotted as on the command line.
        search: for Optuna instead: fields and where they lie.
        count: trials of the search.
        score: what is best when largest: `validation_ap` or `validation_dice`, on the scans that
            choose the thresholds, or a score of the test set, which then is none any more.
    """

    base: str
    trials: tuple[Fields, ...] = ()
    search: tuple[tuple[str, Between | OneOf], ...] = ()
    count: int = 0
    score: str = DEFAULT_SCORE


def sweep(
    base: str,
    trials: Sequence[Fields] = (),
    search: Mapping[str, Between | OneOf] | None = None,
    count: int = 0,
    score: str = DEFAULT_SCORE,
) -> ConfigDict:
    """A sweep, as a file of `configs/sweeps/` returns it; see `Sweep`.

    Raises:
        UserError: neither trials nor a search with a count, or both.
    """
    if bool(trials) == bool(search) or bool(search) != (count > 0):
        raise UserError('sweep: give trials, or search and count')
    made = Sweep(
        base, tuple(dict(trial) for trial in trials), tuple((search or {}).items()), count, score
    )
    return ConfigDict({'sweep': made})


def grid(fields: Mapping[str, Sequence[Any]]) -> list[Fields]:
    """Every combination of some values of each field; the last field changes first."""
    every = itertools.product(*fields.values())
    return [dict(zip(fields, values, strict=True)) for values in every]


def random_search(fields: Mapping[str, Between | OneOf], count: int, seed: int = 0) -> list[Fields]:
    """Trials drawn at random; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)

    def draw(where: Between | OneOf) -> Any:
        if isinstance(where, OneOf):
            return where.values[int(rng.integers(len(where.values)))]
        if where.log:
            return float(math.exp(rng.uniform(math.log(where.low), math.log(where.high))))
        return float(rng.uniform(where.low, where.high))

    return [{name: draw(where) for name, where in fields.items()} for _ in range(count)]
