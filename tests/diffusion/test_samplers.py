"""Samplers against what they must do for distributions whose best denoiser is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.diffusion import linear_schedule, losses, samplers
from fluidjax.diffusion import schedule as sch
from fluidjax.errors import UserError

SCHEDULE = linear_schedule(1000)
MEAN, SCALE = 1.5, 0.3  # the data: normal, so that the best prediction has a closed form


def best_denoiser(prediction, variance_channels=False):
    """E[target | x_t] for data ~ N(MEAN, SCALE^2)."""

    def denoise(x, t):
        signal, sigma = sch.signal_and_noise(SCHEDULE, t, x.ndim)
        gain = signal * SCALE**2 / (signal**2 * SCALE**2 + sigma**2)
        x0 = MEAN + gain * (x - signal * MEAN)
        eps = (x - signal * x0) / sigma
        out = {'x0': x0, 'eps': eps, 'v': signal * eps - sigma * x0}[prediction]
        return jnp.concatenate([out, jnp.zeros_like(out)], -1) if variance_channels else out

    return denoise


def noise(seed, shape=(4, 8, 8, 8, 2)):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('prediction', sch.PREDICTIONS)
def test_ddim_from_pure_noise_gives_the_data(prediction):
    denoise = best_denoiser(prediction, variance_channels=prediction == 'eps')
    out = samplers.ddim(denoise, SCHEDULE, noise(0), 1000, 50, prediction)
    assert abs(out.mean() - MEAN) < 0.02
    assert abs(out.std() - SCALE) < 0.03


@pytest.mark.parametrize('learned', [False, True])
def test_ddpm_gives_the_data(learned):
    out = samplers.ddpm(best_denoiser('eps', learned), SCHEDULE, noise(1), 1000, jax.random.key(2))
    assert abs(out.mean() - MEAN) < 0.03
    assert abs(out.std() - SCALE) < 0.03


def test_ddim_with_eta_is_noisy_and_right():
    args = (best_denoiser('v'), SCHEDULE, noise(3), 1000, 100, 'v', 1.0)
    one, other = (samplers.ddim(*args, key=jax.random.key(k)) for k in (4, 5))
    assert jnp.abs(one - other).mean() > 0.1
    assert abs(one.mean() - MEAN) < 0.03
    assert abs(one.std() - SCALE) < 0.05


def test_one_step_is_the_conditional_mean():
    x0 = MEAN + SCALE * noise(6)
    x_t = sch.q_sample(SCHEDULE, x0, jnp.full(4, 249), noise(7))
    one = samplers.one_step(best_denoiser('v'), SCHEDULE, x_t, 250, 'v')
    np.testing.assert_allclose(one, best_denoiser('x0')(x_t, jnp.full(4, 249)), atol=1e-4)
    single = samplers.ddim(best_denoiser('v'), SCHEDULE, x_t, 250, 1, 'v')
    np.testing.assert_allclose(one, single, atol=1e-5)
    assert jnp.abs(one - x0).mean() < jnp.abs(x_t - x0).mean()


def test_scan_equals_the_steps_one_by_one():
    short, key, x = sch.respace(SCHEDULE, [0, 5, 400]), jax.random.key(8), noise(9)
    denoise = best_denoiser('eps')
    scanned = samplers.ddpm(denoise, short, x, 3, key)
    for step, step_key in zip((2, 1, 0), jax.random.split(key, 3)):
        drawn = jax.random.normal(step_key, x.shape)
        x = samplers.ddpm_step(denoise, short, x, step, drawn)
    np.testing.assert_allclose(scanned, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('prediction', sch.PREDICTIONS)
def test_targets_lead_back_to_x0_and_eps(prediction):
    x0, eps, t = noise(10), noise(11), jnp.array([0, 10, 500, 900])
    x_t = sch.q_sample(SCHEDULE, x0, t, eps)
    output = sch.target(SCHEDULE, prediction, x0, t, eps)
    found = sch.predict_x0(SCHEDULE, prediction, x_t, t, output)
    np.testing.assert_allclose(found, x0, atol=2e-4)
    np.testing.assert_allclose(sch.predict_eps(SCHEDULE, x_t, t, x0), eps, atol=2e-4)
    assert losses.mse(SCHEDULE, prediction, output, x0, t, eps).tolist() == [0.0] * 4


def test_the_bound_trains_the_variance_only():
    x0, eps, t = noise(12), noise(13), jnp.array([0, 10, 500, 900])
    x_t = sch.q_sample(SCHEDULE, x0, t, eps)

    def bound(output, v):
        return losses.variational_bound(SCHEDULE, 'eps', output, v, x0, x_t, t).sum()

    to_output, to_v = jax.grad(bound, (0, 1))(0.9 * eps, jnp.zeros_like(eps))
    assert jnp.all(to_output == 0)
    assert jnp.all(jnp.isfinite(to_v)) and jnp.any(to_v != 0)


@pytest.mark.parametrize('call', [
    lambda: samplers.ddim(best_denoiser('v'), SCHEDULE, noise(0), 1001, 10, 'v'),
    lambda: samplers.ddim(best_denoiser('v'), SCHEDULE, noise(0), 100, 101, 'v'),
    lambda: samplers.one_step(best_denoiser('v'), SCHEDULE, noise(0), 0, 'v'),
    lambda: sch.target(SCHEDULE, 'noise', noise(0), jnp.zeros(4, int), noise(1)),
    lambda: sch.respace(SCHEDULE, [5, 5]),
    lambda: linear_schedule(10),
])
def test_mistakes_get_one_line(call):
    with pytest.raises(UserError) as error:
        call()
    assert '\n' not in str(error.value) and 'diffusion' in str(error.value)
