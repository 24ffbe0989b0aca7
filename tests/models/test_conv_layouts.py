"""Every rearranged convolution computes what the plain one does, values and gradients."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.models import Autoencoder, AutoencoderConfig, Discriminator, conv
from fluidjax.models.conv import (
    blocks,
    direct_conv3d,
    folds_pairs,
    interleave,
    is_block_kernel,
    nearest_x2,
    patch_conv3d,
    target_backend,
    upsampled_conv3d,
)
from fluidjax.models.folding import END, SAME, fold, pair_convolution, unfold
from fluidjax.models.layers import GroupNorm, Upsample
from fluidjax.training.state import run_once

KEY = jax.random.key(0)


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_same(one, other, *inputs, gradients=True, atol=2e-4):
    """Both functions agree, and so do their gradients by every input."""
    if not gradients:
        result, expected = run_once(lambda *inputs: (one(*inputs), other(*inputs)), *inputs)
        np.testing.assert_allclose(result, expected, atol=atol)
        return

    def both(*inputs):
        def energy(function):
            return lambda *inputs: jnp.sum(jnp.sin(function(*inputs)))

        grads = [jax.grad(energy(f), tuple(range(len(inputs))))(*inputs) for f in (one, other)]
        return one(*inputs), other(*inputs), *grads

    made, expected, grads, expected_grads = run_once(both, *inputs)
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, atol=atol)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), grads, expected_grads)


@pytest.mark.parametrize(
    'size,strides,padding',
    [
        (3, (1, 1, 1), SAME),
        (4, (2, 2, 2), SAME),
        (3, (2, 2, 2), END),
        (2, (1, 2, 1), ((0, 0),) * 3),
    ],
)
def test_matmul_of_patches(size, strides, padding):
    x, kernel = numbers(0, 2, 5, 6, 7, 2), numbers(1, size, size, size, 2, 3)
    assert_same(
        lambda x, w: patch_conv3d(x, w, strides, padding),
        lambda x, w: direct_conv3d(x, w, strides, padding),
        x,
        kernel,
        gradients=size == 2,
    )


def test_kernel_of_twice_its_stride_is_a_dense_one_over_blocks():
    x, kernel = numbers(0, 2, 4, 6, 8, 2), numbers(1, 4, 4, 4, 2, 3)
    assert is_block_kernel(x, kernel, (2, 2, 2), SAME)
    assert not is_block_kernel(x[:, 1:], kernel, (2, 2, 2), SAME)
    assert not is_block_kernel(x, kernel[1:], (2, 2, 2), SAME)
    assert_same(
        lambda x, w: direct_conv3d(*blocks(x, w, SAME), (1, 1, 1), ((0, 0),) * 3),
        lambda x, w: direct_conv3d(x, w, (2, 2, 2), SAME),
        x,
        kernel,
    )


@pytest.mark.parametrize(
    'size,strides,padding',
    [(1, (1, 1, 1), ((0, 0),) * 3), (3, (1, 1, 1), SAME), (3, (2, 2, 2), END)],
)
def test_pairs_of_planes(size, strides, padding):
    x, kernel = numbers(0, 2, 4, 6, 8, 3), numbers(1, size, size, size, 3, 2)

    def folded(x, kernel):
        out = direct_conv3d(fold(x), *pair_convolution(kernel, strides, padding))
        return out if strides[0] == 2 else unfold(out)

    assert_same(folded, lambda x, w: direct_conv3d(x, w, strides, padding), x, kernel)


def test_pairs_of_planes_know_no_other_convolution():
    with pytest.raises(ValueError, match='no folded'):
        pair_convolution(numbers(0, 3, 3, 3, 1, 1), (2, 2, 2), SAME)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_group_norm_of_pairs(dtype):
    x = (3.0 + numbers(0, 2, 4, 3, 5, 6)).astype(dtype)
    params = {'scale': numbers(1, 6), 'bias': numbers(2, 6)}
    plain = GroupNorm(3).apply({'params': params}, x)
    pairs = GroupNorm(3, folded=True).apply({'params': params}, fold(x))
    tolerance = 1e-5 if dtype == 'float32' else 0.05
    np.testing.assert_allclose(
        unfold(pairs).astype('float32'), plain.astype('float32'), atol=tolerance
    )
    exact = GroupNorm(3).apply({'params': params}, x.astype('float32'))
    np.testing.assert_allclose(plain.astype('float32'), exact, atol=tolerance)


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (1, 2, 2, 2)])
def test_doubling_on_the_coarse_grid(shape):
    x, kernel = numbers(0, *shape, 3), numbers(1, 3, 3, 3, 3, 2)
    with target_backend('gpu'):  # one convolution a phase: quick to compile
        assert_same(
            lambda x, w: interleave(*upsampled_conv3d(x, w), 1),
            lambda x, w: direct_conv3d(nearest_x2(x), w, (1, 1, 1), SAME),
            x,
            kernel,
            gradients=shape[0] == 1,
        )
    np.testing.assert_array_equal(nearest_x2(x), x.repeat(2, 1).repeat(2, 2).repeat(2, 3))


@pytest.mark.parametrize('worth', [0, 10**9])
def test_a_doubled_layer_is_the_same_either_way(monkeypatch, worth):
    monkeypatch.setattr(conv, 'WORTH_PHASES', worth)
    x = numbers(0, 1, 2, 3, 2, 3)
    params = run_once(Upsample(2).init, KEY, x)['params']
    assert jax.tree.map(jnp.shape, params['conv']) == {'kernel': (3, 3, 3, 3, 2), 'bias': (2,)}
    made, folded = (
        run_once(lambda x, f=f: Upsample(2, folded=f).apply({'params': params}, x), x)
        for f in (False, True)
    )
    expected = direct_conv3d(nearest_x2(x), params['conv']['kernel'], (1, 1, 1), SAME)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    np.testing.assert_allclose(unfold(folded), expected, atol=1e-5)


def both_backends(model, x):
    """Output and gradients of a network arranged for a TPU, and plainly."""
    params = run_once(model.init, KEY, x)['params']

    def energy(params, x):
        out = model.apply({'params': params}, x)
        out = out[0] if isinstance(out, tuple) else out
        return jnp.sum(jnp.sin(out)), out

    results = []
    for backend in ('tpu', 'gpu'):
        with target_backend(backend):
            gradient = jax.value_and_grad(energy, (0, 1), has_aux=True)
            results.append(run_once(lambda p, x: gradient(p, x), params, x))  # noqa: B023
            assert folds_pairs(8, 4) == (backend == 'tpu')
    return results


@pytest.mark.parametrize(
    'model,shape',
    [
        pytest.param(
            Autoencoder(AutoencoderConfig((4, 8), 1, 2, 2)), (4, 6, 8), marks=pytest.mark.slow
        ),
        (Discriminator(4, 1), (8, 10, 9)),
    ],
    ids=['autoencoder', 'discriminator'],
)
def test_networks_are_the_same_on_every_backend(model, shape):
    (tpu, tpu_grads), (plain, grads) = both_backends(model, numbers(3, 1, *shape, 1))
    np.testing.assert_allclose(tpu[1], plain[1], atol=2e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), tpu_grads, grads)


def convolutions_of(function, *inputs):
    """The spatial axes of every convolution in a function's program."""
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == 'conv_general_dilated':
                found.append(len(equation.params['window_strides']))
            for inner in jax.core.jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*inputs).jaxpr)
    return found


