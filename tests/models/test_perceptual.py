"""LPIPS against SqueezeNet written a second time in numpy, and the weights' way in.

The weights are random: the public ones are not downloaded. (With the lpips package itself, torch
2.13 and its own squeeze.pth, distances agreed to 1e-6 and gradients to 2e-6.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.models import perceptual

pytestmark = pytest.mark.slow

# Rows of torchvision's squeezenet1_1: number in `features`, channels in, squeeze, each expand.
FIRES = [
    (3, 64, 16, 64),
    (4, 128, 16, 64),
    (6, 128, 32, 128),
    (7, 256, 32, 128),
    (9, 256, 48, 192),
    (10, 384, 48, 192),
    (11, 384, 64, 256),
    (12, 512, 64, 256),
]
WIDTHS = (64, 128, 256, 384, 384, 512, 512)


def public_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers under the names and in the shapes of the two public files."""
    rng = np.random.default_rng(seed)
    shapes = {'0': (64, 3, 3, 3)}
    for number, channels, squeeze, expand in FIRES:
        shapes |= {
            f'{number}.squeeze': (squeeze, channels, 1, 1),
            f'{number}.expand1x1': (expand, squeeze, 1, 1),
            f'{number}.expand3x3': (expand, squeeze, 3, 3),
        }
    weights = {}
    for name, shape in shapes.items():
        spread = np.sqrt(2.0 / np.prod(shape[1:]))
        weights[f'features.{name}.weight'] = rng.normal(0, spread, shape).astype(np.float32)
        weights[f'features.{name}.bias'] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
    weights['classifier.1.weight'] = np.zeros((1000, 512, 1, 1), np.float32)
    weights['classifier.1.bias'] = np.zeros(1000, np.float32)
    for k, width in enumerate(WIDTHS):
        weights[f'lin{k}.model.1.weight'] = rng.random((1, width, 1, 1)).astype(np.float32)
    return weights


