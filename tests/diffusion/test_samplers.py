"""Samplers against what they must do for distributions whose best denoiser is known.

For normal data the probability-flow ODE has a closed form: x_t keeps its distance from the mean in
standard deviations. The deterministic samplers are held to it, and to their order of convergence.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.diffusion import linear_schedule, losses, samplers
from fluidjax.diffusion import schedule as sch

SCHEDULE = linear_schedule(1000)
MEAN, SCALE = 1.5, 0.3  # the data: normal, so that the best prediction has a closed form


def best_denoiser(prediction, variance_channels=False, mean=MEAN, scale=SCALE):
    """E[target | x_t] for data ~ N(mean, scale^2)."""

    def denoise(x, t):
        signal, sigma = sch.signal_and_noise(SCHEDULE, t, x.ndim)
        gain = signal * scale**2 / (signal**2 * scale**2 + sigma**2)
        x0 = mean + gain * (x - signal * mean)
        eps = (x - signal * x0) / sigma
        out = {'x0': x0, 'eps': eps, 'v': signal * eps - sigma * x0}[prediction]
        return jnp.concatenate([out, jnp.zeros_like(out)], -1) if variance_channels else out

    return denoise


def noise(seed, shape=(4, 8, 8, 8, 2)):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('prediction', sch.PREDICTIONS)
def test_ddim_from_pure_noise_gives_the_data(prediction):
    denoise = best_denoiser(prediction, variance_channels=prediction == 'eps')
    out = jax.jit(lambda x: samplers.ddim(denoise, SCHEDULE, x, 1000, 50, prediction))(noise(0))
    assert abs(out.mean() - MEAN) < 0.02
    assert abs(out.std() - SCALE) < 0.03


@pytest.mark.parametrize('learned', [False, True])
def test_ddpm_gives_the_data(learned):
    denoise, key = best_denoiser('eps', learned), jax.random.key(2)
    out = jax.jit(lambda x: samplers.ddpm(denoise, SCHEDULE, x, 1000, key))(noise(1))
    assert abs(out.mean() - MEAN) < 0.03
    assert abs(out.std() - SCALE) < 0.03


def test_one_step_is_the_conditional_mean():
    x0 = MEAN + SCALE * noise(6)
    x_t = sch.q_sample(SCHEDULE, x0, jnp.full(4, 249), noise(7))
    denoise = best_denoiser('v')
    one = jax.jit(lambda x: samplers.one_step(denoise, SCHEDULE, x, 250, 'v'))(x_t)
    np.testing.assert_allclose(one, best_denoiser('x0')(x_t, jnp.full(4, 249)), atol=1e-4)
    single = jax.jit(lambda x: samplers.ddim(denoise, SCHEDULE, x, 250, 1, 'v'))(x_t)
    np.testing.assert_allclose(one, single, atol=1e-5)
    assert jnp.abs(one - x0).mean() < jnp.abs(x_t - x0).mean()


def test_scan_equals_the_steps_one_by_one():
    short, key, x = sch.respace(SCHEDULE, [0, 5, 400]), jax.random.key(8), noise(9)
    denoise = best_denoiser('eps')
    scanned = jax.jit(lambda x: samplers.ddpm(denoise, short, x, 3, key))(x)
    one_step = jax.jit(functools.partial(samplers.ddpm_step, denoise, short))
    for step, step_key in zip((2, 1, 0), jax.random.split(key, 3)):
        x = one_step(x, step, jax.random.normal(step_key, x.shape))
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

    to_output, to_v = jax.jit(jax.grad(bound, (0, 1)))(0.9 * eps, jnp.zeros_like(eps))
    assert jnp.all(to_output == 0)
    assert jnp.all(jnp.isfinite(to_v)) and jnp.any(to_v != 0)


SAMPLERS = {
    'ddpm': lambda x, start, key: samplers.ddpm(
        best_denoiser('v'), SCHEDULE, x, start, key, 'v', num_steps=6
    ),
    'ddim': lambda x, start, key: samplers.ddim(best_denoiser('v'), SCHEDULE, x, start, 6, 'v'),
    'dpmpp': lambda x, start, key: samplers.dpmpp(best_denoiser('v'), SCHEDULE, x, start, 6, 'v'),
    'one_step': lambda x, start, key: samplers.one_step(
        best_denoiser('v'), SCHEDULE, x, start, 'v'
    ),
}


def on_the_flow(start, mean, scale):
    """x_t at step start - 1 with z = x_t's distance in standard deviations, and the exact x0.

    The flow is followed to step 0, from where every sampler takes the predicted x0.
    """
    z = jnp.array([[-1.5], [0.3], [1.0]])
    ends = []
    for t in (start - 1, 0):
        signal, sigma = sch.signal_and_noise(SCHEDULE, jnp.full(3, t), 2)
        ends.append(signal * mean + jnp.sqrt(signal**2 * scale**2 + sigma**2) * z)
    exact = best_denoiser('x0', mean=mean, scale=scale)(ends[1], jnp.zeros(3, int))
    return ends[0], exact


def flow_error(sampler, count, start=1000, mean=0.0, scale=1.0):
    return float(_flow_error(sampler, count)(start, mean, scale))


@functools.cache
def _flow_error(sampler, count):
    """The compiled error of a sampler; start, mean and scale are its inputs."""

    def error(start, mean, scale):
        x_t, exact = on_the_flow(start, mean, scale)
        denoise = best_denoiser('v', mean=mean, scale=scale)
        return jnp.abs(sampler(denoise, SCHEDULE, x_t, start, count, 'v') - exact).max()

    return jax.jit(error)


@pytest.mark.parametrize('sampler,order', [(samplers.ddim, 1), (samplers.dpmpp, 2)])
def test_order_of_convergence_to_the_probability_flow(sampler, order):
    errors = [flow_error(sampler, count) for count in (20, 40, 80)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, order, atol=0.15)


@pytest.mark.parametrize('start', [250, 1000])
@pytest.mark.parametrize('mean,scale', [(1.5, 0.3), (0.5, 2.0)])
def test_ten_steps_of_dpmpp_beat_ten_of_ddim(start, mean, scale):
    dpmpp, ddim = (
        flow_error(sampler, 10, start, mean, scale) for sampler in (samplers.dpmpp, samplers.ddim)
    )
    assert dpmpp < 0.5 * ddim < 0.25


def test_dpmpp_takes_first_order_steps_where_it_must():
    steps = jnp.array([900, 500, 500, 200, 50, 0])
    weights = samplers.multistep_weights(SCHEDULE, steps)
    lam = 0.5 * np.log(SCHEDULE.alphas_cumprod / (1.0 - SCHEDULE.alphas_cumprod))
    h = np.diff(lam[np.asarray(steps)])
    # the first; a repeated one, which does not move; the one after it; and the last, to the clean
    np.testing.assert_allclose(weights, [0, 0, 0, h[3] / h[2] / 2, h[4] / h[3] / 2, 0], rtol=1e-5)


@pytest.mark.parametrize('start', [1, 37, 250])
@pytest.mark.parametrize('name', ['ddpm', 'ddim', 'dpmpp'])
def test_any_start_gives_the_data(name, start):
    """From data noised to that level; the ancestral ones with as many steps as they need."""
    count = min(start, 60)
    x_t = sch.q_sample(SCHEDULE, MEAN + SCALE * noise(20), jnp.full(4, start - 1), noise(21))
    args = {'ddpm': (jax.random.key(22), 'v'), 'ddim': (count, 'v'), 'dpmpp': (count, 'v')}[name]
    options = {'num_steps': min(start, 120)} if name == 'ddpm' else {}
    out = jax.jit(
        lambda x: getattr(samplers, name)(best_denoiser('v'), SCHEDULE, x, start, *args, **options)
    )(x_t)
    assert abs(out.mean() - MEAN) < 0.02
    assert abs(out.std() - SCALE) < 0.03


@pytest.mark.parametrize('name', SAMPLERS)
def test_seeds_and_noise_levels_in_one_call_equal_single_calls(name):
    scan, starts = MEAN + SCALE * noise(23, (2, 3, 3, 3, 2)), [1000, 250, 250]
    keys = jax.random.split(jax.random.key(24), 3)
    many = jax.jit(lambda x, keys: samplers.ensemble(SAMPLERS[name], SCHEDULE, x, starts, keys))(
        scan, keys
    )
    assert many.shape == (3, *scan.shape)
    assert jnp.abs(many[1] - many[2]).max() > 0.01
    single = jax.jit(SAMPLERS[name], static_argnums=1)
    for one, start, key in zip(many[:2], starts, keys):
        k_start, k_steps = jax.random.split(key)
        eps = jax.random.normal(k_start, scan.shape)
        x_t = sch.q_sample(SCHEDULE, scan, jnp.full(2, start - 1), eps)
        np.testing.assert_allclose(one, single(x_t, start, k_steps), atol=2e-5)


@pytest.mark.parametrize('name', ['ddim', 'dpmpp'])
def test_steps_repeat_without_harm_under_a_traced_start_that_is_too_small(name):
    x = noise(25, (2, 3, 3, 3, 2))
    sampler = getattr(samplers, name)

    def run(start, count):
        return sampler(best_denoiser('v'), SCHEDULE, x, start, count, 'v')

    repeated = jax.jit(lambda start: run(start, 9))(3)
    # dpmpp falls back to first order after a repetition, the same steps otherwise
    tolerance = {'ddim': 1e-5, 'dpmpp': 1e-2}[name]
    np.testing.assert_allclose(repeated, jax.jit(lambda: run(3, 3))(), atol=tolerance)


@pytest.mark.parametrize('start,count', [(1000, 1), (1000, 50), (997, 13), (250, 250)])
def test_visited_steps(start, count):
    evenly, steps = (
        jax.jit(lambda: sch.visited(SCHEDULE, start, count, in_log_snr))()
        for in_log_snr in (False, True)
    )
    gaps = max(count - 1, 1)
    assert evenly.tolist() == [round(i * (start - 1) / gaps) for i in range(gaps, gaps - count, -1)]
    steps = np.asarray(steps)
    assert steps[0] == start - 1 and np.all(np.diff(steps) < 0)
    assert steps[-1] == 0 or count == 1
    traced = jax.jit(lambda start: sch.visited(SCHEDULE, start, count, True))(start)
    np.testing.assert_array_equal(traced, steps)


def test_steps_even_in_log_snr_are_even_where_steps_are_fine():
    lam = (
        0.5
        * np.log(SCHEDULE.snr)[np.asarray(sch.visited(SCHEDULE, 1000, 12, even_in_log_snr=True))]
    )
    even = (lam[-1] - lam[0]) / 11
    np.testing.assert_allclose(np.diff(lam), even, rtol=0.1)


@pytest.mark.parametrize('name', ['ddpm', 'ddim'])
def test_a_step_across_others_is_the_step_of_the_respaced_process(name):
    """With a learned variance, for DDPM; `to` on the whole schedule against `respace`."""
    x = noise(26)
    step, extra = {'ddpm': (samplers.ddpm_step, (noise(27),)), 'ddim': (samplers.ddim_step, ())}[
        name
    ]
    short = sch.respace(SCHEDULE, [3, 45, 400])

    def denoise(x, t):
        return jnp.concatenate([best_denoiser('eps')(x, t), jnp.sin(x)], axis=-1)

    across = jax.jit(lambda t, to: step(denoise, SCHEDULE, x, t, *extra, to=to))
    respaced = jax.jit(lambda index: step(denoise, short, x, index, *extra))
    for index, (t, to) in enumerate([(3, -1), (45, 3), (400, 45)]):
        np.testing.assert_allclose(across(t, to), respaced(index), atol=2e-4)


@pytest.mark.parametrize(
    'call',
    [
        lambda: samplers.ddim(best_denoiser('v'), SCHEDULE, noise(0), 1001, 10, 'v'),
        lambda: samplers.ddim(best_denoiser('v'), SCHEDULE, noise(0), 100, 101, 'v'),
        lambda: samplers.one_step(best_denoiser('v'), SCHEDULE, noise(0), 0, 'v'),
        lambda: samplers.dpmpp(best_denoiser('v'), SCHEDULE, noise(0), 10, 11, 'v'),
        lambda: samplers.dpmpp(best_denoiser('v'), SCHEDULE, noise(0), 10, 0, 'v'),
        lambda: samplers.ensemble(
            SAMPLERS['ddim'], SCHEDULE, noise(0), [9, 1001], jax.random.split(jax.random.key(0))
        ),
        lambda: sch.target(SCHEDULE, 'noise', noise(0), jnp.zeros(4, int), noise(1)),
        lambda: sch.respace(SCHEDULE, [5, 5]),
        lambda: linear_schedule(10),
    ],
)
def test_mistakes_get_one_line(call):
    with pytest.raises(UserError) as error:
        call()
    assert '\n' not in str(error.value) and 'diffusion' in str(error.value)
