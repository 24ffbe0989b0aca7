"""Samplers: a `lax.scan` over the visited steps, which takes the model as a denoise function.

`denoise(x, t)` takes the noisy latent (b, ...) and the original steps (b,) and returns the model
output: a prediction ('eps', 'v' or 'x0'), followed by as many variance channels if the model
learned the variance. A condition of the model is part of that function.

Every sampler starts from x_t at the noise level of step `start` - 1: a noised scan, or, with
start = schedule.num_steps, standard normal noise. `start`, x_t and the key may be traced, so that
several seeds or noise levels are one `jax.vmap`; `ensemble` is that call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.diffusion import schedule as sch
from fluidjax.diffusion.losses import interpolated_log_variance, split_variance
from fluidjax.diffusion.schedule import Schedule

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
Start = int | jax.Array
TINY = 1e-20  # below every variance of a schedule, above what float32 flushes to zero


def one_step(
    denoise: Denoise, schedule: Schedule, x_t: jax.Array, start: Start, prediction: str = 'eps'
) -> jax.Array:
    """x0 in a single evaluation."""
    sch.check_start(schedule, start)
    return _predict(denoise, schedule, x_t, _steps(start - 1, x_t), prediction)[0]


def ddpm(
    denoise: Denoise,
    schedule: Schedule,
    x_t: jax.Array,
    start: Start,
    key: jax.Array,
    prediction: str = 'eps',
    num_steps: int | None = None,
) -> jax.Array:
    """Ancestral sampling (Ho et al. 2020, alg. 2).

    Args:
        num_steps: evaluations, spread evenly over the steps (Nichol and Dhariwal 2021, section 4);
            None for all of them, which needs a `start` that is not traced.
    """
    sch.check_start(schedule, start)
    steps = sch.visited(schedule, start, int(start) if num_steps is None else num_steps)

    def body(x: jax.Array, step: tuple) -> tuple[jax.Array, None]:
        t, s, step_key = step
        noise = jax.random.normal(step_key, x.shape, x.dtype)
        return ddpm_step(denoise, schedule, x, t, noise, prediction, s), None

    xs = (steps, _following(steps), jax.random.split(key, len(steps)))
    return jax.lax.scan(body, x_t, xs)[0]


def ddim(
    denoise: Denoise,
    schedule: Schedule,
    x_t: jax.Array,
    start: Start,
    num_steps: int,
    prediction: str = 'eps',
) -> jax.Array:
    """Deterministic DDIM in `num_steps` evaluations (Song et al. 2021, eq. 12 with eta = 0).

    First order in the step; the steps are evenly spaced in time.
    """
    steps = sch.visited(schedule, start, num_steps)

    def body(x: jax.Array, step: tuple) -> tuple[jax.Array, None]:
        t, s = step
        return ddim_step(denoise, schedule, x, t, prediction, s), None

    return jax.lax.scan(body, x_t, (steps, _following(steps)))[0]


def dpmpp(
    denoise: Denoise,
    schedule: Schedule,
    x_t: jax.Array,
    start: Start,
    num_steps: int,
    prediction: str = 'eps',
) -> jax.Array:
    """DPM-Solver++(2M) in `num_steps` evaluations (Lu et al. 2022, arXiv:2211.01095, alg. 2).

    Deterministic, second order in the step h of lambda = log(signal / sigma). The first step is
    first order, because there is no step before it, and so is the last, from step 0 to the clean
    x0. The steps are evenly spaced in lambda: evenly in time, they would grow in lambda towards the
    end, and with few of them extrapolate too far.
    """
    steps = sch.visited(schedule, start, num_steps, even_in_log_snr=True)

    def body(carry: tuple, step: tuple) -> tuple[tuple[jax.Array, jax.Array], None]:
        (x, x0_before), (t, s, weight) = carry, step
        t, s = _steps(t, x), _steps(s, x)
        x0, _ = _predict(denoise, schedule, x, t, prediction)
        signal_t, sigma_t = sch.signal_and_noise(schedule, t, x.ndim)
        signal_s, sigma_s = sch.signal_and_noise(schedule, s, x.ndim)
        D = x0 + weight * (x0 - x0_before)
        # signal_s (1 - exp(-h)) without the infinite h of a clean s
        x = sigma_s / sigma_t * x + (signal_s - signal_t * sigma_s / sigma_t) * D
        return (x, x0), None

    xs = (steps, _following(steps), multistep_weights(schedule, steps))
    return jax.lax.scan(body, (x_t, jnp.zeros_like(x_t)), xs)[0][0]


def multistep_weights(schedule: Schedule, steps: jax.Array) -> jax.Array:
    """1 / (2 r_i) = h_i / (2 h_{i-1}) for each step visited (n,), h_i = lambda_{i+1} - lambda_i.

    Zero, which is first order, for the first step, the last, and after a repeated one.
    """
    lam = sch.lookup(0.5 * np.log(schedule.snr), steps, 1)
    h = jnp.append(jnp.diff(lam), 0.0)
    before = jnp.append(0.0, h[:-1])
    return jnp.where(before > 0, h / (2.0 * jnp.where(before > 0, before, 1.0)), 0.0)


def ensemble(
    sample: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    schedule: Schedule,
    x0: jax.Array,
    starts: int | Sequence[int],
    keys: jax.Array,
) -> jax.Array:
    """Samples (n, b, ...) from x0 (b, ...) noised n times, in one vmapped call.

    Args:
        sample: `sample(x_t, start, key)`, a sampler with all else fixed.
        starts: one noise level for all, or n of them; x0 is noised to step start - 1.
        keys: n keys; each draws the noise of its start, then that of its steps.

    Raises:
        UserError: a start that is not a step of the schedule.
    """
    starts = np.broadcast_to(np.asarray(starts), keys.shape)
    for start in starts.tolist():
        sch.check_start(schedule, start)

    def one(start: jax.Array, key: jax.Array) -> jax.Array:
        k_start, k_steps = jax.random.split(key)
        noise = jax.random.normal(k_start, x0.shape, x0.dtype)
        return sample(sch.q_sample(schedule, x0, _steps(start - 1, x0), noise), start, k_steps)

    return jax.vmap(one)(jnp.asarray(starts, jnp.int32), keys)


def ddpm_step(
    denoise: Denoise,
    schedule: Schedule,
    x: jax.Array,
    step: Start,
    noise: jax.Array,
    prediction: str = 'eps',
    to: Start | None = None,
) -> jax.Array:
    """x_to = mean + [to >= 0] exp(log_variance / 2) noise; `step`, `to` one number or (b,).

    `to` is the step before where None. A learned variance is interpolated between the two limits of
    this step, however long it is.
    """
    t = _steps(step, x)
    s = t - 1 if to is None else _steps(to, x)
    x0, v = _predict(denoise, schedule, x, t, prediction)
    mean, variance, beta = sch.q_between(schedule, x0, x, t, s)
    log_variance = jnp.log(jnp.maximum(variance, TINY))
    if v is not None:
        log_beta = jnp.log(jnp.maximum(beta, TINY))
        log_variance = interpolated_log_variance(v, log_variance, log_beta)
    alive = (s >= 0).reshape(s.shape + (1,) * (x.ndim - 1))
    return mean + jnp.where(alive, jnp.exp(0.5 * log_variance), 0.0) * noise


def ddim_step(
    denoise: Denoise,
    schedule: Schedule,
    x: jax.Array,
    step: Start,
    prediction: str = 'eps',
    to: Start | None = None,
) -> jax.Array:
    """One DDIM step, to the step before or to `to`; a learned variance is not used."""
    t = _steps(step, x)
    s = t - 1 if to is None else _steps(to, x)
    x0, _ = _predict(denoise, schedule, x, t, prediction)
    signal_s, sigma_s = sch.signal_and_noise(schedule, s, x.ndim)
    return signal_s * x0 + sigma_s * sch.predict_eps(schedule, x, t, x0)


def _predict(
    denoise: Denoise, schedule: Schedule, x: jax.Array, t: jax.Array, prediction: str
) -> tuple[jax.Array, jax.Array | None]:
    """x0 and the variance channels, if there are any."""
    output = denoise(x, jnp.asarray(schedule.timestep_map)[t])
    mean, v = split_variance(output, x.shape[-1])
    return sch.predict_x0(schedule, prediction, x, t, mean), v


def _following(steps: jax.Array) -> jax.Array:
    """The step after each visited one; after the last comes the clean x0, -1."""
    return jnp.append(steps[1:], -1)


def _steps(step: Start, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(step, jnp.int32), x.shape[:1])
