"""What one dispatch does: a step on new pairs, or a round of several from pooled latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from fluidjax.base.errors import UserError
from fluidjax.base.share import WHOLE
from fluidjax.training import parallel
from fluidjax.training.settings import StageSettings
from fluidjax.training.state import TrainState
from fluidjax.training.steps import make_fill, make_pool_steps, make_train_step

Batch = dict[str, np.ndarray]


class Rounds:
    """The compiled dispatches of a stage, and where latents are pooled the pool.

    The pool is no part of the state: it holds the latents of the last rounds, which are functions
    of the frozen parameters, the seed and the step, so a resumed run makes them again.

    Args:
        method: offers `loss`, and for a pool `examples` and `example_loss`.
        optimizer: of the state.
        settings: of the stage.
        layout: the devices.
        key: the run's.

    Raises:
        UserError: a pool for a method that has no latents.
    """

    def __init__(
        self,
        method: Any,
        optimizer: optax.GradientTransformation,
        settings: StageSettings,
        layout: parallel.Layout,
        key: jax.Array,
    ) -> None:
        self._layout, self._key, self._settings = layout, key, settings
        self._first = parallel.to_devices(layout.first, layout)
        self._examples = getattr(method, 'examples', None)
        self._pool: Any = None
        axis = parallel.AXIS_NAME
        if not settings.pooled:
            step = make_train_step(method.loss, optimizer, settings, axis)
            self._step = parallel.data_parallel(step, layout, (True, True, False), donated=(0,))
            return
        if self._examples is None:
            raise UserError(
                f'{method.stage}.training.reuse and pool: for methods that train on '
                'latents; set both to 1'
            )
        fill = make_fill(method.examples, settings, axis)
        # In a loop of its own XLA's CPU code is several times slower: there, a step a dispatch.
        self._dispatches = settings.reuse if layout.devices[0].platform == 'cpu' else 1
        steps = make_pool_steps(
            method.example_loss, optimizer, settings, axis, settings.reuse // self._dispatches
        )
        self._fill = parallel.data_parallel(
            fill, layout, (True, True, True, False, False), donated=(1,)
        )
        self._step = parallel.data_parallel(steps, layout, (True, True, True, False), donated=(0,))

    def first_batch(self, step: int) -> int:
        """Number of the batch to begin with, to go on after a step: pooled ones come again."""
        return max(0, step // self._settings.reuse - (self._settings.pool - 1))

    def resume(self, state: TrainState, step: int, feed: Iterator[Batch]) -> None:
        """Make the pool as it was after a step; takes the batches from `first_batch` on."""
        for number in range(self.first_batch(step), step // self._settings.reuse):
            self._put(state, self._placed(next(feed)), number)

    def __call__(self, state: TrainState, batch: Batch, step: int) -> Any:
        """Go on after a step with a batch: the new state, and a list of metrics of `reuse` steps.

        Each has a leading axis of steps. Returns before the devices are done; `state` is not to be
        used again.
        """
        placed = self._placed(batch)
        if not self._settings.pooled:
            state, metrics = self._step(state, placed, self._key)
            return state, [metrics]
        self._put(state, placed, step // self._settings.reuse)
        made = []
        for _ in range(self._dispatches):
            state, metrics = self._step(state, self._pool, self._first, self._key)
            made.append(metrics)
        return state, made

    def _placed(self, batch: Batch) -> Any:
        return parallel.to_devices(batch, self._layout) | {'first': self._first}

    def _put(self, state: TrainState, placed: Any, number: int) -> None:
        if self._pool is None:
            self._pool = self._empty_pool(state, placed)
        step = np.int32(number * self._settings.reuse)
        self._pool = self._fill(state.frozen, self._pool, placed, step, self._key)

    def _empty_pool(self, state: TrainState, placed: Any) -> Any:
        """Zeros in the shapes of one device's examples, times places and devices."""
        one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        samples = {name: one(x) for name, x in placed.items() if name != 'first'}
        examples = jax.eval_shape(
            lambda *given: self._examples(*given, WHOLE),
            jax.tree.map(one, state.frozen),
            samples,
            self._key,
        )
        places = (len(self._layout.devices), self._settings.pool)
        empty = jax.tree.map(lambda x: np.zeros((*places, *x.shape), x.dtype), examples)
        return parallel.to_devices(empty, self._layout)
