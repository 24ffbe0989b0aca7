"""Linear interpolation gives what JAX's own gives, at and beyond the faces of a volume."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.interpolation import linear

THEIRS = {'zero': 'constant', 'nearest': 'nearest', 'wrap': 'wrap'}
read = jax.jit(linear, static_argnums=2)


def _places(shape: tuple[int, ...], count: int = 400) -> list[jax.Array]:
    random = np.random.default_rng(0)
    return [jnp.asarray(random.uniform(-2.5, n + 1.5, count), jnp.float32) for n in shape]


@pytest.mark.parametrize('beyond', THEIRS)
@pytest.mark.parametrize('shape', [(5, 6), (4, 5, 6)])
def test_values_are_those_of_jax(shape, beyond):
    volume = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    at = _places(shape)
    expected = jax.scipy.ndimage.map_coordinates(volume, at, order=1, mode=THEIRS[beyond])
    np.testing.assert_allclose(read(volume, at, beyond), expected, atol=1e-5)


@pytest.mark.parametrize('beyond', THEIRS)
def test_voxels_are_kept_exactly(beyond):
    volume = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5, 6)), jnp.float32)
    at = jnp.meshgrid(*map(jnp.arange, volume.shape), indexing='ij')
    values = read(volume, [a.astype(jnp.float32) for a in at], beyond)
    np.testing.assert_array_equal(values, volume)


@pytest.mark.parametrize(('beyond', 'expected'), [('zero', 0.0), ('nearest', 3.0)])
def test_places_far_away_are_no_voxels(beyond, expected):
    far = [jnp.asarray([1e20, -1e20, jnp.inf])] * 2
    np.testing.assert_array_equal(read(jnp.full((3, 4), 3.0), far, beyond), [expected] * 3)


def test_several_volumes_at_the_same_places():
    volumes = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 5, 6)), jnp.float32)
    at = _places((4, 5, 6))
    both = jax.vmap(lambda volume: linear(volume, at, 'zero'))(volumes)
    for volume, values in zip(volumes, both, strict=True):
        np.testing.assert_allclose(values, read(volume, at, 'zero'), atol=1e-6)
