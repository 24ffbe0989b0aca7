"""Perlin noise: its gradients, its values, its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import quick_jit, split
from scipy import stats

from fluidjax.fluid import Grid
from fluidjax.fluid.noise import (
    perlin_from_gradients,
    perlin_noise,
    sphere_gradients,
    tile_gradients,
    voxel_fractions,
)


def _on(*shape):
    return voxel_fractions(Grid(shape))


def _noises(seed, *calls):
    """Noise of one key for each call (positions, periods, options), all in one program."""
    draw = lambda key: [
        perlin_noise(key, tuple(at), periods, **options) for at, periods, options in calls
    ]
    return [np.asarray(noise) for noise in quick_jit(draw)(jax.random.key(seed))]


@pytest.mark.parametrize('periods', [(11, 12, 13), (40, 40)], ids=['sphere', 'circle'])
def test_gradients_are_uniform_on_the_sphere(periods):
    vectors = quick_jit(lambda key: sphere_gradients(key, periods))(jax.random.key(0))
    vectors = np.asarray(vectors).reshape(-1, len(periods))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    # Archimedes: on the sphere each coordinate is uniform on [-1, 1].
    marks = vectors.T if len(periods) == 3 else [np.arctan2(*vectors.T) / np.pi]
    for mark in marks:
        assert stats.kstest(mark, 'uniform', args=(-1, 2)).pvalue > 0.01


def test_tiling_makes_the_last_plane_the_first():
    gradients = np.random.default_rng(0).normal(size=(3, 4, 3, 3)).astype(np.float32)
    tiled = tile_gradients(jnp.asarray(gradients), (1,))
    np.testing.assert_array_equal(tiled[:, -1], gradients[:, 0])
    np.testing.assert_array_equal(tiled[:, :-1], gradients[:, :-1])


@pytest.mark.parametrize(('shape', 'periods'), [((16, 24, 32), (2, 3, 4)), ((32, 40), (4, 5))])
def test_noise_vanishes_at_lattice_points_and_nowhere_else(shape, periods):
    (noise,) = _noises(1, (_on(*shape), periods, {}))
    np.testing.assert_allclose(noise[(np.s_[::8],) * len(shape)], 0.0, atol=1e-6)
    assert 0.3 < np.abs(noise).max() < 0.8
    assert np.mean(np.abs(noise) < 1e-6) < 0.02


@pytest.mark.parametrize('options', [{'octaves': 2}, {'tiled': True}], ids=str)
def test_a_finer_grid_samples_the_same_pattern(options):
    coarse, fine = _noises(
        2, (_on(11, 13, 9), (2, 3, 2), options), (_on(22, 26, 18), (2, 3, 2), options)
    )
    np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, atol=1e-6)


def test_one_cell_of_a_constant_gradient_is_the_linear_function_blended():
    gradients = jnp.zeros((2, 2, 2, 3)).at[..., 0].set(1.0)
    noise = perlin_from_gradients(gradients, (10, 4, 4), (1, 1, 1))
    u = np.arange(10) / 10
    fade = u**3 * (6 * u**2 - 15 * u + 10)
    np.testing.assert_allclose(noise[:, 2, 3], u - fade, atol=1e-6)


def test_an_octave_is_half_as_large_a_pattern_of_its_own_faded_by_the_persistence():
    one, two, faint = _noises(
        3,
        *(
            (_on(20, 16), (2, 3), {'octaves': octaves, 'persistence': persistence})
            for octaves, persistence in ((1, 1.0), (2, 1.0), (2, 0.25))
        ),
    )
    own = two - one
    np.testing.assert_allclose(faint, one + 0.25 * own, atol=1e-6)
    np.testing.assert_allclose(own[::5, 0], 0.0, atol=1e-6)  # zero at the points of its lattice
    assert np.abs(own).max() > 0.2 and np.abs(np.corrcoef(own.ravel(), one.ravel())[0, 1]) < 0.3


@pytest.mark.parametrize('axis', [0, 1])
def test_the_derivative_is_the_limit_of_differences(axis):
    at = np.stack([np.arange(12) / 12 + 0.01, np.arange(12) / 12 + 0.02])
    step = 1e-3 * np.eye(2)[axis][:, None]
    above, below, slope = _noises(
        4,
        (at + step, (2, 3), {'octaves': 2}),
        (at - step, (2, 3), {'octaves': 2}),
        (at, (2, 3), {'octaves': 2, 'derivative': axis}),
    )
    np.testing.assert_allclose(slope, (above - below) / 2e-3, atol=2e-3)
    assert np.abs(slope).max() > 1.0


def test_tiled_noise_goes_on_beyond_the_extent_without_a_jump():
    lines = np.arange(10) / 10
    across = np.array([0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02])
    seam, start, open_end = _noises(
        5,
        ((across, lines), (2, 2), {'tiled': True}),
        ((across[3:] - 1.0, lines), (2, 2), {'tiled': True}),
        ((across[:3], lines), (2, 2), {}),
    )
    np.testing.assert_allclose(seam[3:], start, atol=1e-5)
    slopes = np.diff(seam, axis=0) / np.diff(across)[:, None]
    assert np.abs(slopes).max() > 0.5 and np.abs(np.diff(slopes, axis=0)).max() < 0.7
    assert np.abs(seam[:3] - open_end).max() > 1e-3


def test_each_key_its_own_pattern():
    many = jax.vmap(lambda key: perlin_noise(key, _on(8, 10), (2, 3)))
    patterns = np.asarray(quick_jit(many)(split(6, 60))).reshape(60, -1)
    correlation = np.corrcoef(patterns) - np.eye(60)
    assert len(np.unique(patterns, axis=0)) == 60
    assert np.abs(correlation.mean()) < 0.02
