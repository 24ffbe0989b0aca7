"""The networks give the published code's numbers with the published code's weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_names

from fluidjax.models import Autoencoder, AutoencoderConfig, Discriminator, UNet, UNetConfig
from fluidjax.models.condition import VectorConditionEncoder
from fluidjax.models.layers import time_embedding

TOLERANCE = 1e-4  # of the largest value

UNETS = {
    'unet_uncond_32_32_64': UNetConfig(channels=(32, 32, 64), num_head_channels=64),
    'unet_concat_32_32_32_heads2_gn8': UNetConfig(
        channels=(32, 32, 32), num_head_channels=16, norm_num_groups=8, condition='concat'),
    'unet_conddiff_32_32_32_gn8': UNetConfig(
        channels=(32, 32, 32), num_head_channels=32, norm_num_groups=8, condition='vector'),
}


def last(x: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def assert_close(ours: jax.Array, golden: np.ndarray) -> None:
    golden = np.moveaxis(golden, 1, -1) if golden.ndim == 5 else golden
    assert ours.shape == golden.shape
    assert np.abs(np.asarray(ours) - golden).max() < TOLERANCE * np.abs(golden).max()


def same_tree(params: dict, model, *inputs) -> None:
    """The mapped weights are all of our parameters, in our shapes."""
    wanted = jax.eval_shape(model.init, jax.random.key(0), *inputs)['params']
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, dict(wanted))


@pytest.mark.parametrize('name', UNETS)
def test_unet(name, golden_dir):
    golden = dict(np.load(golden_dir / f'{name}.npz'))
    model = UNet(UNETS[name])
    params = torch_names.unet_params(torch_names.state_dict(golden), levels=3)
    cond = last(golden['cond']) if 'cond' in golden else None
    x, t = last(golden['x']), jnp.asarray(golden['t'])
    same_tree(params, model, x, t, cond)
    apply = jax.jit(lambda x, t, cond: model.apply({'params': params}, x, t, cond))
    assert_close(apply(x, t, cond), golden['out'])


def test_unet_non_cubic_and_time_embedding(golden_dir):
    golden = dict(np.load(golden_dir / 'unet_uncond_32_32_64.npz'))
    model = UNet(UNETS['unet_uncond_32_32_64'])
    params = torch_names.unet_params(torch_names.state_dict(golden), levels=3)
    assert_close(time_embedding(jnp.asarray(golden['t']), 32), golden['temb'])
    out = jax.jit(model.apply)({'params': params}, last(golden['x_noncubic']),
                               jnp.asarray(golden['t_noncubic']))
    assert_close(out, golden['out_noncubic'])


def test_condition_encoder_and_conddiff_at_the_published_grid(golden_dir):
    golden = dict(np.load(golden_dir / 'unet_conddiff_32_32_32_gn8.npz'))
    params = torch_names.unet_params(torch_names.state_dict(golden), levels=3)
    encode = jax.jit(VectorConditionEncoder().apply)
    cond20 = last(golden['cond20'])
    assert_close(encode({'params': params['condition']}, cond20), golden['enc_out20'])
    model = UNet(UNETS['unet_conddiff_32_32_32_gn8'])
    out = jax.jit(model.apply)({'params': params}, last(golden['x20']), jnp.asarray(golden['t20']),
                               cond20)
    assert_close(out, golden['out20'])


@pytest.fixture(scope='module')
def autoencoder(golden_dir):
    golden = dict(np.load(golden_dir / 'autoencoder_32_32_64_64.npz'))
    config = AutoencoderConfig(channels=(32, 32, 64, 64), num_res_blocks=1)
    weights = torch_names.state_dict(golden)
    params = torch_names.autoencoder_params(weights, config.channels, config.num_res_blocks)
    return golden, Autoencoder(config), params


def test_autoencoder(autoencoder):
    golden, model, params = autoencoder
    same_tree(params, model, last(golden['x']))
    apply = jax.jit(lambda x, eps: model.apply({'params': params}, x, eps))
    x, eps = last(golden['x']), last(golden['eps'])
    recon_eps, z_mu, z_log_var = apply(x, eps)
    assert_close(z_mu, golden['z_mu'])
    assert_close(jnp.exp(0.5 * z_log_var), golden['z_sigma'])
    assert_close(recon_eps, golden['recon_eps'])
    assert_close(apply(x, jnp.zeros_like(eps))[0], golden['recon'])


def test_autoencoder_non_cubic(autoencoder):
    golden, model, params = autoencoder
    recon, z_mu, z_log_var = jax.jit(model.apply)({'params': params}, last(golden['x_noncubic']))
    assert_close(z_mu, golden['z_mu_noncubic'])
    assert_close(jnp.exp(0.5 * z_log_var), golden['z_sigma_noncubic'])
    assert_close(recon, golden['recon_noncubic'])


def test_discriminator_and_its_losses(golden_dir):
    golden = dict(np.load(golden_dir / 'autoencoder_losses_discriminator_ndf8.npz'))
    params = torch_names.discriminator_params(torch_names.state_dict(golden))
    model = Discriminator(features=8)
    same_tree(params, model, last(golden['x']))
    apply = jax.jit(lambda x: model.apply({'params': params}, x))
    real, fake = apply(last(golden['x'])), apply(last(golden['recon']))
    assert_close(real, golden['train/logits_real'])
    assert_close(fake, golden['train/logits_fake'])
    weight = float(golden['disc_weight'])
    generator = weight * jnp.mean((fake - 1) ** 2)
    both = weight * 0.5 * (jnp.mean((real - 1) ** 2) + jnp.mean(fake**2))
    np.testing.assert_allclose(generator, golden['train/gen_loss_weighted'], rtol=1e-4)
    np.testing.assert_allclose(both, golden['train/disc_loss_weighted'], rtol=1e-4)
