"""Lesions drawn from a bank of real masks: moved, turned, scaled, and always in the brain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import box, head, places_mm, quick_jit, split
from scipy import stats

from fluidjax.fluid import FluidSettings, Grid
from fluidjax.fluid.bank import place_mask, random_voxels, turn
from fluidjax.fluid.draws import SeedDraw

GRID = Grid((16, 18, 14), (8.0, 6.0, 7.0))
SETTINGS = FluidSettings(bank_shift_mm=16.0, inside_share=0.6)
MOST = np.array([2, 2, 2])  # voxels that 16 mm allow
DRAWS = 64
EVERYWHERE = np.ones(GRID.shape, bool)
MASK = box(GRID, np.s_[2:5], np.s_[6:9], np.s_[6:8])


@functools.cache
def _placer():
    return quick_jit(jax.vmap(lambda *args: place_mask(*args, GRID, SETTINGS)))


def _placed(mask, brain, *, mirrored=False, angles=(0, 0, 0), scale=1.0, size_ml=0.0):
    """P0 (draws, x, y, z) of draws that differ in their key and in what is given as arrays."""
    full = lambda value, *shape: np.broadcast_to(np.float32(value), (DRAWS, *shape))
    draw = SeedDraw(
        from_bank=full(1),
        share=full(0),
        size_ml=full(size_ml),
        bank_index=full(0),
        mirrored=full(mirrored) > 0,
        angles=full(angles, 3),
        scale=full(scale),
        key=split(1, DRAWS),
    )
    masks, brains = (full(volume, *GRID.shape) > 0 for volume in (mask, brain))
    return np.asarray(_placer()(draw, masks, brains))


def _random(name):
    """Values of a field for every draw, as wild as the settings allow and beyond."""
    rng = np.random.default_rng(2)
    return {
        'mirrored': rng.random(DRAWS) < 0.5,
        'angles': rng.uniform(-3, 3, (DRAWS, 3)),
        'scale': np.exp(rng.uniform(-1.5, 1.5, DRAWS)),
        'size_ml': np.exp(rng.uniform(0, 6, DRAWS)),
    }[name]


def _centres(P0):
    """Centres of mass in voxels (draws, d)."""
    places = np.moveaxis(np.indices(P0.shape[1:]), 0, -1).reshape(-1, P0.ndim - 1)
    weights = P0.reshape(len(P0), -1)
    return weights @ places / weights.sum(axis=1, keepdims=True)


def _spread(P0):
    """Covariance of the mass in mm (3, 3)."""
    return np.cov(places_mm(GRID).reshape(3, -1), aweights=np.asarray(P0, float).ravel())


def test_random_voxels_are_uniform_over_the_mask():
    mask = jnp.zeros((5, 6, 7), bool).at[1, 2, 3:6].set(True).at[4, 0, 0].set(True)
    draws = quick_jit(lambda key: random_voxels(key, mask, 800))(jax.random.key(0))
    places, counts = np.unique(np.asarray(draws), axis=0, return_counts=True)
    np.testing.assert_array_equal(places, np.argwhere(mask))
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize('ndim', [2, 3])
def test_a_turn_keeps_lengths_and_handedness(ndim):
    R = np.asarray(turn(jnp.array([0.3, -0.7, 0.5]), ndim))
    np.testing.assert_allclose(R @ R.T, np.eye(ndim), atol=1e-6)
    assert np.linalg.det(R) == pytest.approx(1.0, abs=1e-5)
    about_z = np.asarray(turn(jnp.array([0.0, 0.0, 0.5]), ndim))
    np.testing.assert_allclose(about_z[:2, 0], [np.cos(0.5), np.sin(0.5)], atol=1e-6)


def test_a_mask_that_is_only_moved_keeps_its_values_and_its_voxels():
    P0 = _placed(MASK, EVERYWHERE, mirrored=_random('mirrored'))
    assert set(np.unique(P0)) == {0.0, 1.0}
    assert np.all(P0.sum(axis=(1, 2, 3)) == MASK.sum())  # nothing cut, nothing wrapped


def test_a_mask_is_moved_by_all_that_the_shift_allows_and_by_no_more():
    mask = box(GRID, *(np.s_[n // 2 - 1 : n // 2 + 1] for n in GRID.shape))
    moved = _centres(_placed(mask, EVERYWHERE)) - _centres(mask[None])
    np.testing.assert_allclose(np.abs(moved).max(axis=0), MOST, atol=1e-3)
    assert len(np.unique(moved.round(1), axis=0)) > 30 and np.abs(moved.mean(axis=0)).max() < 0.7


def test_a_mirrored_mask_lies_on_the_other_side():
    mirrored = _random('mirrored')
    centres = _centres(_placed(MASK, EVERYWHERE, mirrored=mirrored))
    np.testing.assert_array_equal(centres[:, 0] > 7.5, mirrored)
    home = np.where(mirrored[:, None], [12.0, 7.0, 6.5], [3.0, 7.0, 6.5])
    np.testing.assert_array_equal(np.abs(centres - home).max(axis=0), MOST)


@pytest.mark.parametrize('degrees', [-60.0, 30.0, 90.0])
def test_a_bar_turned_by_an_angle_points_there_and_keeps_its_length_in_mm(degrees):
    bar = box(GRID, np.s_[4:12], np.s_[8:10], np.s_[6:8])  # 64 mm along x, 12 mm along y
    for P0 in _placed(bar, EVERYWHERE, angles=[0, 0, np.deg2rad(degrees)])[:8]:
        spread, vectors = np.linalg.eigh(_spread(P0))
        pointing = np.rad2deg(np.arctan2(vectors[1, 2], vectors[0, 2]))
        assert abs((pointing - degrees + 90) % 180 - 90) < 3.0
        assert np.sqrt(12 * spread[2]) == pytest.approx(64.0, rel=0.08)
        assert P0.sum() == pytest.approx(bar.sum(), rel=0.25)  # it is two voxels thick


def test_turns_mirrors_and_scales_act_on_lengths_in_mm():
    mask = box(GRID, np.s_[5:9], np.s_[7:9], np.s_[6:8]) | box(
        GRID, np.s_[8:10], np.s_[7:12], np.s_[6:8]
    )  # an L, 40 x 30 x 14 mm
    angles, mirrored = _random('angles') / 3, _random('mirrored')
    P0 = _placed(mask, EVERYWHERE, angles=angles, mirrored=mirrored, scale=1.2)
    whole = P0.sum(axis=(1, 2, 3)) > 0.97 * 1.2**3 * mask.sum()
    assert whole.mean() > 0.5  # the others reached beyond the volume
    for P, angle, mirror in zip(P0[whole], angles[whole], mirrored[whole]):
        A = 1.2 * np.asarray(turn(jnp.asarray(angle), 3)) @ np.diag([1 - 2 * mirror, 1, 1])
        expected = A @ _spread(mask) @ A.T
        assert np.abs(_spread(P) - expected).max() < 0.2 * expected.max()


@pytest.mark.parametrize('size_ml', [8.0, 30.0, 100.0])
def test_a_mask_has_the_volume_wanted(size_ml):
    mask = box(GRID, np.s_[6:10], np.s_[7:11], np.s_[5:9])
    P0 = _placed(mask, EVERYWHERE, size_ml=size_ml, scale=3.0)
    volumes = P0.sum(axis=(1, 2, 3)) * GRID.voxel_ml
    np.testing.assert_allclose(volumes, size_ml, rtol=0.25)


def test_a_mask_is_scaled_by_its_factor():
    mask = box(GRID, np.s_[5:10], np.s_[7:11], np.s_[5:9])
    P0 = _placed(mask, EVERYWHERE, scale=1.25)
    np.testing.assert_allclose(P0.sum(axis=(1, 2, 3)), 1.25**3 * mask.sum(), rtol=0.1)


CORNER = box(GRID, np.s_[:2], np.s_[:3], np.s_[:2])
BRAINS = {
    'head': head(GRID)[1],
    'corner': CORNER,
    'one voxel': box(GRID, 15, 17, 13),
    'two halves': box(GRID, np.s_[1:6]) | box(GRID, np.s_[11:]),
}
MASKS = {
    'beside': MASK,
    'outside': CORNER,
    'one voxel': box(GRID, 7, 3, 3),
    'all': EVERYWHERE,
    'two ends': box(GRID, 0, 0, 0) | box(GRID, 15, 17, 13),
    'plane': box(GRID, np.s_[:], 9),
}


@pytest.mark.parametrize('brain', BRAINS)
@pytest.mark.parametrize('mask', MASKS)
def test_the_share_in_the_brain_always_holds_and_the_lesion_is_never_empty(mask, brain):
    within = BRAINS[brain]
    for wanted in ('scale', 'size_ml'):
        P0 = _placed(
            MASKS[mask],
            within,
            angles=_random('angles'),
            mirrored=_random('mirrored'),
            **{wanted: _random(wanted)},
        )
        assert np.isfinite(P0).all() and P0.min() >= 0.0 and P0.max() <= 1.0
        np.testing.assert_allclose(P0[:, within].max(axis=1), 1.0, atol=1e-6)
        total = P0.sum(axis=(1, 2, 3), dtype=float)
        assert np.all(P0[:, within].sum(axis=1, dtype=float) >= 0.6 * total * (1 - 1e-6))


def test_a_mask_that_fits_is_not_cut():
    """However it is turned: the next of several places is taken instead."""
    within = box(GRID, np.s_[8:15], np.s_[9:16], np.s_[7:13])
    small = box(GRID, np.s_[1:4], np.s_[1:4], np.s_[1:3])
    P0 = _placed(small, within)
    assert np.mean(P0.sum(axis=(1, 2, 3)) == small.sum()) > 0.9
