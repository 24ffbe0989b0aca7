"""Parameter counts, shapes, the two convolutions, the linear start, and what a mistake says."""

from __future__ import annotations

import functools
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.models import (
    Autoencoder,
    AutoencoderConfig,
    Discriminator,
    UNet,
    UNetConfig,
    principal_components,
    with_linear_start,
)
from fluidjax.models.conv import conv3d, direct_conv3d, sum_of_taps, target_backend
from fluidjax.models.layers import ResBlock, depth_to_space, space_to_depth
from fluidjax.training.state import run_once

KEY = jax.random.key(0)


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def shapes_of_params(model, *inputs):
    return jax.eval_shape(model.init, KEY, *inputs)['params']


LATENT = spec(1, 20, 20, 20, 3)


@pytest.mark.parametrize(
    'model,inputs,expected',
    [
        (Autoencoder(), (spec(1, 32, 32, 32, 1),), 13_766_248),
        (Discriminator(), (spec(1, 32, 32, 32, 1),), 24_830_689),
        (UNet(), (LATENT, spec(1)), 46_640_134),
        (UNet(UNetConfig(condition='concat')), (LATENT, spec(1), LATENT), 46_650_502),
        (UNet(UNetConfig(condition='vector')), (LATENT, spec(1), LATENT), 54_923_910),
    ],
    ids=['autoencoder', 'discriminator', 'ldm', 'cldm', 'conddiff'],
)
def test_published_parameter_counts(model, inputs, expected):
    params = shapes_of_params(model, *inputs)
    assert count(params) == expected
    if 'condition' in params:
        assert count(params['condition']) == 805_376
    if 'quant_mu' in params:
        assert (count(params['encoder']), count(params['decoder'])) == (6_551_235, 7_214_977)


@pytest.mark.parametrize(
    'kernel,strides,padding',
    [
        ((3, 3, 3), (1, 1, 1), ((1, 1),) * 3),
        ((3, 3, 3), (2, 2, 2), ((0, 1),) * 3),
        ((4, 4, 4), (2, 2, 2), ((1, 1),) * 3),
        ((3, 3, 3), (1, 2, 2), ((1, 1),) * 3),
        ((1, 1, 1), (1, 1, 1), ((0, 0),) * 3),
        ((1, 1, 1), (2, 2, 2), ((0, 0),) * 3),
    ],
)
def test_both_convolutions_and_their_gradients_agree(kernel, strides, padding):
    x = jax.random.normal(KEY, (2, 6, 7, 8, 3))
    w = jax.random.normal(jax.random.key(1), (*kernel, 3, 5))

    def results(convolution):
        def energy(x, w):
            out = convolution(x, w, strides, padding)
            return jnp.sum(jnp.sin(out)), out

        return run_once(jax.value_and_grad(energy, (0, 1), has_aux=True), x, w)

    (direct, grads), (taps, tap_grads) = results(direct_conv3d), results(sum_of_taps)
    np.testing.assert_allclose(direct[1], taps[1], atol=1e-4)
    for one, other in zip(grads, tap_grads):
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    'backend,size,channels,convolutions',
    [('cpu', (8, 8, 8), 32, 3), ('cpu', (4, 4, 4), 8, 1), ('gpu', (8, 8, 8), 32, 1)],
)
def test_the_convolution_is_arranged_for_the_backend(backend, size, channels, convolutions):
    with target_backend(backend):
        trace = jax.make_jaxpr(lambda x, w: conv3d(x, w))  # new, because traces are cached
        shapes = jnp.ones((1, *size, channels)), jnp.ones((3, 3, 3, channels, channels))
        text = str(trace(*shapes))
    assert text.count('conv_general_dilated[') == convolutions


def test_parameters_drawn_without_optimisation_are_those_of_init():
    model, x = ResBlock(4, num_groups=2), jnp.ones((1, 3, 3, 3, 2))
    quick, usual = run_once(model.init, KEY, x)['params'], model.init(KEY, x)['params']
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), quick, dict(usual))
    assert jnp.any(quick['conv1']['kernel'] != 0)


def test_space_to_depth_is_undone_and_keeps_a_patch_together():
    x = jnp.arange(2 * 4 * 6 * 8 * 2, dtype=jnp.float32).reshape((2, 4, 6, 8, 2))
    deep = space_to_depth(x, 2)
    assert deep.shape == (2, 2, 3, 4, 16)
    np.testing.assert_array_equal(deep[1, 0, 2, 1], x[1, 0:2, 4:6, 2:4].ravel())
    np.testing.assert_array_equal(depth_to_space(deep, 2), x)


