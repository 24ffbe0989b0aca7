"""Training steps as pure functions of one device; `parallel` runs them on all devices.

step:  new pairs, their loss, one update
fill:  latents of new pairs into the pool;  pool_steps:  several updates from the pool
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fluidjax.base.share import Share
from fluidjax.training.settings import StageSettings
from fluidjax.training.state import Params, TrainState

Metrics = dict[str, jax.Array]
Samples = dict[str, jax.Array]
LossFn = Callable[[Params, Any, jax.Array, Share], tuple[jax.Array, Metrics]]
StepFn = Callable[..., tuple[TrainState, Metrics]]
# Folded into a step's key to draw samples from the pool. Methods split the same key, so the number
# must be one that no split uses: otherwise the choice of a pool place would determine the diffusion
# time that the method draws.
POOL_PURPOSE = 2**31 - 2


def ema_rate(decay: float, step: jax.Array) -> jax.Array:
    """EMA decay at a step: it rises with the step, so that a short run forgets its start."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    settings: StageSettings,
    axis_name: str,
) -> StepFn:
    """Build `(state, samples, first, key) -> (state, metrics)` for one device of a mapped axis.

    Args:
        loss_fn: `(params, samples, key, share) -> (loss, metrics)` over the device's samples; a
            metric is a number, or one number per sample.
        optimizer: the optimiser the state was created with.
        settings: of the stage.
        axis_name: the mapped axis over which gradients and metrics are averaged.

    `first` is the place of the device's first sample in the whole batch. Metrics have a leading
    axis of length 1, the step. The loss gets a key derived from the run's key and the step: the
    same seed gives the same run, whatever the number of restarts or devices.
    """

    def step(
        state: TrainState, samples: Samples, first: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        share = _share_of(samples, first, axis_name)
        update = _updater(loss_fn, optimizer, settings)
        state, metrics = update(state, samples, _step_key(key, state.step), share)
        return state, jax.tree.map(lambda value: value[None], metrics)

    return step


def make_fill(
    examples_fn: Callable[..., Any], settings: StageSettings, axis_name: str
) -> Callable[..., Any]:
    """Build `(frozen, pool, samples, first, step, key) -> pool`: it replaces the oldest examples.

    Args:
        examples_fn: `(frozen, samples, key, share) -> examples`, a tree of `(count, ...)`.
        settings: of the stage.
        axis_name: the mapped axis of the devices.

    A pool is such a tree with a leading axis, its places.
    """

    def fill(
        frozen: Params,
        pool: Any,
        samples: Samples,
        first: jax.Array,
        step: jax.Array,
        key: jax.Array,
    ) -> Any:
        share = _share_of(samples, first, axis_name)
        key = _step_key(key, step)

        def make(part: Samples, share: Share) -> Any:
            return examples_fn(frozen, part, key, share)

        number = parts_of(_count(samples), settings.accumulate)
        if number == 1:
            fresh = make(samples, share)
        else:
            fresh = jax.lax.map(lambda at: make(*at), _split(samples, share, number))
            fresh = jax.tree.map(_joined, fresh)
        places = len(jax.tree.leaves(pool)[0])
        return jax.tree.map(
            lambda kept, new: kept.at[step // settings.reuse % places].set(new), pool, fresh
        )

    return fill


def make_pool_steps(
    example_loss: LossFn,
    optimizer: optax.GradientTransformation,
    settings: StageSettings,
    axis_name: str,
    count: int,
) -> StepFn:
    """Build `(state, pool, first, key) -> (state, metrics)`: `count` steps in one dispatch.

    Each sample of a step is drawn from those that had its place in the batch in the last rounds.
    The arguments are those of `make_train_step`; metrics have a leading axis of the steps.
    """

    def steps(state: TrainState, pool: Any, first: jax.Array, key: jax.Array) -> Any:
        update = _updater(example_loss, optimizer, settings)
        places, count_here = jax.tree.leaves(pool)[0].shape[:2]
        share = Share(first, count_here * jax.lax.axis_size(axis_name), axis_name)
        filled = jnp.minimum(state.step // settings.reuse + 1, places)

        def one(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
            step_key = _step_key(key, state.step)
            u = share.uniform(jax.random.fold_in(step_key, POOL_PURPOSE), (count_here,))
            place = jnp.minimum(jnp.int32(u * filled), filled - 1)
            drawn = jax.tree.map(lambda kept: kept[place, jnp.arange(count_here)], pool)
            return update(state, drawn, step_key, share)

        if count == 1:
            state, metrics = one(state, None)
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(one, state, None, length=count)

    return steps


def make_validation(loss_fn: LossFn, accumulate: int, axis_name: str) -> Callable[..., jax.Array]:
    """Build `(params, frozen, samples, first, key) -> loss` over all devices.

    Args:
        loss_fn: as for `make_train_step`.
        accumulate: of the stage; a device goes through its samples in parts, as in training.
        axis_name: the mapped axis of the devices.
    """

    def validate(
        params: Params, frozen: Params, samples: Samples, first: jax.Array, key: jax.Array
    ) -> jax.Array:
        share = _share_of(samples, first, axis_name)

        def loss_of(part: Samples, share: Share) -> jax.Array:
            return loss_fn({**frozen, **params}, part, key, share)[0]

        number = parts_of(_count(samples), accumulate)
        if number == 1:
            loss = loss_of(samples, share)
        else:
            loss = jax.lax.map(lambda at: loss_of(*at), _split(samples, share, number)).mean()
        return jax.lax.pmean(loss, axis_name)

    return validate


def _step_key(key: jax.Array, step: jax.Array) -> jax.Array:
    # The second fold was once the number of the device; runs of that time need it to continue.
    return jax.random.fold_in(jax.random.fold_in(key, step), 0)


def _share_of(samples: Samples, first: jax.Array, axis_name: str) -> Share:
    """The part of the whole batch that a device's samples are."""
    return Share(first, _count(samples) * jax.lax.axis_size(axis_name), axis_name)


def parts_of(count: int, accumulate: int) -> int:
    """The number of equal parts in which a device goes through its samples.

    Args:
        count: of the device's samples.
        accumulate: the parts are at least so many, or of one sample each.
    """
    return next(n for n in range(min(accumulate, count), count + 1) if count % n == 0)


def _count(samples: Any) -> int:
    return len(jax.tree.leaves(samples)[0])


def _split(samples: Any, share: Share, parts: int) -> tuple[Any, Share]:
    """Samples and shares, with the parts as a leading axis."""
    count = _count(samples) // parts
    split = jax.tree.map(lambda x: x.reshape(parts, count, *x.shape[1:]), samples)
    return split, share.replace(first=share.first + count * jnp.arange(parts))


def _joined(parts: jax.Array) -> jax.Array:
    return parts.reshape(-1, *parts.shape[2:])


def _device_mean(grads: Params, axis: str, dtype: str) -> Params:
    """Gradients averaged over the devices, which send them as numbers of a type."""
    if dtype == 'float32' or jax.lax.axis_size(axis) == 1:
        return jax.lax.pmean(grads, axis)
    sent = jax.tree.map(lambda x: x.astype(dtype), grads)
    return jax.tree.map(lambda mean, x: mean.astype(x.dtype), jax.lax.pmean(sent, axis), grads)


def _updater(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, settings: StageSettings
) -> StepFn:
    """`(state, samples, key, share) -> (state, metrics)`, both the same on every device."""

    def gradient(state: TrainState, samples: Any, key: jax.Array, share: Share) -> Any:
        def loss_of(params: Params) -> tuple[jax.Array, Metrics]:
            return loss_fn({**state.frozen, **params}, samples, key, share)

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return grads, {'loss': loss, **metrics}

    def accumulated(state: TrainState, samples: Any, key: jax.Array, share: Share) -> Any:
        def add(total: Params, at: tuple[Any, Share]) -> tuple[Params, Metrics]:
            grads, metrics = gradient(state, at[0], key, at[1])
            return jax.tree.map(jnp.add, total, grads), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        parts = parts_of(_count(samples), settings.accumulate)
        total, metrics = jax.lax.scan(add, zeros, _split(samples, share, parts))
        grads = jax.tree.map(lambda x: x / parts, total)
        return grads, {name: _joined(x) if x.ndim > 1 else x.mean() for name, x in metrics.items()}

    def update(
        state: TrainState, samples: Any, key: jax.Array, share: Share
    ) -> tuple[TrainState, Metrics]:
        whole = parts_of(_count(samples), settings.accumulate) == 1
        compute = gradient if whole else accumulated
        grads, metrics = compute(state, samples, key, share)
        grads = _device_mean(grads, share.axis, settings.reduce_dtype)
        metrics = {
            name: jax.lax.pmean(value, share.axis) if value.ndim == 0 else share.everyones(value)
            for name, value in metrics.items()
        }
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = ema_rate(settings.ema_decay, state.step)
        ema = jax.tree.map(lambda old, new: rate * old + (1.0 - rate) * new, state.ema, params)
        metrics['grad_norm'] = optax.global_norm(grads)
        return state.replace(
            step=state.step + 1, params=params, ema=ema, opt_state=opt_state
        ), metrics

    return update
