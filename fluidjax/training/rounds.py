"""What one dispatch does: a step on new pairs, or several steps on pooled latents."""

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
    """The compiled dispatches of a stage, with the pool where latents are pooled.

    The pool is not part of the state. It holds the latents of the last rounds, which are functions
    of the frozen parameters, the seed and the step, so a resumed run computes them again.

    Args:
        method: see `fluidjax.methods`; a pool needs its `examples` and `example_loss`.
        optimizer: of the state.
        settings: of the stage.
        layout: the devices.
        key: the run's key.

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
        self._pool: Any = None
        axis = parallel.AXIS_NAME
        spread = (True, True, True, False)
        if not settings.pooled:
            step = make_train_step(method.loss, optimizer, settings, axis)
            self._step = parallel.data_parallel(step, layout, spread, donated=(0,))
            return
        if method.examples is None:
            raise UserError(
                f'config.{method.stage}.training.reuse: only methods that train on latents can '
                'reuse them; set reuse and pool to 1'
            )
        self._examples = method.examples
        # On CPUs XLA runs code within a loop several times slower: one step per dispatch there.
        self._dispatches = settings.reuse if layout.devices[0].platform == 'cpu' else 1
        count = settings.reuse // self._dispatches
        fill = make_fill(method.examples, settings, axis)
        steps = make_pool_steps(method.example_loss, optimizer, settings, axis, count)
        spread_fill = (True, True, True, True, False, False)
        self._fill = parallel.data_parallel(fill, layout, spread_fill, donated=(1,))
        self._step = parallel.data_parallel(steps, layout, spread, donated=(0,))

    def first_batch(self, step: int) -> int:
        """The number of the batch to begin with after a step, so that the pool can be refilled."""
        return max(0, step // self._settings.reuse - (self._settings.pool - 1))

    def resume(self, state: TrainState, step: int, feed: Iterator[Batch]) -> None:
        """Refill the pool to what it was after a step; takes the batches from `first_batch` on."""
        for number in range(self.first_batch(step), step // self._settings.reuse):
            self._put(state, next(feed), number)

    def __call__(self, state: TrainState, batch: Batch, step: int) -> Any:
        """Continue after a step with a batch; returns before the devices are done.

        Args:
            state: on the devices; it is donated, so it must not be used again.
            batch: numpy arrays `(device, sample, ...)`.
            step: number of steps done.

        Returns:
            The new state, and a list of metrics with a leading axis of steps, in all `reuse` steps.
        """
        if not self._settings.pooled:
            samples = parallel.to_devices(batch, self._layout)
            state, metrics = self._step(state, samples, self._first, self._key)
            return state, [metrics]
        self._put(state, batch, step // self._settings.reuse)
        history = []
        for _ in range(self._dispatches):
            state, metrics = self._step(state, self._pool, self._first, self._key)
            history.append(metrics)
        return state, history

    def _put(self, state: TrainState, batch: Batch, number: int) -> None:
        """Put the examples of a batch into the pool."""
        samples = parallel.to_devices(batch, self._layout)
        if self._pool is None:
            self._pool = self._empty_pool(state, samples)
        step = np.int32(number * self._settings.reuse)
        self._pool = self._fill(state.frozen, self._pool, samples, self._first, step, self._key)

    def _empty_pool(self, state: TrainState, samples: Any) -> Any:
        """Zeros `(device, place, sample, ...)` in the shapes of one device's examples."""
        one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        examples = jax.eval_shape(
            lambda *arguments: self._examples(*arguments, WHOLE),
            jax.tree.map(one, state.frozen),
            jax.tree.map(one, samples),
            self._key,
        )
        places = (len(self._layout.devices), self._settings.pool)
        empty = jax.tree.map(lambda x: np.zeros((*places, *x.shape), x.dtype), examples)
        return parallel.to_devices(empty, self._layout)
