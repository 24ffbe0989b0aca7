"""Training losses of the denoiser, one number per sample.

The learned variance interpolates, in the log domain, between beta_t and the posterior variance and
is trained by the variational bound only (Nichol and Dhariwal 2021, eq. 15-16).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.diffusion import schedule as sch
from fluidjax.diffusion.schedule import Schedule


def split_variance(output: jax.Array, channels: int) -> tuple[jax.Array, jax.Array | None]:
    """The prediction and, where the output has twice the channels, the variance channels."""
    if output.shape[-1] == channels:
        return output, None
    return output[..., :channels], output[..., channels:]


def learned_log_variance(schedule: Schedule, v: jax.Array, t: jax.Array) -> jax.Array:
    """The log-variance of step t from the variance channels v."""
    low = sch.lookup(schedule.posterior_log_variance_clipped, t, v.ndim)
    high = sch.lookup(np.log(schedule.betas), t, v.ndim)
    return interpolated_log_variance(v, low, high)


def interpolated_log_variance(v: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """f log beta + (1 - f) log posterior variance, f = (v + 1) / 2, not clipped."""
    fraction = (v + 1.0) / 2.0
    return fraction * high + (1.0 - fraction) * low


def min_snr_weights(schedule: Schedule, prediction: str, gamma: float = 5.0) -> np.ndarray:
    """(num_steps,) weights of the squared error of `prediction`: min(SNR, gamma) of that of x0.

    An error of eps is SNR times one of x0, an error of v SNR + 1 times, hence the denominators 1,
    SNR and SNR + 1 for x0, eps and v (Hang et al. 2023, arXiv:2303.09556, section 3.4).

    Raises:
        UserError: gamma is not positive, or there is no such prediction.
    """
    if gamma <= 0:
        raise UserError(f'diffusion.min_snr: gamma is {gamma}, must be above 0')
    snr = schedule.snr
    divisors = {'x0': np.ones_like(snr), 'eps': snr, 'v': snr + 1.0}
    if prediction not in divisors:
        raise UserError(
            f'diffusion.prediction: {prediction!r} is not one of {", ".join(sch.PREDICTIONS)}'
        )
    return np.minimum(snr, gamma) / divisors[prediction]


def mse(
    schedule: Schedule,
    prediction: str,
    output: jax.Array,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    weight: jax.Array | None = None,
) -> jax.Array:
    """(b,) mean squared error between the target of `prediction` and the output.

    `weight`, broadcast against the output, multiplies the squared errors before the mean.
    """
    squared = jnp.square(sch.target(schedule, prediction, x0, t, noise) - output)
    return _per_sample(squared if weight is None else weight * squared)


def variational_bound(
    schedule: Schedule,
    prediction: str,
    output: jax.Array,
    v: jax.Array,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """(b,) bits per dimension of step t: a KL divergence, at t = 0 a likelihood.

    Trains the variance only: no gradient reaches `output`.
    """
    predicted_x0 = sch.predict_x0(schedule, prediction, x_t, t, jax.lax.stop_gradient(output))
    mean, _ = sch.q_posterior(schedule, predicted_x0, x_t, t)
    log_variance = learned_log_variance(schedule, v, t)
    true_mean, true_log_variance = sch.q_posterior(schedule, x0, x_t, t)
    kl = _per_sample(_normal_kl(true_mean, true_log_variance, mean, log_variance))
    nll = -_per_sample(_discretised_log_likelihood(x0, mean, 0.5 * log_variance))
    return jnp.where(t == 0, nll, kl) / jnp.log(2.0)


def denoising_loss(
    schedule: Schedule,
    prediction: str,
    output: jax.Array,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    min_snr: float = 0.0,
    weight: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """`mse`, with variance channels also `vb`, and `loss` = w_t mse + vb, each (b,).

    w_t is 1 (published), or with min_snr = gamma > 0 that of `min_snr_weights`. `mse` is reported
    without w_t and `weight`. The bound is not weighted, and not scaled by the number of steps, as
    in the published training.

    Args:
        output: the network's, (b, ..., c) or with variance channels (b, ..., 2 c).
        x0, x_t, noise: (b, ..., c), x_t = q_sample(x0, t, noise).
        t: (b,) steps.
        weight: of each squared error, broadcast against x0; None for no weights.
    """
    mean, v = split_variance(output, x0.shape[-1])
    terms = {'mse': mse(schedule, prediction, mean, x0, t, noise)}
    weighted = terms['mse']
    if weight is not None:
        weighted = mse(schedule, prediction, mean, x0, t, noise, weight)
    if min_snr:
        weighted = sch.lookup(min_snr_weights(schedule, prediction, min_snr), t, 1) * weighted
    if v is None:
        return {**terms, 'loss': weighted}
    terms['vb'] = variational_bound(schedule, prediction, mean, v, x0, x_t, t)
    return {**terms, 'loss': weighted + terms['vb']}


def _per_sample(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


def _normal_kl(
    mean1: jax.Array, log_var1: jax.Array, mean2: jax.Array, log_var2: jax.Array
) -> jax.Array:
    """KL(N1 || N2) in nats, elementwise."""
    return 0.5 * (
        -1.0
        + log_var2
        - log_var1
        + jnp.exp(log_var1 - log_var2)
        + jnp.square(mean1 - mean2) * jnp.exp(-log_var2)
    )


def _discretised_log_likelihood(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Log-probability of the 8-bit bin around x; the image convention, as published for latents.

    Bins of width 2/255 on [-1, 1]; the outermost reach to infinity. The normal distribution
    function is the published tanh approximation.
    """
    inverse = jnp.exp(-log_scale)
    above = _approximate_cdf(inverse * (x - mean + 1.0 / 255.0))
    below = _approximate_cdf(inverse * (x - mean - 1.0 / 255.0))
    tiny = 1e-12
    middle = jnp.log(jnp.maximum(above - below, tiny))
    upper = jnp.log(jnp.maximum(1.0 - below, tiny))
    lower = jnp.log(jnp.maximum(above, tiny))
    return jnp.where(x < -0.999, lower, jnp.where(x > 0.999, upper, middle))


def _approximate_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.tanh(jnp.sqrt(2.0 / jnp.pi) * (x + 0.044715 * x**3)))
