"""One training step as a pure function; `parallel` makes it run on all devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fluidjax.training.state import Params, TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, dict[str, jax.Array], jax.Array], tuple[jax.Array, Metrics]]
StepFn = Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, Metrics]]


def ema_rate(decay: float, step: jax.Array) -> jax.Array:
    """EMA decay of a step: it rises with the step so that a short run forgets its start."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, ema_decay: float, axis_name: str
) -> StepFn:
    """Build `(state, batch, key) -> (state, metrics)` for one device of a mapped axis.

    Args:
        loss_fn: `(params, batch, key) -> (loss, metrics)` over the device's share of the batch.
        optimizer: the optimiser the state was created with.
        ema_decay: decay of the parameters' moving average.
        axis_name: the mapped axis over which gradients and metrics are averaged.

    The key handed to the loss is folded from the run's key, the step and the device, in that
    order: the same seed gives the same run, whatever the number of restarts.
    """

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> Any:
        key = jax.random.fold_in(key, state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

        def loss_of(params: Params) -> tuple[jax.Array, Metrics]:
            return loss_fn({**state.frozen, **params}, batch, key)

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        grads, metrics = jax.lax.pmean((grads, {'loss': loss, **metrics}), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = ema_rate(ema_decay, state.step)
        ema = jax.tree.map(lambda old, new: rate * old + (1.0 - rate) * new, state.ema, params)
        metrics['grad_norm'] = optax.global_norm(grads)
        state = state.replace(
            step=state.step + 1, params=params, ema=ema, opt_state=opt_state
        )
        return state, metrics

    return step
