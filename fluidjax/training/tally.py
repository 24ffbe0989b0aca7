"""What a stage's steps came to since the last line of its log, and where their time went."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.training import parallel

# Rounds that may wait for the devices: enough that these never do, few enough for the memory
# their batches take.
AHEAD = 2


class Tally:
    """Metrics of the dispatches under way, and the seconds they took.

    Args:
        stage: its name, for messages.
        start: the step it goes on from.
        last_good: the newest checkpoint, for messages.
    """

    def __init__(self, stage: str, start: int, last_good: str) -> None:
        self.last_good = last_good
        self._stage, self._next = stage, start + 1
        self._history: list[dict[str, Any]] = []
        self._under_way: deque[Any] = deque()
        self._began, self._waited = time.perf_counter(), 0.0
        self._spans: list[tuple[int, float, float]] = []  # steps, seconds, of them waiting

    def next_of(self, feed: Iterator[Any]) -> Any:
        """The next batch. Time counts as waiting for it where the devices had nothing else to do:
        at most that long did they stand still.
        """
        began = time.perf_counter()
        batch = next(feed)
        if not self._under_way or self._under_way[-1].is_ready():
            self._waited += time.perf_counter() - began
        return batch

    def add(self, metrics: list[dict[str, Any]]) -> None:
        """Metrics of a round, on the devices; waits for the round before the last."""
        self._history += metrics
        self._under_way.append(metrics[-1]['loss'])
        if len(self._under_way) > AHEAD:
            jax.block_until_ready(self._under_way.popleft())

    def settle(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Mean metrics of the steps since the last time, and all of those given a sample.

        A loss or gradient that is not finite ends the run. The gradient counts too: a finite loss
        can leave parameters that are not, and a checkpoint of them would be the last good one.

        Raises:
            UserError: names the step and the last good checkpoint.
        """
        parts = [parallel.unreplicate(metrics) for metrics in self._history]
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        steps = len(values['loss'])
        for name in ('loss', 'grad_norm'):
            bad = np.flatnonzero(~np.isfinite(values[name]))
            if len(bad):
                self._give_up(name, values[name][bad[0]], self._next + int(bad[0]))
        seconds = time.perf_counter() - self._began
        self._spans.append((steps, seconds, self._waited))
        mean = {name: float(np.mean(value)) for name, value in values.items()}
        mean |= {
            'seconds_per_step': seconds / steps,
            'seconds_waiting_for_data': self._waited / steps,
        }
        samples = {name: value[value > 0] for name, value in values.items() if value.ndim > 1}
        self._next += steps
        self._history.clear()
        return mean, samples

    def restart(self) -> None:
        """What was done since the last metrics, a checkpoint or a picture, is no step's time."""
        if not self._history:
            self._began, self._waited = time.perf_counter(), 0.0

    def summary(self) -> str:
        """A line on the stage's steps; those up to the first line of the log compiled."""
        spans = self._spans[1:] or self._spans
        steps, seconds, waited = (sum(column) for column in zip(*spans, strict=True))
        return (
            f'{self._stage}: {seconds / steps:.3g} s a step, {waited / seconds:.1%} of it '
            'waiting for data'
        )

    def _give_up(self, name: str, value: float, step: int) -> None:
        raise UserError(
            f"stage '{self._stage}': {name} is {value} at step {step}; the last good checkpoint is "
            f'{self.last_good}. Start again with a lower learning rate '
            f'(--config.{self._stage}.training.optimizer.learning_rate) in another --workdir'
        )
