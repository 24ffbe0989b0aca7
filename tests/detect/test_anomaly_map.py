"""Anomaly maps: the published numbers, and what must hold whatever the numbers are."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from fluidjax.base.errors import UserError
from fluidjax.detect import anomaly_map
from fluidjax.detect.anomaly_map import MapSettings

ONE_MM = (1.0, 1.0, 1.0)
GOLDEN = ('anomaly_36x40x52_erode2.npz', 'anomaly_40x48x40.npz')


@pytest.fixture(scope='module', params=GOLDEN)
def golden(request, golden_dir):
    return dict(np.load(golden_dir / request.param))


@pytest.fixture
def volumes():
    rng = np.random.default_rng(3)
    return rng.random((2, 7, 8, 9), np.float32)


@pytest.fixture
def ball():
    x = np.indices((20, 22, 18)) - np.array([10, 11, 9])[:, None, None, None]
    return (x**2).sum(axis=0) < 64


def published(golden) -> MapSettings:
    iterations = golden['orig'].shape[2] // 25
    return dataclasses.replace(anomaly_map.PUBLISHED, erosion_mm=float(iterations))


def test_golden_shift_selection_is_exact(golden):
    closest = anomaly_map.closest_shift(golden['orig'], golden['recon'], 2)
    np.testing.assert_array_equal(closest, golden['shifted_recon'])


def test_golden_erosion_is_exact(golden):
    settings = published(golden)
    eroded = anomaly_map.erode(jnp.asarray(golden['healthy'] > 0.01), ONE_MM, settings.erosion_mm)
    np.testing.assert_array_equal(eroded, golden['eroded_mask'] > 0)


@pytest.mark.parametrize('median, key', [(5, 'anomaly_map'), (0, 'diff_eroded')])
def test_golden_map(golden, median, key):
    settings = dataclasses.replace(published(golden), median_voxels=median)
    brain = golden['healthy'] > 0.01
    result = anomaly_map.residual_maps(
        golden['orig'][None], golden['recon'][None], brain[None], ONE_MM, settings
    )[0]
    np.testing.assert_allclose(result, golden[key], atol=1e-5, rtol=0)


def test_golden_map_with_the_brain_from_the_scan(golden):
    brain = golden['orig'] > 0.01
    result = anomaly_map.residual_maps(
        golden['orig'][None], golden['recon'][None], brain[None], ONE_MM, published(golden)
    )[0]
    np.testing.assert_allclose(result, golden['anomaly_map_mask_from_orig'], atol=1e-5, rtol=0)


def test_golden_difference_before_the_mask(golden):
    settings = MapSettings(0.0, 0.0, max_shift_voxels=2, normalise=True)
    everywhere = jnp.ones(golden['orig'].shape, bool)
    result = anomaly_map.residual_map(
        jnp.asarray(golden['orig']), jnp.asarray(golden['recon']), everywhere, ONE_MM, settings
    )
    np.testing.assert_allclose(result, golden['diff_norm'], atol=1e-5, rtol=0)


def test_closest_shift_equals_rolling_by_hand(volumes):
    scan, other = np.round(volumes * 2) / 2, np.round(volumes[::-1])  # 0.5 ties between 0 and 1
    scan, other = scan[0], other[0]
    best = None
    for shift in np.ndindex(3, 3, 3):
        moved = np.roll(other, np.array(shift) - 1, axis=(0, 1, 2))
        best = (
            moved
            if best is None
            else np.where(np.abs(scan - moved) < np.abs(scan - best), moved, best)
        )
    np.testing.assert_array_equal(anomaly_map.closest_shift(scan, other, 1), best)


@pytest.mark.parametrize('size', [3, 5])
def test_median_equals_scipy(volumes, size):
    """Of values rounded to 1/65535 of the maximum, so to half of that."""
    volume = 3.0 * volumes[0]
    expected = ndimage.median_filter(volume, size, mode='reflect')
    found = anomaly_map.median_filter(jnp.asarray(volume), size)
    np.testing.assert_allclose(found, expected, atol=0.51 * volume.max() / 65535)


def test_median_of_a_map_that_is_blank_or_not_finite(volumes):
    blank = jnp.zeros((6, 6, 6))
    np.testing.assert_array_equal(anomaly_map.median_filter(blank, 3), blank)
    holed = jnp.asarray(volumes[0]).at[2, 2, 2].set(jnp.nan)
    assert jnp.isnan(anomaly_map.median_filter(holed, 3)).sum() == 1


def test_dissimilarity_equals_scikit_image_away_from_the_border():
    rng = np.random.default_rng(0)
    scan = ndimage.gaussian_filter(rng.random((24, 24, 24)), 1.0)
    other = np.clip(scan + 0.05 * rng.normal(size=scan.shape), 0, 1)
    scan, other = (np.float32(v / scan.max()) for v in (scan, other))
    sigma = 1.2
    found = anomaly_map.dissimilarity(
        jnp.asarray(scan),
        jnp.asarray(other),
        jnp.ones(scan.shape, bool),
        (2.0, 2.0, 2.0),
        2.0 * sigma * anomaly_map.FWHM_PER_SIGMA,
    )
    _, expected = structural_similarity(
        scan,
        other,
        data_range=1.0,
        gaussian_weights=True,
        sigma=sigma,
        truncate=4.0,
        use_sample_covariance=False,
        full=True,
    )
    inner = np.s_[6:-6, 6:-6, 6:-6]
    np.testing.assert_allclose(found[inner], 0.5 - 0.5 * expected[inner], atol=2e-4)


def test_ssim_map_sees_a_lost_texture_and_not_a_copy(volumes):
    settings = anomaly_map.MapSettings(0.0, 0.0, kind='ssim', ssim_mm=3.0)
    scan = jnp.asarray(volumes[0])
    brain = jnp.ones(scan.shape, bool)
    flat = jnp.full(scan.shape, scan.mean())
    lost = anomaly_map.residual_map(scan, flat, brain, (1.0,) * 3, settings)
    copied = anomaly_map.residual_map(scan, scan, brain, (1.0,) * 3, settings)
    assert float(jnp.abs(copied).max()) < 1e-3 and float(lost.mean()) > 0.3


def test_smoothing_keeps_a_constant_inside_the_mask(ball):
    values = jnp.where(ball, 0.7, 55.0)  # what lies outside must not leak in
    smooth = np.asarray(anomaly_map.smooth_inside(values, ball, (2.0, 3.0, 4.0), 9.0))
    np.testing.assert_allclose(smooth[ball], 0.7, rtol=1e-5)
    assert not smooth[~ball].any()


def test_smoothing_width_is_fwhm_in_mm_on_every_axis():
    spacing, fwhm = (1.0, 2.0, 4.0), 10.0
    impulse = np.zeros((61, 31, 17), np.float32)
    impulse[30, 15, 8] = 1.0
    smooth = np.asarray(
        anomaly_map.smooth_inside(
            jnp.asarray(impulse), jnp.ones(impulse.shape, bool), spacing, fwhm
        )
    )
    for axis, voxel in enumerate(spacing):
        line = smooth.sum(axis=tuple(a for a in range(3) if a != axis))
        mm = (np.arange(line.size) - line.size // 2) * voxel
        sigma = np.sqrt((line * mm**2).sum() / line.sum())
        assert sigma == pytest.approx(fwhm / 2.3548, rel=0.03)


def test_erosion_is_in_mm_per_axis(ball):
    eroded = np.asarray(anomaly_map.erode(jnp.asarray(ball), (1.0, 2.0, 10.0), 2.0))
    cross_xy = np.zeros((3, 3, 3), bool)
    cross_xy[:, 1, 1] = cross_xy[1, :, 1] = True
    line_x = np.zeros((3, 3, 3), bool)
    line_x[:, 1, 1] = True
    expected = ndimage.binary_erosion(ndimage.binary_erosion(ball, cross_xy), line_x)
    np.testing.assert_array_equal(eroded, expected)
    np.testing.assert_array_equal(anomaly_map.erode(jnp.asarray(ball), ONE_MM, 0.0), ball)


def test_border_counts_as_background():
    eroded = np.asarray(anomaly_map.erode(jnp.ones((5, 5, 5), bool), ONE_MM, 1.0))
    assert eroded.sum() == 27 and eroded[1:4, 1:4, 1:4].all()


@pytest.mark.parametrize(
    'sign, dark, bright', [('absolute', 0.3, 0.2), ('darker', 0.3, 0.0), ('brighter', 0.0, 0.2)]
)
def test_sign(ball, sign, dark, bright):
    counterpart = np.where(ball, 0.5, 0.0).astype(np.float32)
    scan = counterpart.copy()
    scan[8, 11, 9], scan[12, 11, 9] = 0.2, 0.7
    result = anomaly_map.residual_map(
        jnp.asarray(scan), jnp.asarray(counterpart), ball, ONE_MM, MapSettings(0.0, 0.0, sign=sign)
    )
    assert result[8, 11, 9] == pytest.approx(dark, abs=1e-6)
    assert result[12, 11, 9] == pytest.approx(bright, abs=1e-6)
    assert np.count_nonzero(result) == (dark > 0) + (bright > 0)


def test_map_is_zero_outside_and_finite_despite_nan_in_the_background(ball):
    scan = jnp.where(ball, 0.5, jnp.nan)
    settings = MapSettings(smoothing_mm=4.0, erosion_mm=2.0)
    result = np.asarray(
        anomaly_map.residual_map(scan, jnp.zeros(ball.shape), ball, ONE_MM, settings)
    )
    eroded = np.asarray(anomaly_map.erode(jnp.asarray(ball), ONE_MM, 2.0))
    np.testing.assert_allclose(result[eroded], 0.5, rtol=1e-5)
    assert not result[~eroded].any() and 0 < eroded.sum() < ball.sum()


def test_jit_and_vmap_change_nothing(volumes):
    settings = MapSettings(smoothing_mm=3.0, erosion_mm=1.0, max_shift_voxels=1)
    brains = np.stack([np.ones((7, 8, 9), bool), volumes[0] > 0.05])
    batched = anomaly_map.residual_maps(volumes, volumes[::-1], brains, ONE_MM, settings)
    for i in range(2):
        with jax.disable_jit():
            single = anomaly_map.residual_map(
                jnp.asarray(volumes[i]),
                jnp.asarray(volumes[1 - i]),
                jnp.asarray(brains[i]),
                ONE_MM,
                settings,
            )
        np.testing.assert_allclose(batched[i], single, atol=1e-6)


@pytest.mark.parametrize(
    'bad, field',
    [
        ({'sign': 'dark'}, 'sign'),
        ({'smoothing_mm': -1.0}, 'smoothing_mm'),
        ({'erosion_mm': float('nan')}, 'erosion_mm'),
        ({'median_voxels': 4}, 'median_voxels'),
        ({'kind': 'lpips'}, 'kind'),
        ({'ssim_mm': 0.0}, 'ssim_mm'),
    ],
)
def test_bad_settings_name_the_field(bad, field):
    with pytest.raises(UserError, match=field):
        MapSettings(**({'smoothing_mm': 1.0, 'erosion_mm': 1.0} | bad))
