"""The published code's numbers (golden files): networks, loss terms, schedules, sampling.

Weights come into our networks as `fluidjax convert` brings them. Errors are relative to
the largest value.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.diffusion import losses, samplers
from fluidjax.diffusion import schedule as sch
from fluidjax.fluid.grid import Grid
from fluidjax.methods import autoencoder as method
from fluidjax.methods import scans
from fluidjax.methods.augment import AugmentSettings
from fluidjax.models import Autoencoder, AutoencoderConfig, Discriminator, UNet, UNetConfig
from fluidjax.models.condition import VectorConditionEncoder
from fluidjax.models.layers import time_embedding
from fluidjax.runs.convert import PUBLISHED_LATENT_SCALE
from fluidjax.runs.published_weights import Assumed, read_networks

WHOLE = 1e-4  # networks, loss terms, loops
SINGLE = 2e-5  # schedules and single steps

UNETS = {
    'unet_uncond_32_32_64': UNetConfig(channels=(32, 32, 64), num_head_channels=64),
    'unet_concat_32_32_32_heads2_gn8': UNetConfig(
        channels=(32, 32, 32), num_head_channels=16, norm_num_groups=8, condition='concat'
    ),
    'unet_conddiff_32_32_32_gn8': UNetConfig(
        channels=(32, 32, 32), num_head_channels=32, norm_num_groups=8, condition='vector'
    ),
}


def last(x: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def assert_close(ours: jax.Array, golden: np.ndarray, tolerance: float, what: str = '') -> None:
    golden = np.moveaxis(golden, 1, -1) if golden.ndim == 5 else golden
    assert ours.shape == golden.shape, what
    error = np.abs(np.asarray(ours) - golden).max() / np.abs(golden).max()
    assert error <= tolerance, f'{what}: {error:.1e} is above {tolerance}'


@pytest.fixture(scope='module')
def load(golden_dir):
    """A function name -> its arrays."""
    return lambda name: dict(np.load(golden_dir / f'{name}.npz'))


def network(golden_dir, name: str, assumed: Assumed = Assumed()):
    """The one network in a golden file."""
    (found,) = read_networks(golden_dir / f'{name}.npz', assumed).values()
    return found


def unet(golden_dir, name: str):
    config = UNETS[name]
    found = network(
        golden_dir,
        name,
        Assumed(unet_groups=config.norm_num_groups, num_head_channels=config.num_head_channels),
    )
    assert found.model == UNet(config)  # as the weights tell it
    return found


def applied(found, *inputs):
    """The outputs of a network; its weights are an input, for constants would be folded."""
    return jax.jit(found.model.apply)({'params': found.params}, *inputs)


@pytest.mark.parametrize('name', UNETS)
def test_unet(name, golden_dir, load):
    golden, found = load(name), unet(golden_dir, name)
    cond = last(golden['cond']) if 'cond' in golden else None
    out = applied(found, last(golden['x']), jnp.asarray(golden['t']), cond)
    assert_close(out, golden['out'], WHOLE, name)


def test_unet_non_cubic_and_time_embedding(golden_dir, load):
    golden, found = load('unet_uncond_32_32_64'), unet(golden_dir, 'unet_uncond_32_32_64')
    temb = time_embedding(jnp.asarray(golden['t']), golden['temb'].shape[1])
    assert_close(temb, golden['temb'], WHOLE)
    out = applied(found, last(golden['x_noncubic']), jnp.asarray(golden['t_noncubic']))
    assert_close(out, golden['out_noncubic'], WHOLE)


@pytest.mark.slow
def test_condition_encoder_and_conddiff_at_the_published_grid(golden_dir, load):
    golden, found = (
        load('unet_conddiff_32_32_32_gn8'),
        unet(golden_dir, 'unet_conddiff_32_32_32_gn8'),
    )

    def encode(params, cond):
        return VectorConditionEncoder().apply({'params': params['condition']}, cond)

    encoded = jax.jit(encode)(found.params, last(golden['cond']))
    assert_close(encoded, golden['enc_out'], WHOLE)

    @jax.jit  # both in one program, which encodes once
    def encoded_and_applied(params, x, t, cond):
        return encode(params, cond), found.model.apply({'params': params}, x, t, cond)

    inputs = last(golden['x20']), jnp.asarray(golden['t20']), last(golden['cond20'])
    encoded, out = encoded_and_applied(found.params, *inputs)
    assert_close(encoded, golden['enc_out20'], WHOLE)
    assert_close(out, golden['out20'], WHOLE)


@pytest.mark.parametrize('suffix', ['', '_noncubic'])
def test_autoencoder(suffix, golden_dir, load):
    golden = load('autoencoder_32_32_64_64')
    found = network(golden_dir, 'autoencoder_32_32_64_64')
    assert found.model == Autoencoder(AutoencoderConfig((32, 32, 64, 64), num_res_blocks=1))
    apply = functools.partial(jax.jit(found.model.apply), {'params': found.params})
    x, no_noise = last(golden[f'x{suffix}']), jnp.zeros_like(last(golden[f'z_mu{suffix}']))
    recon, z_mu, z_log_var = apply(x, no_noise)
    assert_close(z_mu, golden[f'z_mu{suffix}'], WHOLE)
    assert_close(jnp.exp(0.5 * z_log_var), golden[f'z_sigma{suffix}'], WHOLE)
    assert_close(recon, golden[f'recon{suffix}'], WHOLE)
    if not suffix:
        assert_close(PUBLISHED_LATENT_SCALE * z_mu, golden['latent_scaled'], WHOLE)
        assert_close(apply(x, last(golden['eps']))[0], golden['recon_eps'], WHOLE)


def test_discriminator(golden_dir, load):
    golden = load('autoencoder_losses_discriminator_ndf8')
    found = network(golden_dir, 'autoencoder_losses_discriminator_ndf8')
    assert found.model == Discriminator(features=8)
    apply = functools.partial(jax.jit(found.model.apply), {'params': found.params})
    assert_close(apply(last(golden['x'])), golden['train/logits_real'], WHOLE)
    assert_close(apply(last(golden['recon'])), golden['train/logits_fake'], WHOLE)


def test_autoencoder_loss_terms(golden_dir, load, monkeypatch):
    """The method's own loss, of the reconstruction and the latent that are in the file."""
    golden = load('autoencoder_losses_discriminator_ndf8')
    found = network(golden_dir, 'autoencoder_losses_discriminator_ndf8')
    x, z_sigma = last(golden['x']), last(golden['z_sigma'])

    class Stored:
        def apply(self, *_):
            return last(golden['recon']), last(golden['z_mu']), 2.0 * jnp.log(z_sigma)

    monkeypatch.setattr(method.AutoencoderMethod, '_network', Stored())
    monkeypatch.setattr(scans, 'augment_batch', lambda key, image, brain, *_: (image, brain))
    # The stored scan is not divided by its maximum.
    monkeypatch.setattr(method, 'by_its_maximum', lambda volumes: (volumes, 1.0))
    weights = method.AutoencoderLoss(
        kl=float(golden['beta']),
        adversarial=float(golden['disc_weight']),
        discriminator_features=found.model.features,
        discriminator_layers=found.model.num_layers,
    )
    stage = method.AutoencoderMethod(
        Grid(x.shape[1:4]), AutoencoderConfig(), weights, AugmentSettings()
    )
    params = {'autoencoder': {}, 'discriminator': found.params}
    batch = {'image': x, 'brain': jnp.ones_like(x)}
    _, terms = jax.jit(stage.loss)(params, batch, jax.random.key(0))
    ours = {
        'kl': terms['kl'],
        'kl_weighted': weights.kl * terms['kl'],
        'll': -terms['mse'],
        'train/gen_loss_weighted': weights.adversarial * terms['generator'],
        'train/disc_loss_weighted': weights.adversarial * terms['discriminator'],
        'train/recon_total_without_perceptual': (
            terms['mse'] + weights.kl * terms['kl'] + weights.adversarial * terms['generator']
        ),
    }
    for name, value in ours.items():
        assert_close(value, golden[name], WHOLE, name)


