"""Samplers: a `lax.scan` over the steps of a schedule, seeing nothing but a denoise function.

`denoise(x, t)` takes the noisy latent (b, ...) and the original steps (b,) and returns the model
output: a prediction ('eps', 'v' or 'x0'), with the same number of variance channels after it if the
model learned the variance. Whatever conditions the model is inside that function.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.diffusion import schedule as sch
from fluidjax.diffusion.losses import learned_log_variance, split_variance
from fluidjax.diffusion.schedule import Schedule
from fluidjax.errors import UserError

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def one_step(
    denoise: Denoise, schedule: Schedule, x_t: jax.Array, start: int, prediction: str = 'eps'
) -> jax.Array:
    """x0 in a single evaluation, from x_t at the level of noise of step `start` - 1."""
    _check_start(schedule, start)
    t = _steps(start - 1, x_t)
    output = _evaluate(denoise, schedule, x_t, t)
    mean, _ = split_variance(output, x_t.shape[-1])
    return sch.predict_x0(schedule, prediction, x_t, t, mean)


def ddpm(
    denoise: Denoise, schedule: Schedule, x_t: jax.Array, start: int, key: jax.Array,
    prediction: str = 'eps', clip: float | None = None,
) -> jax.Array:
    """Ancestral sampling: the steps start - 1, ..., 0 of `schedule` (Ho et al. 2020, alg. 2)."""
    _check_start(schedule, start)

    def body(x: jax.Array, step: tuple) -> tuple[jax.Array, None]:
        index, step_key = step
        noise = jax.random.normal(step_key, x.shape, x.dtype)
        return ddpm_step(denoise, schedule, x, index, noise, prediction, clip), None

    xs = (jnp.arange(start)[::-1], jax.random.split(key, start))
    return jax.lax.scan(body, x_t, xs)[0]


def ddim(
    denoise: Denoise, schedule: Schedule, x_t: jax.Array, start: int, num_steps: int,
    prediction: str = 'eps', eta: float = 0.0, key: jax.Array | None = None,
    clip: float | None = None,
) -> jax.Array:
    """DDIM in `num_steps` steps spread evenly over start - 1, ..., 0 (Song et al. 2021, eq. 12).

    Args:
        x_t: latent at the level of noise of step `start` - 1; with start = schedule.num_steps
            standard normal noise will do.
        eta: 0 deterministic, 1 as noisy as ancestral sampling; above 0 a `key` is needed.
        clip: bound of |x0|, None for latents.
    """
    _check_start(schedule, start)
    if eta > 0 and key is None:
        raise ValueError('ddim with eta > 0 draws noise and needs a key')
    short = sch.respace(schedule, sch.evenly_spaced(start, num_steps))

    def body(x: jax.Array, step: tuple) -> tuple[jax.Array, None]:
        index, step_key = step
        noise = jax.random.normal(step_key, x.shape, x.dtype) if eta > 0 else jnp.zeros_like(x)
        return ddim_step(denoise, short, x, index, noise, prediction, eta, clip), None

    keys = jax.random.split(jax.random.key(0) if key is None else key, num_steps)
    return jax.lax.scan(body, x_t, (jnp.arange(num_steps)[::-1], keys))[0]


def ddpm_step(
    denoise: Denoise, schedule: Schedule, x: jax.Array, step: jax.Array, noise: jax.Array,
    prediction: str = 'eps', clip: float | None = None,
) -> jax.Array:
    """x_{t-1} = mean + [t > 0] exp(log_variance / 2) noise; `step` one number or (b,)."""
    t = _steps(step, x)
    x0, v = _predict(denoise, schedule, x, t, prediction, clip)
    mean, log_variance = sch.q_posterior(schedule, x0, x, t)
    if v is not None:
        log_variance = learned_log_variance(schedule, v, t)
    alive = sch.lookup(np.arange(schedule.num_steps) > 0, t, x.ndim)
    return mean + alive * jnp.exp(0.5 * log_variance) * noise


def ddim_step(
    denoise: Denoise, schedule: Schedule, x: jax.Array, step: jax.Array, noise: jax.Array,
    prediction: str = 'eps', eta: float = 0.0, clip: float | None = None,
) -> jax.Array:
    """One DDIM step of `schedule`; the learned variance, where there is one, is not used."""
    t = _steps(step, x)
    x0, _ = _predict(denoise, schedule, x, t, prediction, clip)
    eps = sch.predict_eps(schedule, x, t, x0)
    abar_prev = schedule.alphas_cumprod_prev
    sigma = eta * np.sqrt(schedule.posterior_variance)
    direction = np.sqrt(np.maximum(1.0 - abar_prev - sigma**2, 0.0))
    return (sch.lookup(np.sqrt(abar_prev), t, x.ndim) * x0
            + sch.lookup(direction, t, x.ndim) * eps + sch.lookup(sigma, t, x.ndim) * noise)


def _predict(denoise: Denoise, schedule: Schedule, x: jax.Array, t: jax.Array, prediction: str,
             clip: float | None) -> tuple[jax.Array, jax.Array | None]:
    output, v = split_variance(_evaluate(denoise, schedule, x, t), x.shape[-1])
    x0 = sch.predict_x0(schedule, prediction, x, t, output)
    return (x0 if clip is None else jnp.clip(x0, -clip, clip)), v


def _evaluate(denoise: Denoise, schedule: Schedule, x: jax.Array, t: jax.Array) -> jax.Array:
    return denoise(x, jnp.asarray(schedule.timestep_map)[t])


def _steps(step: int | jax.Array, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(step, jnp.int32), x.shape[:1])


def _check_start(schedule: Schedule, start: int) -> None:
    if not 1 <= start <= schedule.num_steps:
        raise UserError(f'diffusion start step: {start} is not within 1..{schedule.num_steps}')
