"""Training losses of the denoiser, one number per sample.

The learned variance interpolates, in the log domain, between beta_t and the posterior variance and
is trained by the variational bound alone (Nichol and Dhariwal 2021, eq. 15-16).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.diffusion import schedule as sch
from fluidjax.diffusion.schedule import Schedule


def split_variance(output: jax.Array, channels: int) -> tuple[jax.Array, jax.Array | None]:
    """The prediction and, where the output has twice the channels, the variance channels."""
    if output.shape[-1] == channels:
        return output, None
    return output[..., :channels], output[..., channels:]


def learned_log_variance(schedule: Schedule, v: jax.Array, t: jax.Array) -> jax.Array:
    """log var = f log beta_t + (1 - f) log posterior variance, f = (v + 1) / 2, not clipped."""
    low = sch.lookup(schedule.posterior_log_variance_clipped, t, v.ndim)
    high = sch.lookup(np.log(schedule.betas), t, v.ndim)
    fraction = (v + 1.0) / 2.0
    return fraction * high + (1.0 - fraction) * low


def mse(
    schedule: Schedule, prediction: str, output: jax.Array, x0: jax.Array, t: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """(b,) mean squared error between the target of `prediction` and the output."""
    return _per_sample(jnp.square(sch.target(schedule, prediction, x0, t, noise) - output))


def variational_bound(
    schedule: Schedule, prediction: str, output: jax.Array, v: jax.Array, x0: jax.Array,
    x_t: jax.Array, t: jax.Array,
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
    schedule: Schedule, prediction: str, output: jax.Array, x0: jax.Array, x_t: jax.Array,
    t: jax.Array, noise: jax.Array,
) -> dict[str, jax.Array]:
    """`mse`, with variance channels also `vb`, and their sum `loss`, each (b,).

    The bound is not scaled by the number of steps, as in the published training.
    """
    mean, v = split_variance(output, x0.shape[-1])
    terms = {'mse': mse(schedule, prediction, mean, x0, t, noise)}
    if v is not None:
        terms['vb'] = variational_bound(schedule, prediction, mean, v, x0, x_t, t)
    return {**terms, 'loss': sum(terms.values())}


def _per_sample(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


def _normal_kl(mean1: jax.Array, log_var1: jax.Array, mean2: jax.Array, log_var2: jax.Array
               ) -> jax.Array:
    """KL(N1 || N2) in nats, elementwise."""
    return 0.5 * (-1.0 + log_var2 - log_var1 + jnp.exp(log_var1 - log_var2)
                  + jnp.square(mean1 - mean2) * jnp.exp(-log_var2))


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