@pytest.fixture(scope='module')
def full():
    return sch.linear_schedule(1000)


@pytest.fixture(scope='module')
def r50(full):
    return sch.respace(full, [round(i * 999 / 49) for i in range(50)])


@pytest.mark.parametrize('name', ['full', 'r50', 'ddim50'])
def test_schedule_tables(name, full, r50, load):
    golden = load('diffusion_schedule')
    strided = sch.respace(full, list(range(0, 1000, 20)))
    ours = {'full': full, 'r50': r50, 'ddim50': strided}[name]
    for table in (
        'betas',
        'alphas_cumprod',
        'alphas_cumprod_prev',
        'posterior_variance',
        'posterior_log_variance_clipped',
        'posterior_mean_coef1',
        'posterior_mean_coef2',
        'timestep_map',
    ):
        np.testing.assert_allclose(getattr(ours, table), golden[f'{name}/{table}'], rtol=1e-10)
    signal, sigma = sch.signal_and_noise(ours, jnp.arange(ours.num_steps), 1)
    np.testing.assert_allclose(signal, golden[f'{name}/sqrt_alphas_cumprod'], rtol=SINGLE)
    np.testing.assert_allclose(sigma, golden[f'{name}/sqrt_one_minus_alphas_cumprod'], rtol=SINGLE)


