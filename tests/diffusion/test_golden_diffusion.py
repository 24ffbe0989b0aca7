"""Schedules, training terms and reverse steps equal the published code's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.diffusion import losses, samplers
from fluidjax.diffusion import schedule as sch


def last(x: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def assert_close(ours: jax.Array, golden: np.ndarray, tolerance: float = 1e-4) -> None:
    golden = np.moveaxis(golden, 1, -1) if golden.ndim == 5 else golden
    assert ours.shape == golden.shape
    assert np.abs(np.asarray(ours) - golden).max() <= tolerance * np.abs(golden).max()


@pytest.fixture(scope='module')
def full():
    return sch.linear_schedule(1000)


@pytest.fixture(scope='module')
def r50(full):
    return sch.respace(full, sch.evenly_spaced(1000, 50))


@pytest.mark.parametrize('name', ['full', 'r50', 'ddim50'])
def test_schedule_tables(name, full, r50, golden_dir):
    golden = np.load(golden_dir / 'diffusion_schedule.npz')
    strided = sch.respace(full, sch.strided(1000, 50))
    ours = {'full': full, 'r50': r50, 'ddim50': strided}[name]
    for table in ('betas', 'alphas_cumprod', 'alphas_cumprod_prev', 'posterior_variance',
                  'posterior_log_variance_clipped', 'posterior_mean_coef1', 'posterior_mean_coef2',
                  'timestep_map'):
        np.testing.assert_allclose(getattr(ours, table), golden[f'{name}/{table}'], rtol=1e-10)


def test_training_terms(full, golden_dir):
    golden = np.load(golden_dir / 'diffusion_train.npz')
    x0, noise, t = last(golden['x0']), last(golden['noise']), jnp.asarray(golden['t'])
    x_t = sch.q_sample(full, x0, t, noise)
    assert_close(x_t, golden['x_t'])
    mean, log_variance = sch.q_posterior(full, x0, x_t, t)
    assert_close(mean, golden['post_mean'])
    assert_close(log_variance.ravel(), golden['post_logvar'])
    terms = losses.denoising_loss(full, 'eps', last(golden['model_output']), x0, x_t, t, noise)
    for ours, theirs in (('mse', 'loss_mse'), ('vb', 'loss_vb'), ('loss', 'loss')):
        np.testing.assert_allclose(terms[ours], golden[theirs], rtol=1e-4)
    np.testing.assert_allclose(terms['loss'].mean(), golden['loss_mean'], rtol=1e-4)


@pytest.mark.parametrize('clip', [None, 1.0])
def test_reverse_step(clip, full, golden_dir):
    golden = np.load(golden_dir / 'diffusion_reverse.npz')
    x, t, noise = last(golden['x']), jnp.asarray(golden['t']), last(golden['noise'])
    output = last(golden['model_output'])
    prefix = 'clip0' if clip is None else 'clip1'

    def denoise(_x, _t):
        return output

    log_variance = losses.learned_log_variance(full, output[..., 3:], t)
    assert_close(log_variance, golden['log_variance'])
    ancestral = samplers.ddpm_step(denoise, full, x, t, noise, clip=clip)
    assert_close(ancestral, golden[f'{prefix}/ddpm_sample'])
    eta0 = samplers.ddim_step(denoise, full, x, t, noise, clip=clip)
    assert_close(eta0, golden[f'{prefix}/ddim_eta0'])
    if clip is None:
        eta = samplers.ddim_step(denoise, full, x, t, noise, eta=0.7)
        assert_close(eta, golden['clip0/ddim_eta0p7'])
        x0 = sch.predict_x0(full, 'eps', x, t, output[..., :3])
        assert_close(x0, golden['clip0/pred_xstart'])


def toy_model(x, tau):
    """The golden files' stand-in for a U-Net: smooth in x and in the model's time."""
    time = tau.astype(jnp.float32).reshape((-1, 1, 1, 1, 1)) / 1000
    eps = 0.9 * x * jnp.sqrt(time) + 0.05 * jnp.roll(x, 1, axis=1)
    return jnp.concatenate([eps, jnp.tanh(x) * (1 - time)], axis=-1)


def test_respaced_steps(r50, golden_dir):
    golden = np.load(golden_dir / 'diffusion_respaced_and_loop.npz')
    x, t, noise = last(golden['x']), jnp.asarray(golden['t']), last(golden['noise'])
    np.testing.assert_array_equal(r50.timestep_map[golden['t']], golden['model_t_seen'])
    assert_close(samplers.ddpm_step(toy_model, r50, x, t, noise), golden['ddpm_sample'])
    assert_close(samplers.ddim_step(toy_model, r50, x, t, noise), golden['ddim_eta0'])


@pytest.mark.parametrize('name,start', [('known_full_T6', 6), ('known_r50_T5', 5)])
def test_inference_loop(name, start, full, r50, golden_dir):
    golden = np.load(golden_dir / 'diffusion_respaced_and_loop.npz')
    schedule = full if 'full' in name else r50
    noises = np.moveaxis(golden[f'{name}/noises'], 1, -1)[:, None]
    x = last(golden[f'{name}/x_start'])
    np.testing.assert_array_equal(schedule.timestep_map[:start][::-1], golden[f'{name}/model_ts'])
    x = sch.q_sample(schedule, x, jnp.array([start - 1]), noises[0])
    for step, noise in zip(reversed(range(start)), noises[1:]):
        x = samplers.ddpm_step(toy_model, schedule, x, step, noise)
    assert_close(x, golden[f'{name}/out'])