@pytest.mark.parametrize('backend', ['cpu', 'gpu', 'tpu'])
def test_the_chosen_arrangement_is_in_the_program(backend):
    """Also in what is traced again for the backward pass, and after another choice."""
    z = jax.ShapeDtypeStruct((1, 4, 4, 4, 2), jnp.float32)
    plain = AutoencoderConfig((8, 8), 1, 2, 8, remat=True)
    params = jax.eval_shape(lambda z: Autoencoder(plain).init(KEY, z, method='decode'), z)
    for name, axes in (('direct', {3}), ('taps', {2}), ('direct', {3})):
        config = dataclasses.replace(plain, convolution=name)
        model = Autoencoder(config)

        def energy(params, z, model=model):
            return jnp.sum(model.apply(params, z, method='decode'))

        with target_backend(backend):
            assert set(convolutions_of(jax.grad(energy), params, z)) == axes
        assert config == plain


def test_rematerialised_decoder_is_the_same_network_in_every_arrangement():
    z = numbers(0, 1, 2, 2, 2, 2)
    plain = AutoencoderConfig((4, 4), 1, 2, 2)
    params = run_once(lambda: Autoencoder(plain).init(KEY, z, method='decode'))
    params = jax.tree.map(lambda p: p + 0.1, params)

    def results(p, z):
        def energy(p, config):
            out = Autoencoder(config).apply(p, z, method='decode')
            return jnp.sum(jnp.sin(out)), out

        return [
            jax.grad(energy, has_aux=True)(
                p, dataclasses.replace(plain, remat=remat, convolution=convolution)
            )
            for remat, convolution in ((False, 'direct'), (True, 'taps'))
        ]

    expected, other = run_once(results, params, z)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), other, expected)
    model = Autoencoder(dataclasses.replace(plain, remat=True))
    remade = jax.eval_shape(lambda: model.init(KEY, z, method='decode'))
    assert jax.tree.map(jnp.shape, remade) == jax.tree.map(jnp.shape, params)


def test_an_unknown_arrangement_is_one_line():
    with pytest.raises(UserError, match="convolution: 'fast' is not one of auto, direct, taps"):
        AutoencoderConfig(convolution='fast')
