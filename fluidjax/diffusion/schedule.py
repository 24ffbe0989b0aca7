"""The noise schedule as an immutable value, and the Gaussians of the forward process.

Notation of Ho et al. 2020: q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I). A step t counts from
0 (nearly clean) to num_steps - 1 (nearly pure noise); -1 is x_0 itself. Tables are float64 and
become float32 when looked up.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.errors import UserError

PREDICTIONS = ('eps', 'v', 'x0')


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Tables over the steps of a (possibly respaced) process.

    Attributes:
        betas: (num_steps,) variances of the single steps.
        timestep_map: (num_steps,) the steps of the original process, which the network sees.
    """

    betas: np.ndarray
    timestep_map: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        return np.cumprod(1.0 - self.betas)

    @functools.cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        return np.append(1.0, self.alphas_cumprod[:-1])

    @functools.cached_property
    def snr(self) -> np.ndarray:
        """Signal-to-noise ratio abar_t / (1 - abar_t)."""
        return self.alphas_cumprod / (1.0 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """Of q(x_{t-1} | x_t, x_0); zero at t = 0."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """The logarithm, with the (zero) first variance replaced by the second."""
        variance = self.posterior_variance
        return np.log(np.append(variance[min(1, len(variance) - 1)], variance[1:]))

    @functools.cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        """Weight of x_0 in the posterior mean."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        """Weight of x_t in the posterior mean."""
        return (
            (1.0 - self.alphas_cumprod_prev)
            * np.sqrt(1.0 - self.betas)
            / (1.0 - self.alphas_cumprod)
        )


def linear_schedule(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Schedule:
    """Betas on a line, for 1000 steps from 1e-4 to 0.02 as published; scaled for other numbers."""
    if num_steps < 1:
        raise UserError(f'diffusion.num_steps: is {num_steps}, must be at least 1')
    scale = 1000.0 / num_steps
    if scale * beta_end >= 1.0:
        raise UserError(
            f'diffusion.num_steps: {num_steps} is too few for a linear schedule up to '
            f'{beta_end}; take more, and sample with fewer'
        )
    betas = np.linspace(scale * beta_start, scale * beta_end, num_steps, dtype=np.float64)
    return Schedule(betas, np.arange(num_steps))


def respace(schedule: Schedule, steps: np.ndarray | list[int]) -> Schedule:
    """The process that visits only `steps` (ascending), with the same abar at each of them."""
    steps = np.asarray(steps)
    ascending = len(steps) > 0 and np.all(np.diff(steps) > 0)
    if not ascending or steps[0] < 0 or steps[-1] >= schedule.num_steps:
        raise UserError(
            f'diffusion steps: {steps.tolist()} must ascend within 0..{schedule.num_steps - 1}'
        )
    kept = schedule.alphas_cumprod[steps]
    betas = 1.0 - kept / np.append(1.0, kept[:-1])
    return Schedule(betas, schedule.timestep_map[steps])


def visited(
    schedule: Schedule, start: int | jax.Array, count: int, even_in_log_snr: bool = False
) -> jax.Array:
    """The `count` steps that a sampler visits, (count,) int32 from `start` - 1 down to 0.

    Args:
        start: may be traced, as under `vmap`; then it is not checked, and with a start below
            `count` steps repeat, which every sampler passes without moving.
        even_in_log_snr: evenly spaced in lambda = log(signal / sigma) (Lu et al. 2022, section 4),
            at the nearest steps that are all different, instead of evenly in time.

    Raises:
        UserError: a count or a start outside the schedule.
    """
    check_start(schedule, start)
    most = start if _is_known(start) else schedule.num_steps
    if not 1 <= count <= most:
        raise UserError(f'diffusion sampling steps: {count} is not within 1..{most}')
    start = jnp.asarray(start, jnp.int32)
    if count == 1:
        return start[None] - 1
    i = jnp.arange(count)
    if even_in_log_snr:
        return _nearest_in_log_snr(schedule, start, count)[::-1]
    return _round_ratio(i * (start - 1), count - 1)[::-1]


def check_start(schedule: Schedule, start: int | jax.Array) -> None:
    """Check that `start` - 1 is a step of the schedule, unless it is traced.

    Raises:
        UserError: it is not.
    """
    if _is_known(start) and not 1 <= start <= schedule.num_steps:
        raise UserError(f'diffusion start step: {start} is not within 1..{schedule.num_steps}')


def _is_known(start: int | jax.Array) -> bool:
    return not isinstance(start, jax.core.Tracer)


def _round_ratio(numerator: jax.Array, denominator: int) -> jax.Array:
    """Integers nearest to the ratio, halves to the even one, as Python rounds."""
    low, rest = numerator // denominator, 2 * (numerator % denominator)
    return low + ((rest > denominator) | ((rest == denominator) & (low % 2 == 1)))


def _nearest_in_log_snr(schedule: Schedule, start: jax.Array, count: int) -> jax.Array:
    """Ascending steps whose lambda is nearest to an even division of lambda_0..lambda_{start-1}."""
    noise = jnp.asarray(-0.5 * np.log(schedule.snr), jnp.float32)  # -lambda, ascending with t
    wanted = jnp.linspace(noise[0], noise[start - 1], count)
    steps = jnp.interp(wanted, noise, jnp.arange(schedule.num_steps, dtype=jnp.float32))
    i = jnp.arange(count)
    # Near t = 0 lambda changes by 0.4 per step: repeated steps are moved up, but stay below start.
    different = i + jax.lax.cummax(jnp.int32(jnp.round(steps)) - i)
    return jnp.maximum(jnp.minimum(different, start - count + i), 0)


def lookup(table: np.ndarray, t: jax.Array, ndim: int) -> jax.Array:
    """table[t] as float32, shaped (batch, 1, ..., 1) to broadcast against `ndim` axes."""
    values = jnp.asarray(table, jnp.float32)[t]
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def q_sample(schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise; x0 (b, ...), t (b,)."""
    signal, sigma = signal_and_noise(schedule, t, x0.ndim)
    return signal * x0 + sigma * noise


def signal_and_noise(schedule: Schedule, t: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    """sqrt(abar_t) and sqrt(1 - abar_t), ready to broadcast; 1 and 0 at t = -1."""
    abar = np.append(1.0, schedule.alphas_cumprod)
    return lookup(np.sqrt(abar), t + 1, ndim), lookup(np.sqrt(1.0 - abar), t + 1, ndim)


def q_posterior(
    schedule: Schedule, x0: jax.Array, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and (clipped) log-variance of q(x_{t-1} | x_t, x_0)."""
    weight_x0 = lookup(schedule.posterior_mean_coef1, t, x_t.ndim)
    weight_xt = lookup(schedule.posterior_mean_coef2, t, x_t.ndim)
    log_variance = lookup(schedule.posterior_log_variance_clipped, t, x_t.ndim)
    return weight_x0 * x0 + weight_xt * x_t, log_variance


def q_between(
    schedule: Schedule, x0: jax.Array, x_t: jax.Array, t: jax.Array, s: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and variance of q(x_s | x_t, x_0) for any s < t, and the beta of that one long step.

    `q_posterior` of the process that visits s and t and nothing between; with s = -1 (clean) the
    mean is x_0 and the variance 0, with s = t the mean is x_t.
    """
    log_abar = np.append(0.0, np.log(schedule.alphas_cumprod))
    beta = -jnp.expm1(lookup(log_abar, t + 1, x_t.ndim) - lookup(log_abar, s + 1, x_t.ndim))
    _, sigma_t = signal_and_noise(schedule, t, x_t.ndim)
    signal_s, sigma_s = signal_and_noise(schedule, s, x_t.ndim)
    left = jnp.square(sigma_s / sigma_t)
    mean = beta * signal_s / jnp.square(sigma_t) * x0 + jnp.sqrt(1.0 - beta) * left * x_t
    return mean, beta * left, beta


def target(
    schedule: Schedule, prediction: str, x0: jax.Array, t: jax.Array, noise: jax.Array
) -> jax.Array:
    """The target of the network: the noise, v = sqrt(abar) eps - sigma x0, or x0.

    v-prediction: Salimans and Ho 2022, appendix D.
    """
    signal, sigma = signal_and_noise(schedule, t, x0.ndim)
    return _choose(prediction, eps=noise, v=signal * noise - sigma * x0, x0=x0)


def predict_x0(
    schedule: Schedule, prediction: str, x_t: jax.Array, t: jax.Array, output: jax.Array
) -> jax.Array:
    """x0 from the network's output (without variance channels)."""
    signal, sigma = signal_and_noise(schedule, t, x_t.ndim)
    return _choose(
        prediction, eps=(x_t - sigma * output) / signal, v=signal * x_t - sigma * output, x0=output
    )


def predict_eps(schedule: Schedule, x_t: jax.Array, t: jax.Array, x0: jax.Array) -> jax.Array:
    """The noise that leads from x0 to x_t."""
    signal, sigma = signal_and_noise(schedule, t, x_t.ndim)
    return (x_t - signal * x0) / sigma


def _choose(prediction: str, **by_name: jax.Array) -> jax.Array:
    if prediction not in PREDICTIONS:
        raise UserError(f'diffusion.prediction: {prediction!r} is not one of {PREDICTIONS}')
    return by_name[prediction]
