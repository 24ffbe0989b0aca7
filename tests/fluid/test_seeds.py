"""Lesion seeds: the level that a share reaches, shares and volumes, several in one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import box, head, quick_jit, split
from scipy import stats

from fluidjax.fluid import FluidSettings, Grid, draw_pair
from fluidjax.fluid.randomize import seed_map
from fluidjax.fluid.seeds import perlin_seed, upper_threshold

GRID = Grid((20, 24, 18), (8.0, 8.0, 8.0))
_, BRAIN = head(GRID)
SHARES = FluidSettings(bank_probability=0.0)
VOLUMES = FluidSettings(size_ml=(10.0, 60.0), lesion_count=(1, 3))


@functools.cache
def _compiled(settings, grid):
    def one(key, count, brain):
        draw = draw_pair(key, settings)
        return draw.seeds, seed_map(draw.seeds, count, brain, grid, settings)

    return quick_jit(jax.vmap(one, in_axes=(0, None, None)))


def _seeds(settings, draws, count, grid=GRID, brain=BRAIN):
    """What was drawn (draws, seeds), and P0 (draws, x, y (, z)) of the first `count` seeds."""
    seeds, P0 = _compiled(settings, grid)(split(3, draws), count, brain)
    return seeds, np.asarray(P0)


_threshold = quick_jit(upper_threshold)


@pytest.mark.parametrize('share', [0.1, 0.02, 1e-9])
def test_upper_threshold_keeps_that_share_and_at_least_one(share):
    values = np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32)
    within = box(GRID, np.s_[5:15], np.s_[5:20], np.s_[4:14])
    threshold = _threshold(values, share, within)
    kept = (values >= np.asarray(threshold)) & within
    assert kept.sum() == pytest.approx(max(share * within.sum(), 1), abs=1)
    assert kept.any()


def test_a_seed_has_the_drawn_share_of_the_brain_and_peaks_at_one_inside():
    seeds, P0 = _seeds(SHARES, 200, 1)
    shares = (P0 > 0)[:, BRAIN].mean(axis=1)
    assert P0.min() == 0.0 and P0.max() == 1.0
    np.testing.assert_allclose(P0[:, BRAIN].max(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(shares, seeds.share[:, 0], atol=2e-3)
    # The percentile is uniform on 90..99.6, so the share is uniform on 0.4..10 %.
    assert stats.kstest(shares, 'uniform', args=(0.004, 0.096)).pvalue > 0.01


def test_a_seed_of_a_wanted_volume_has_it():
    seeds, P0 = _seeds(VOLUMES, 100, 1)
    volumes = (P0 > 0)[:, BRAIN].sum(axis=1) * GRID.voxel_ml
    np.testing.assert_allclose(volumes, seeds.size_ml[:, 0], rtol=0.2)
    assert volumes.min() < 15.0 and volumes.max() > 45.0


def test_more_seeds_give_a_larger_or_equal_lesion():
    one, two, three = (_seeds(VOLUMES, 100, count)[1] for count in (1, 2, 3))
    assert np.all(one <= two) and np.all(two <= three)
    grown = (three > one).any(axis=(1, 2, 3))
    assert grown.mean() > 0.9  # a second seed hardly ever lies within the first
    np.testing.assert_allclose(three[:, BRAIN].max(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize('parity', [False, True])
def test_a_seed_exists_even_in_a_brain_of_one_voxel(parity):
    seed = quick_jit(lambda noise, brain: perlin_seed(noise, 0.05, brain, rescaled=not parity))
    for voxel in ((0, 0, 0), (7, 11, 3), (19, 23, 17)):
        brain = box(GRID, *voxel)
        P0 = np.asarray(seed(np.where(brain, -0.1, 0.3), brain))
        assert P0[voxel] > 0.0
        assert parity or P0[voxel] == 1.0 == P0.max()


@pytest.mark.parametrize('voxel', [(64, 64), (65, 65)])
def test_a_seed_exists_in_a_brain_between_the_voxels_that_a_fine_volume_is_thinned_to(voxel):
    grid = Grid((128, 130))
    noise = np.float32(np.random.default_rng(0).normal(size=grid.shape))
    P0 = quick_jit(lambda noise, brain: perlin_seed(noise, 0.05, brain))(noise, box(grid, *voxel))
    assert P0[voxel] == 1.0


def test_the_published_seed_is_masked_noise_as_it_is():
    noise = jnp.asarray(np.random.default_rng(0).normal(size=GRID.shape), jnp.float32)
    P0 = np.asarray(perlin_seed(noise, 0.05, jnp.ones(GRID.shape, bool), rescaled=False))
    np.testing.assert_array_equal(P0[P0 > 0], np.asarray(noise)[P0 > 0])
    assert np.mean(P0 > 0) == pytest.approx(0.05, abs=1e-3)