def test_linear_start_is_the_projection_on_the_components():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(3, 16, 5)) * [5.0, 4.0, 3.0, 0.2, 0.1]
    config = AutoencoderConfig((4, 8), 1, 3, 4, patch=2, linear_path=True)
    patches = 0.5 + codes @ rng.normal(size=(5, config.factor**3))
    volumes = np.asarray(
        depth_to_space(jnp.asarray(patches).reshape((3, 4, 2, 2, -1)), config.factor)
    )
    basis = principal_components(volumes, config.factor, 3)
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(3), atol=1e-10)
    assert np.all(np.diff(basis.variance) < 0)
    model = Autoencoder(config)
    x = jnp.asarray(volumes, jnp.float32)
    # Kernels by NumPy: JAX's random generators take long to compile.
    by_numpy = lambda: lambda _, shape: jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32)
    with mock.patch.object(nn.initializers, 'lecun_normal', by_numpy):
        initial = run_once(lambda key, x: model.init(key, x), KEY, x[:1])['params']
    params = with_linear_start(initial, basis)

    def loss(params):
        recon, z_mu, z_log_var = model.apply({'params': params}, x)
        return jnp.mean((recon - x) ** 2), (recon, z_mu, z_log_var)

    grads, (recon, z_mu, z_log_var) = jax.jit(jax.grad(loss, has_aux=True))(params)
    flat = patches.reshape((-1, config.factor**3))
    expected = (flat - flat.mean(0)) @ basis.components.T
    np.testing.assert_allclose(z_mu.reshape((-1, 3)), expected, atol=1e-3)
    np.testing.assert_allclose(expected.var(0), basis.variance, rtol=1e-6)
    projected = flat.mean(0) + expected @ basis.components
    recon_patches = space_to_depth(recon, config.factor).reshape(flat.shape)
    np.testing.assert_allclose(recon_patches, projected, atol=1e-3)
    assert np.abs(projected - flat).max() > 1e-2  # three components of five: not the identity
    assert float(z_log_var.max()) < -4.0
    assert jnp.any(grads['decoder']['conv_out']['kernel'] != 0)
    assert jnp.any(grads['encoder']['conv_out']['kernel'] != 0)


def test_components_follow_the_weights():
    rng = np.random.default_rng(1)
    volumes = rng.normal(size=(2, 4, 4, 4, 1))
    mask = np.zeros((4, 4, 4))
    mask[:2] = 1.0
    inside = principal_components(volumes[:, :2], 2, 4)
    weighted = principal_components(volumes, 2, 4, weights=mask)
    np.testing.assert_allclose(weighted.variance, inside.variance)
    np.testing.assert_allclose(
        np.abs(weighted.components @ inside.components.T), np.eye(4), atol=1e-6
    )
    assert np.all(principal_components(volumes, 2, 4, center=False).mean == 0)


@pytest.fixture(scope='module')
def spatial_unet():
    config = UNetConfig(
        4,
        4,
        (8, 16),
        1,
        (False, True),
        8,
        4,
        'spatial',
        condition_channels=(4, 8),
        position_shape=(4, 6, 4),
    )
    model = UNet(config)
    x = jax.random.normal(KEY, (2, 4, 6, 4, 4))
    # Drawn, not initialised: from its zero start the network would say nothing.
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32),
        shapes_of_params(model, x, jnp.zeros(2), x),
    )
    return functools.partial(jax.jit(model.apply), {'params': params}), x, params


def test_spatial_condition_acts_where_it_is():
    """In a residual block the map of scale and shift reaches one voxel further, and no more."""
    x, cond = jnp.ones((1, 6, 6, 6, 4)), jnp.ones((1, 6, 6, 6, 4))
    block = ResBlock(4, num_groups=2, scale_shift=True)
    params = run_once(block.init, KEY, x, jnp.ones((1, 8)), cond)['params']
    x = jax.random.normal(KEY, x.shape)
    apply = jax.jit(lambda cond: block.apply({'params': params}, x, jnp.ones((1, 8)), cond))
    changed = jnp.abs(apply(cond.at[0, 1, 3, 4].add(1.0)) - apply(cond)).max((0, -1)) > 0
    reached = np.zeros((6, 6, 6), bool)
    reached[0:3, 2:5, 3:6] = True
    np.testing.assert_array_equal(changed, reached)


