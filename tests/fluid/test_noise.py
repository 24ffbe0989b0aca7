"""Perlin noise and the seeds cut out of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fluidjax.fluid import Grid
from fluidjax.fluid.noise import (
    lesion_seed,
    perlin_from_gradients,
    perlin_noise,
    sphere_gradients,
    upper_threshold,
)

GRID = Grid((20, 24, 18), (8.0, 8.0, 8.0))


def test_gradients_are_uniform_on_the_sphere():
    vectors = np.asarray(sphere_gradients(jax.random.key(0), (11, 12, 13))).reshape(-1, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    for k in range(3):  # Archimedes: each coordinate is uniform on [-1, 1]
        assert stats.kstest(vectors[:, k], 'uniform', args=(-1, 2)).pvalue > 0.01


def test_noise_vanishes_at_lattice_points_and_nowhere_else():
    noise = np.asarray(perlin_noise(jax.random.key(1), (16, 24, 32), (2, 3, 4)))
    np.testing.assert_allclose(noise[::8, ::8, ::8], 0.0, atol=1e-6)
    assert np.abs(noise).max() > 0.3
    assert np.mean(np.abs(noise) < 1e-6) < 0.02


def test_a_finer_grid_samples_the_same_pattern():
    coarse = perlin_noise(jax.random.key(2), (11, 13, 9), (2, 3, 2))
    fine = perlin_noise(jax.random.key(2), (22, 26, 18), (2, 3, 2))
    np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, atol=1e-6)


def test_one_cell_of_a_constant_gradient_is_the_linear_function_blended():
    gradients = jnp.zeros((2, 2, 2, 3)).at[..., 0].set(1.0)
    noise = perlin_from_gradients(gradients, (10, 4, 4), (1, 1, 1))
    u = np.arange(10) / 10
    fade = u**3 * (6 * u**2 - 15 * u + 10)
    np.testing.assert_allclose(noise[:, 2, 3], u - fade, atol=1e-6)


@pytest.mark.parametrize('share', [0.1, 0.02, 1e-9])
def test_upper_threshold_keeps_that_share_and_at_least_one(share):
    values = np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32)
    within = np.zeros(GRID.shape, bool)
    within[5:15, 5:20, 4:14] = True
    threshold = upper_threshold(jnp.asarray(values), share, jnp.asarray(within))
    kept = (values >= np.asarray(threshold)) & within
    assert kept.sum() == pytest.approx(max(share * within.sum(), 1), abs=1)
    assert kept.any()


def test_seed_has_the_drawn_share_of_the_brain_and_peaks_at_one_inside():
    within = np.zeros(GRID.shape, bool)
    within[4:16, 4:20, 4:14] = True
    draw = jax.jit(jax.vmap(lambda key: lesion_seed(key, GRID, within=jnp.asarray(within))))
    P0 = np.asarray(draw(jax.random.split(jax.random.key(3), 200)))
    shares = (P0 > 0)[:, within].mean(axis=1)
    assert P0.min() == 0.0 and P0.max() == 1.0
    np.testing.assert_allclose(P0[:, within].max(axis=1), 1.0, atol=1e-6)
    assert shares.min() > 0.003 and shares.max() < 0.101
    # The percentile is uniform on 90..99.6, so the share is uniform on 0.4..10 %.
    assert stats.kstest(shares, 'uniform', args=(0.004, 0.096)).pvalue > 0.01


def test_seed_exists_even_in_a_brain_of_one_voxel():
    within = jnp.zeros(GRID.shape, bool).at[0, 0, 0].set(True)
    P0 = lesion_seed(jax.random.key(4), GRID, within=within)
    assert P0[0, 0, 0] == 1.0 and jnp.max(P0) == 1.0