def conv(x, weights, name, stride=1, pad=0):
    """x (c, h, w); the sum over the kernel's taps, in float64."""
    kernel, bias = weights[f'features.{name}.weight'], weights[f'features.{name}.bias']
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    size = kernel.shape[-1]
    h, w = ((n - size) // stride + 1 for n in x.shape[1:])
    taps = [
        np.tensordot(
            kernel[:, :, i, j].astype(float),
            x[:, i : i + stride * h : stride, j : j + stride * w : stride][:, :h, :w],
            1,
        )
        for i in range(size)
        for j in range(size)
    ]
    return sum(taps) + bias[:, None, None]


def pool(x):
    """3x3 every 2, windows over the edge included (torch's ceil_mode)."""
    h, w = (-(-(n - 3) // 2) + 1 for n in x.shape[1:])
    return np.array(
        [
            [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(w)]
            for i in range(h)
        ]
    ).transpose(2, 0, 1)


def layers(image, weights):
    """The seven compared activations (c, h, w) of one image (h, w, 1 or 3) in [0, 1]."""
    x = np.broadcast_to(2.0 * image.transpose(2, 0, 1) - 1.0, (3, *image.shape[:2]))
    x = (x - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[
        :, None, None
    ]
    h = np.maximum(conv(x, weights, '0', stride=2), 0)
    compared = [h]
    for number, *_ in FIRES:
        h = pool(h) if number in (3, 6, 9) else h
        squeezed = np.maximum(conv(h, weights, f'{number}.squeeze'), 0)
        h = np.maximum(
            np.concatenate(
                [
                    conv(squeezed, weights, f'{number}.expand1x1'),
                    conv(squeezed, weights, f'{number}.expand3x3', pad=1),
                ]
            ),
            0,
        )
        if number not in (3, 6):
            compared.append(h)
    return compared


def numpy_lpips(x, y, weights):
    distance = 0.0
    for k, (one, other) in enumerate(zip(layers(x, weights), layers(y, weights))):
        one, other = (h / (np.sqrt((h**2).sum(0)) + 1e-10) for h in (one, other))
        linear = weights[f'lin{k}.model.1.weight'].ravel()
        distance += np.tensordot(linear, (one - other) ** 2, 1).mean()
    return distance


@pytest.fixture(scope='module')
def weights():
    return public_weights()


@pytest.fixture(scope='module')
def params(weights):
    return perceptual.lpips_params(weights)


@pytest.fixture(scope='module')
def distance_and_gradient(params):
    def distance(x_hat, x):
        distances = perceptual.LPIPS().apply({'params': params}, x, x_hat)
        return distances.sum(), distances

    compiled = {}

    def call(x, x_hat):
        if x.shape not in compiled:  # unoptimised: it runs a few times only
            compiled[x.shape] = (
                jax.jit(jax.grad(distance, has_aux=True))
                .lower(x_hat, x)
                .compile({'xla_backend_optimization_level': 0})
            )
        gradient, distances = compiled[x.shape](x_hat, x)
        return distances, gradient

    return call


@pytest.mark.parametrize('shape', [(1, 23, 34, 3), (2, 20, 20, 1)])
def test_lpips_equals_the_numpy_reference(shape, weights, distance_and_gradient):
    """Sides at which the poolings reach over the edge and at which they do not."""
    rng = np.random.default_rng(1)
    x = rng.random(shape, np.float32)
    y = np.clip(x + rng.normal(0, 0.2, shape), 0, 1).astype(np.float32)
    distances, gradient = distance_and_gradient(x, y)
    expected = [numpy_lpips(one, other, weights) for one, other in zip(x, y)]
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    assert jnp.all(jnp.isfinite(gradient)) and float(jnp.abs(gradient).max()) > 0


def test_lpips_of_equal_images_is_zero_with_finite_gradients(distance_and_gradient):
    x = np.random.default_rng(2).random((2, 20, 20, 1), np.float32)
    x[1] = 0.0  # a slice outside the brain
    distances, gradient = distance_and_gradient(x, x)
    np.testing.assert_allclose(distances, 0.0, atol=1e-10)
    assert jnp.all(jnp.isfinite(gradient))


def test_features_that_are_all_zero_have_a_finite_gradient():
    h = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(perceptual._unit_length(h), [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.grad(lambda h: jnp.sum(jnp.square(perceptual._unit_length(h))))(h)
    assert jnp.all(jnp.isfinite(gradient))


def test_slice_distance_is_the_sum_over_axes_of_the_mean_over_slices(monkeypatch, params):
    """With |mean difference| in place of LPIPS, so that the slices can be told apart."""

    class Stub:
        def apply(self, variables, x, x_hat):
            seen.append(x.shape)
            return jnp.abs(x - x_hat).mean((1, 2, 3))

    monkeypatch.setattr(perceptual, 'LPIPS', Stub)
    rng, key = np.random.default_rng(3), jax.random.key(0)
    x = rng.random((2, 20, 24, 28, 1), np.float32)
    seen = []
    # The same everywhere: every choice of slices gives the same mean, once for each axis.
    assert float(perceptual.slice_distance(params, key, x, x + 0.5)) == pytest.approx(1.5)
    assert seen == [(10, 24, 28, 1), (12, 20, 28, 1), (14, 20, 24, 1)]
    # All slices: the mean absolute difference, thrice. The slices of both volumes are the same.
    y = rng.random(x.shape, np.float32)
    full = perceptual.slice_distance(params, key, x, y, share=1.0)
    assert float(full) == pytest.approx(3 * np.abs(x - y).mean(), rel=1e-5)
    quarters = [float(perceptual.slice_distance(params, jax.random.key(k), x, y)) for k in (1, 2)]
    assert quarters[0] != quarters[1]
    assert quarters[0] == pytest.approx(float(full), rel=0.05)


def test_weights_lie_where_they_belong(weights, params):
    wanted = jax.tree.map(np.shape, perceptual.blank_params())
    assert jax.tree.map(np.shape, params) == wanted
    kernel = weights['features.9.expand3x3.weight']
    ours = params['features']['9']['expand3x3']['kernel']
    assert float(ours[0, 2, 5, 7]) == kernel[7, 5, 0, 2]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 722_496 + sum(WIDTHS)


@pytest.mark.parametrize(
    'change,says',
    [
        (lambda w: w.pop('features.0.bias'), 'missing: features.0.bias$'),
        (
            lambda w: [w.pop('lin6.model.1.weight'), w.pop('features.12.squeeze.weight')],
            'missing: features.12.squeeze.weight, lin6.model.1.weight$',
        ),
        (
            lambda w: w.update({'lin7.model.1.weight': np.ones((1, 9, 1, 1))}),
            'unknown: lin7.model.1.weight$',
        ),
        (
            lambda w: w.update({'lin1.model.1.weight': np.ones((1, 64, 1, 1))}),
            r'misshapen: lin1.model.1.weight \(is \(1, 64, 1, 1\), must be \(1, 128, 1, 1\)\)$',
        ),
        (
            lambda w: w.update({'features.0.bias': np.full(64, np.nan)}),
            'not finite: features.0.bias$',
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_in_one_line(change, says):
    weights = public_weights()
    change(weights)
    with pytest.raises(UserError, match=says) as error:
        perceptual.lpips_params(weights)
    assert '\n' not in str(error.value)


def test_slices_that_are_too_small_get_one_line(params):
    small = jax.ShapeDtypeStruct((1, 16, 20, 1), jnp.float32)
    with pytest.raises(UserError, match='16 x 20') as error:
        jax.eval_shape(perceptual.LPIPS().apply, {'params': params}, small, small)
    assert '\n' not in str(error.value)
