"""The definition of a sweep: a configuration, and the fields that its trials change.

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
    """A number from a range, drawn uniformly, or uniformly in its logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise UserError(
                f'sweep: {self.low} to {self.high} is not a range'
                + (' of logarithms' if self.log else '')
            )


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some values, drawn uniformly."""

    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The definition of a sweep.

    Attributes:
        base: a configuration file with its argument, 'configs/ldm.py:demo'.
        trials: for each trial the fields that it changes, dotted as on the command line.
        search: instead of trials, for Optuna: fields with their ranges.
        count: number of trials of the search.
        score: the score to maximise: `validation_ap` or `validation_dice`, on the scans on which
            thresholds are chosen, or a score of the test set, which is then no test set any more.
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
    changes = tuple(dict(trial) for trial in trials)
    definition = Sweep(base, changes, tuple((search or {}).items()), count, score)
    return ConfigDict({'sweep': definition})


def grid(fields: Mapping[str, Sequence[Any]]) -> list[Fields]:
    """All combinations of some values of each field; the last field changes fastest."""
    every = itertools.product(*fields.values())
    return [dict(zip(fields, values, strict=True)) for values in every]


def random_search(fields: Mapping[str, Between | OneOf], count: int, seed: int = 0) -> list[Fields]:
    """Random trials; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)

    def draw(where: Between | OneOf) -> Any:
        if isinstance(where, OneOf):
            return where.values[int(rng.integers(len(where.values)))]
        if where.log:
            return float(math.exp(rng.uniform(math.log(where.low), math.log(where.high))))
        return float(rng.uniform(where.low, where.high))

    return [{name: draw(where) for name, where in fields.items()} for _ in range(count)]
