"""bfloat16 and rematerialisation: settings that change the cost, and the result by rounding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from fluidjax.models.conv import Conv3D
from fluidjax.models.discriminator import BatchNorm
from fluidjax.models.layers import GroupNorm, SelfAttention
from fluidjax.models.unet import UNet, UNetConfig
from fluidjax.training.state import run_once

KEY = jax.random.key(0)
CODER = AutoencoderConfig(channels=(8, 16), num_res_blocks=1, norm_num_groups=4)


def drawn(model, *inputs):
    """Random parameters; unlike those of `init` none is zero, which would hide what follows it."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == 'kernel':
            return jnp.asarray(noise / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)
        return jnp.asarray((path[-1].key == 'scale') + 0.02 * noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, KEY, *inputs))


@pytest.fixture(scope='module')
def coder():
    x = jax.random.uniform(KEY, (1, 8, 8, 8, 1))
    return drawn(Autoencoder(CODER), x), x


def loss_and_gradient(config, params, x):
    def loss(p):
        return jnp.mean((Autoencoder(config).apply(p, x)[0] - x) ** 2)

    return run_once(jax.value_and_grad(loss), params)


def relative(a, b):
    """Largest difference of two trees, by the largest value of each leaf."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(u - v).max() / jnp.maximum(jnp.abs(v).max(), 1e-8)) for u, v in pairs)


def test_rematerialised_gradients_are_the_same(coder):
    plain = loss_and_gradient(CODER, *coder)
    again = loss_and_gradient(dataclasses.replace(CODER, remat=True), *coder)
    assert relative(again, plain) < 1e-4


def test_bfloat16_changes_the_autoencoder_by_rounding_alone(coder):
    params, x = coder
    whole = run_once(Autoencoder(CODER).apply, params, x)
    half = run_once(Autoencoder(dataclasses.replace(CODER, dtype='bfloat16')).apply, params, x)
    assert all(out.dtype == jnp.float32 for out in half)
    assert 1e-5 < relative(half, whole) < 0.05  # 8 bits of mantissa, a dozen layers


@pytest.mark.parametrize('condition', [pytest.param('vector', marks=pytest.mark.slow), 'both'])
def test_bfloat16_changes_the_unet_by_rounding_alone(condition):
    config = UNetConfig(
        4, 4, (32,), 1, (True,), 32, 8, condition, condition_slices=8, condition_channels=(32,)
    )
    z, t = jax.random.normal(KEY, (1, 8, 8, 8, 4)), jnp.array([5])
    params = drawn(UNet(config), z, t, z)
    whole = run_once(UNet(config).apply, params, z, t, z)
    half = run_once(UNet(dataclasses.replace(config, dtype='bfloat16')).apply, params, z, t, z)
    assert half.dtype == jnp.float32
    assert 1e-5 < relative(half, whole) < 0.05


@pytest.mark.parametrize('layer', [GroupNorm(2), BatchNorm(), SelfAttention(2), Conv3D(4)])
def test_a_layer_computes_in_the_dtype_it_is_given_and_keeps_float32_parameters(layer):
    x = jax.random.normal(KEY, (1, 2, 2, 2, 4))
    out, params = jax.eval_shape(lambda x: layer.init_with_output(KEY, x), x.astype(jnp.bfloat16))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert out.dtype == jnp.bfloat16


def test_norms_are_computed_in_float32():
    """Far from zero, variances computed in bfloat16 would be lost."""
    x = (100.0 + jax.random.normal(KEY, (1, 6, 6, 6, 4))).astype(jnp.bfloat16)
    for norm in (GroupNorm(1), BatchNorm()):
        params = norm.init(KEY, x)
        out = norm.apply(params, x).astype(jnp.float32)
        assert float(out.std()) == pytest.approx(1.0, abs=0.02)
        assert abs(float(out.mean())) < 0.02


def test_another_dtype_is_refused():
    with pytest.raises(UserError, match="dtype: 'float16' is not one of float32, bfloat16"):
        AutoencoderConfig(dtype='float16')