def test_training_terms(full, load):
    golden = load('diffusion_train')
    x0, noise, t = last(golden['x0']), last(golden['noise']), jnp.asarray(golden['t'])
    x_t = sch.q_sample(full, x0, t, noise)
    assert_close(x_t, golden['x_t'], SINGLE)
    mean, log_variance = sch.q_posterior(full, x0, x_t, t)
    assert_close(mean, golden['post_mean'], SINGLE)
    assert_close(log_variance.ravel(), golden['post_logvar'], SINGLE)
    terms = losses.denoising_loss(full, 'eps', last(golden['model_output']), x0, x_t, t, noise)
    for ours, theirs in (('mse', 'loss_mse'), ('vb', 'loss_vb'), ('loss', 'loss')):
        np.testing.assert_allclose(terms[ours], golden[theirs], rtol=WHOLE)
    np.testing.assert_allclose(terms['loss'].mean(), golden['loss_mean'], rtol=WHOLE)


def rounding_of_ddim(schedule, x, x0, t):
    """What the published DDIM step adds by rounding abar_{t-1} before sqrt(1 - abar_{t-1})."""
    abar = schedule.alphas_cumprod_prev
    rounded = np.sqrt(1.0 - abar.astype(np.float32))
    eps = sch.predict_eps(schedule, x, t, x0)
    return sch.lookup(rounded - np.sqrt(1.0 - abar), t, x.ndim) * eps


def test_reverse_step(full, load):
    golden = load('diffusion_reverse')
    x, t, noise = last(golden['x']), jnp.asarray(golden['t']), last(golden['noise'])
    output = last(golden['model_output'])

    def denoise(_x, _t):
        return output

    def check(ours, name, tolerance=SINGLE):
        assert_close(ours, golden[name], tolerance, name)

    mean, v = losses.split_variance(output, x.shape[-1])
    check(losses.learned_log_variance(full, v, t), 'log_variance')
    check(jnp.exp(losses.learned_log_variance(full, v, t)), 'variance')
    check(samplers.ddpm_step(denoise, full, x, t, noise), 'clip0/ddpm_sample')
    check(samplers.ddpm_step(denoise, full, x, t, jnp.zeros_like(x)), 'clip0/mean')
    x0 = sch.predict_x0(full, 'eps', x, t, mean)
    check(x0, 'clip0/pred_xstart')
    ddim = samplers.ddim_step(denoise, full, x, t)
    check(ddim + rounding_of_ddim(full, x, x0, t), 'clip0/ddim_eta0')


def toy_model(x, tau):
    """The golden files' stand-in for a U-Net: smooth in x and in the model's time."""
    time = tau.astype(jnp.float32).reshape((-1, 1, 1, 1, 1)) / 1000
    eps = 0.9 * x * jnp.sqrt(time) + 0.05 * jnp.roll(x, 1, axis=1)
    return jnp.concatenate([eps, jnp.tanh(x) * (1 - time)], axis=-1)


def test_respaced_steps(r50, load):
    golden = load('diffusion_respaced_and_loop')
    x, t, noise = last(golden['x']), jnp.asarray(golden['t']), last(golden['noise'])
    np.testing.assert_array_equal(r50.timestep_map[golden['t']], golden['model_t_seen'])
    ddpm = samplers.ddpm_step(toy_model, r50, x, t, noise)
    assert_close(ddpm, golden['ddpm_sample'], SINGLE)
    assert_close(samplers.ddim_step(toy_model, r50, x, t), golden['ddim_eta0'], SINGLE)


@pytest.mark.parametrize('name,start', [('known_full_T6', 6), ('known_r50_T5', 5)])
def test_inference_loop(name, start, full, r50, load):
    golden = load('diffusion_respaced_and_loop')
    schedule = full if 'full' in name else r50
    noises = np.moveaxis(golden[f'{name}/noises'], 1, -1)[:, None]
    x = last(golden[f'{name}/x_start'])
    np.testing.assert_array_equal(schedule.timestep_map[:start][::-1], golden[f'{name}/model_ts'])
    x = sch.q_sample(schedule, x, jnp.array([start - 1]), noises[0])
    for step, noise in zip(reversed(range(start)), noises[1:], strict=True):
        x = samplers.ddpm_step(toy_model, schedule, x, step, noise)
    assert_close(x, golden[f'{name}/out'], WHOLE)