def test_spatial_unet_hears_condition_and_time(spatial_unet):
    apply, x, _ = spatial_unet
    t, cond = jnp.array([3.0, 700.0]), jax.random.normal(jax.random.key(3), x.shape)
    out = apply(x, t, cond)
    assert out.shape == x.shape
    assert jnp.abs(apply(x, t, cond[:, ::-1]) - out).max() > 1e-3
    assert jnp.abs(apply(x, t + 100, cond) - out).max() > 1e-3


def test_spatial_parameters(spatial_unet):
    _, _, params = spatial_unet
    assert params['condition']['position'].shape == (4, 6, 4, 4)
    assert params['down_1_res_0']['cond_proj']['kernel'].shape == (8, 32)


@pytest.mark.parametrize('levels', [1, 2])
@pytest.mark.parametrize('condition', ['none', 'concat', 'vector', 'spatial'])
def test_unet_works_at_one_and_two_levels(levels, condition):
    config = UNetConfig(
        16,
        16,
        (48, 96)[:levels],
        1,
        (False, True)[2 - levels :],
        48,
        8,
        condition,
        condition_slices=10,
    )
    latent, t = spec(1, 10, 12, 10, 16), spec(1)
    cond = None if condition == 'none' else latent
    out, variables = jax.eval_shape(UNet(config).init_with_output, KEY, latent, t, cond)
    assert out.shape == (1, 10, 12, 10, 16)
    assert ('condition' in variables['params']) == (condition in ('vector', 'spatial'))


def apply_unet(shape, cond_shape=None, **settings):
    config = UNetConfig(
        **{
            'channels': (8, 16),
            'attention_levels': (False, True),
            'norm_num_groups': 4,
            'num_head_channels': 8,
            **settings,
        }
    )
    cond = None if cond_shape is None else spec(*cond_shape)
    return shapes_of_params(UNet(config), spec(*shape), spec(1), cond)


@pytest.mark.parametrize(
    'mistake,says',
    [
        (lambda: apply_unet((1, 5, 4, 4, 3)), 'multiples of 2'),
        (lambda: apply_unet((1, 4, 4, 4, 5)), 'unet.in_channels'),
        (lambda: apply_unet((1, 4, 4, 4, 3), condition='spatial'), 'missing'),
        (lambda: apply_unet((1, 4, 4, 4, 3), (1, 4, 4, 6, 3), condition='concat'), 'differs'),
        (
            lambda: apply_unet((1, 4, 4, 4, 3), (1, 4, 4, 4, 3), condition='vector'),
            'condition_slices',
        ),
        (
            lambda: apply_unet(
                (1, 4, 4, 4, 3), (1, 4, 4, 4, 3), condition='spatial', position_shape=(4, 4, 6)
            ),
            'position_shape',
        ),
        (lambda: UNetConfig(condition='text'), 'unet.condition'),
        (lambda: UNetConfig(channels=(48, 96), attention_levels=(False, True)), 'norm_num_groups'),
        (lambda: UNetConfig(channels=(64, 64)), 'attention_levels'),
        (lambda: apply_unet((1, 4, 4, 4, 3), num_head_channels=5), 'num_head_channels'),
        (lambda: AutoencoderConfig(channels=(48,)), 'norm_num_groups'),
        (lambda: shapes_of_params(Autoencoder(), spec(1, 20, 16, 16, 1)), 'multiples of 8'),
        (lambda: shapes_of_params(Discriminator(), spec(1, 16, 32, 32, 1)), 'discriminator'),
        (lambda: with_linear_start({}, None), 'linear_path'),
        (lambda: principal_components(np.ones((1, 4, 4, 5, 1)), 2, 3), 'multiples'),
        (lambda: principal_components(np.ones((1, 4, 4, 4, 1)), 2, 9), 'latent_channels'),
        (lambda: principal_components(np.ones((1, 4, 4, 4, 1)), 2, 3, np.zeros((4, 4, 4))), 'mask'),
    ],
)
def test_mistakes_get_one_line(mistake, says):
    with pytest.raises(UserError, match=says) as error:
        mistake()
    assert '\n' not in str(error.value)
