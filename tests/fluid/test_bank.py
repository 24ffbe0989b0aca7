"""Lesions drawn from a bank of real masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fluidjax.fluid import Grid
from fluidjax.fluid.bank import bank_seed, random_voxel, translate

GRID = Grid((16, 18, 14), (8.0, 8.0, 8.0))


def test_random_voxel_is_uniform_over_the_mask():
    mask = jnp.zeros((5, 6, 7), bool).at[1, 2, 3:6].set(True).at[4, 0, 0].set(True)
    draw = jax.jit(jax.vmap(lambda key: random_voxel(key, mask)))
    draws = np.asarray(draw(jax.random.split(jax.random.key(0), 800)))
    places, counts = np.unique(draws, axis=0, return_counts=True)
    np.testing.assert_array_equal(places, np.argwhere(mask))
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize('shift', [(0, 0, 0), (2, -1, 3), (-4, 5, 0), (5, 6, 7)])
def test_translate_moves_and_lets_zeros_in(shift):
    volume = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    expected = np.zeros_like(volume)
    for index in np.ndindex(volume.shape):
        source = tuple(np.array(index) - shift)
        if all(0 <= s < n for s, n in zip(source, volume.shape)):
            expected[index] = volume[source]
    np.testing.assert_array_equal(jax.jit(translate)(volume, jnp.array(shift)), expected)


def _draws(bank, brain, shift_mm, n=64):
    one = jax.vmap(lambda key: bank_seed(key, bank, brain, GRID, shift_mm))
    return np.asarray(jax.jit(one)(jax.random.split(jax.random.key(1), n)))


def test_lesions_are_mirrored_half_of_the_time_and_moved_a_little():
    brain = jnp.ones(GRID.shape, bool)
    bank = jnp.zeros((1, *GRID.shape), jnp.uint8).at[0, 2:5, 6:9, 6:8].set(1)
    seeds = _draws(bank, brain, 16.0)
    assert set(np.unique(seeds)) == {0.0, 1.0}
    assert np.all(seeds.sum(axis=(1, 2, 3)) == 18)  # shape kept: nothing cut, nothing wrapped
    centres = np.array([np.argwhere(s).mean(axis=0) for s in seeds])
    left = centres[:, 0] < 7.5
    assert 16 < left.sum() < 48
    start = np.where(left[:, None], [3.0, 7.0, 6.5], [12.0, 7.0, 6.5])
    assert np.abs(centres - start).max() == 2.0  # 16 mm of 8 mm voxels
    assert len(np.unique(centres, axis=0)) > 30


def test_a_lesion_outside_the_brain_is_placed_inside():
    brain = jnp.zeros(GRID.shape, bool).at[6:10, 10:14, 5:9].set(True)
    bank = jnp.zeros((2, *GRID.shape), jnp.uint8).at[0, :2, :2, :2].set(1).at[1, 7, 3, 3].set(1)
    seeds = _draws(bank, brain, 8.0)
    assert np.all((seeds * np.asarray(brain)).sum(axis=(1, 2, 3)) >= 1)
