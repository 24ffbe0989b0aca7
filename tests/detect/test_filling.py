"""Lesion filling: the scan outside, the model's tissue inside, and no seam between."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fluidjax.detect import filling

SPACING = (2.0, 2.0, 2.0)
SHAPE = (48, 48, 40)


def _ball(centre, radius):
    grid = np.indices(SHAPE).T - np.asarray(centre)
    return (np.linalg.norm(grid, axis=-1) < radius).T


@pytest.fixture(scope='module')
def case():
    """Symmetric tissue with folds and noise, a lesion on one side, and a blurred counterpart."""
    rng = np.random.default_rng(3)
    brain = _ball((24, 24, 20), 19)
    folds = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.6)
    folds = folds + folds[::-1]
    healthy = 0.6 + 0.1 * folds / folds.std() + 0.01 * rng.standard_normal(SHAPE)
    healthy = np.where(brain, np.clip(healthy, 0.05, 1.0), 0.0).astype(np.float32)
    mask = _ball((33, 24, 20), 5) & brain
    scan = np.where(mask, 0.4 * healthy, healthy)
    # As a model's: blurred, and 0.05 too dark.
    smooth = ndimage.gaussian_filter(healthy, 1.2) / np.maximum(
        ndimage.gaussian_filter(brain.astype(np.float32), 1.2), 0.2
    )
    counterpart = np.where(brain, smooth - 0.05, 0.0).astype(np.float32)
    mirrored = np.where(brain[::-1] & ~mask[::-1], scan[::-1], np.nan)
    made = filling.fill(scan, counterpart, mask, brain, SPACING, mirrored)
    return healthy, scan, counterpart, mask, brain, made


def test_outside_it_is_the_scan(case):
    _, scan, _, mask, brain, made = case
    np.testing.assert_array_equal(
        made.image[~made.changed], np.where(brain, scan, 0)[~made.changed]
    )
    distance = ndimage.distance_transform_edt(~mask, sampling=SPACING)
    np.testing.assert_array_equal(made.changed, brain & (distance < filling.EDGE_MM))


def test_mean_and_spread_inside_are_those_of_the_other_side(case):
    healthy, _, counterpart, mask, _, made = case
    other = healthy[::-1][mask]
    assert made.image[mask].mean() == pytest.approx(other.mean(), abs=0.02)
    assert made.image[mask].std() == pytest.approx(other.std(), rel=0.25)
    assert counterpart[mask].std() < 0.75 * other.std()
    assert abs(counterpart[mask].mean() - other.mean()) > 0.03


def test_it_is_nearer_to_the_healthy_image_than_the_model(case):
    healthy, _, counterpart, mask, _, made = case
    error = np.abs(made.image - healthy)[mask].mean()
    assert error < 0.75 * np.abs(counterpart - healthy)[mask].mean()


def test_there_is_no_step_at_the_border(case):
    """Neighbours on two sides of the border differ as healthy neighbours do there."""
    healthy, scan, counterpart, mask, brain, made = case
    for border in (mask, made.changed):
        expected, found = (
            np.mean([np.mean(np.abs(np.diff(v, axis=a)[_border(border, a)])) for a in range(3)])
            for v in (healthy, made.image)
        )
        assert found < 1.1 * expected
    rim = ndimage.binary_dilation(mask, iterations=4) & ~mask & brain
    pasted = np.where(mask, counterpart, scan)
    expected, found, plain = (v[mask].mean() - v[rim].mean() for v in (healthy, made.image, pasted))
    assert abs(found - expected) < 0.02 < abs(plain - expected)


def _border(region, axis):
    return np.diff(region.astype(np.int8), axis=axis) != 0


def test_the_other_side_gives_the_level_where_the_model_is_wrong_inside(case):
    healthy, scan, counterpart, mask, brain, _ = case
    wrong = counterpart + 0.2 * mask
    alone, level = (
        filling.fill(scan, wrong, mask, brain, SPACING, mirrored).image[mask].mean()
        for mirrored in (None, np.where(brain[::-1], healthy[::-1], np.nan))
    )
    expected = healthy[mask].mean()
    assert abs(level - expected) < 0.7 * abs(alone - expected)


def test_nothing_marked_is_the_scan_and_all_marked_is_the_model(case):
    _, scan, counterpart, mask, brain, _ = case
    made = filling.fill(scan, counterpart, mask & False, brain, SPACING)
    np.testing.assert_array_equal(made.image, np.where(brain, scan, 0))
    assert not made.changed.any()
    everything = filling.fill(scan, counterpart, brain, brain, SPACING)
    np.testing.assert_allclose(everything.image[brain], np.clip(counterpart, 0, 1)[brain])
