"""The gradient of the weights in blocks: the same numbers, and used where it is meant."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.models import weight_gradient
from fluidjax.models.conv import arranged, conv3d, direct_conv3d, sum_of_taps, target_backend
from fluidjax.models.weight_gradient import MOST_BLOCKS, PLANES, gradient_by_blocks
from fluidjax.training.state import run_once

SAME = ((1, 1),) * 3


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    'shape,kernel,padding',
    [
        ((1, PLANES + 3, 5, 6, 2), (3, 3, 3, 2, 3), SAME),  # a whole block and a part
        ((2, 9, 4, 7, 3), (3, 3, 3, 3, 1), SAME),  # a block with planes of both volumes
        ((1, 5, 6, 7, 1), (2, 2, 2, 1, 4), ((1, 0), (0, 1), (1, 0))),  # of an upsampled one
        ((1, 6, 4, 5, 2), (3, 2, 1, 2, 2), ((0, 2), (1, 1), (0, 0))),
        ((2, 4, 6, 5, 2), (1, 3, 3, 2, 2), ((0, 0),) * 3),
    ],
)
def test_values_and_gradients_are_those_of_the_direct_convolution(
    monkeypatch, shape, kernel, padding
):
    monkeypatch.setattr(weight_gradient, 'WORTH_BLOCKS', 0)

    def results(x, w):
        def energy(convolution):
            def value(x, w):
                out = convolution(x, w, (1, 1, 1), padding)
                return jnp.sum(jnp.sin(out)), out

            return jax.value_and_grad(value, (0, 1), has_aux=True)(x, w)

        with target_backend('cpu'):
            return energy(sum_of_taps), energy(direct_conv3d)

    made, expected = run_once(results, numbers(0, *shape), numbers(1, *kernel))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), made, expected)


def test_bfloat16_is_summed_in_float32():
    x, dy = (numbers(seed, 1, 20, 4, 4, 2).astype('bfloat16') for seed in (0, 1))

    def both(x, dy):
        x32, dy32 = x.astype('float32'), dy.astype('float32')
        _, backward = jax.vjp(
            lambda w: direct_conv3d(x32, w, (1, 1, 1), SAME), jnp.zeros((3, 3, 3, 2, 2))
        )
        return gradient_by_blocks(x, dy, 3, SAME), backward(dy32)[0]

    made, expected = run_once(both, x, dy)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_gradients_have_the_dtype_of_their_arguments():
    x = jax.ShapeDtypeStruct((1, 16, 16, 16, 2), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((3, 3, 3, 2, 2), jnp.float32)

    def energy(x, w):
        return jnp.sum(conv3d(x, w).astype('float32'))

    with target_backend('cpu'), arranged('taps'):
        grads = jax.eval_shape(jax.grad(energy, (0, 1)), x, w)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32]


def convolutions(shape, strides=(1, 1, 1), backend='cpu', chosen='taps'):
    """How many convolutions value and gradients of a 3x3x3 one have in the program."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 3, shape[-1], shape[-1]), jnp.float32)

    def energy(x, w):
        return jnp.sum(jnp.sin(conv3d(x, w, strides)))

    with target_backend(backend), arranged(chosen):
        trace = jax.make_jaxpr(jax.grad(energy, (0, 1)))
        return str(trace(x, w)).count('conv_general_dilated[')


@pytest.mark.parametrize(
    'case,count',
    [
        ({'shape': (1, 20, 24, 20, 8), 'chosen': 'auto'}, 3 + 3 + 3 * 3),
        ({'shape': (1, 20, 24, 20, 2)}, 3 + 3 + 3 * 3),
        ({'shape': (1, 20, 24, 20, 2), 'backend': 'gpu'}, 9),
        ({'shape': (1, 20, 24, 20, 2), 'backend': 'tpu'}, 9),
        ({'shape': (1, 20, 24, 20, 2), 'strides': (2, 2, 2)}, 9),
        ({'shape': (1, 20, 24, 20, 2), 'chosen': 'direct'}, 3),
        ({'shape': (1, 10, 12, 10, 64)}, 9),
    ],
    ids=['large', 'taps', 'gpu', 'tpu', 'stride', 'direct', 'small'],
)
def test_blocks_are_used_for_large_ones_on_a_cpu(case, count):
    assert convolutions(**case) == count


def test_the_number_of_blocks_is_limited():
    assert 3 * MOST_BLOCKS / 2 < convolutions((4, 100, 8, 8, 2)) - 6 <= 3 * MOST_BLOCKS
