"""Bins of scores, and how far results from counts are from those of sorting all voxels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score

from fluidjax.detect import metrics
from fluidjax.detect.curves import curve_of
from fluidjax.detect.histogram import RESOLUTION, Tally, bins_of, edges_of

LOWEST = np.float32(2.0**-40)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_bins_have_the_order_of_scores_and_are_fine_at_any_size(dtype):
    rng = np.random.default_rng(0)
    scores = rng.random(20000) * 10.0 ** rng.integers(-20, 7, 20000)
    scores = np.sort(np.concatenate([scores, [0.0, 1.0, LOWEST]])).astype(dtype)
    bins = bins_of(scores)
    assert np.diff(bins).min() >= 0
    lower, upper = edges_of(bins), edges_of(bins + 1)
    assert (lower <= scores).all() and (scores < upper).all()
    fine = scores >= LOWEST
    assert 1000 < fine.sum() < scores.size
    assert ((scores - lower)[fine] <= RESOLUTION * scores[fine]).all()
    np.testing.assert_array_equal(bins_of(lower), bins)


def test_the_ends_of_the_scale():
    ends = bins_of(np.array([-1.0, -0.0, 0.0, 1e-40, 1e-13, 1e8, 3e38], np.float32))
    assert ends.tolist() == [0] * 5 + [ends[-1]] * 2
    assert edges_of(bins_of(np.float32(0.0))) == 0 and edges_of(np.int32(1)) == LOWEST
    tally = Tally()
    tally.add(np.array([0.0, 3e38], np.float32), np.array([False, True]))
    assert tally.best_pooled() == (1.0, 2.0**24)


def random_maps(rng):
    for _ in range(4):
        truth = rng.random((24, 24, 24)) < 0.05
        yield rng.gamma(1.0, 1.0, truth.shape) + 2 * rng.random() * truth, truth


def realistic_maps(rng):
    """Smooth residuals of one sign, so that half of the voxels are 0, higher in one ball."""
    places = np.indices((32, 32, 32))
    for _ in range(4):
        centre = rng.integers(8, 24, 3)
        truth = ((places.T - centre) ** 2).sum(axis=-1).T < rng.uniform(2, 5) ** 2
        noise = ndimage.gaussian_filter(rng.normal(size=truth.shape), 1.5)
        made = noise / noise.std() + rng.uniform(1, 4) * ndimage.gaussian_filter(1.0 * truth, 1.0)
        yield 0.05 * np.maximum(made, 0), truth


def probabilities(rng):
    """Of a head that is sure: most scores are close to 0 or 1."""
    for one, truth in realistic_maps(rng):
        yield 1 / (1 + np.exp(10 - 150 * one)), truth


@pytest.mark.parametrize('kind', [random_maps, realistic_maps, probabilities])
def test_results_are_close_to_those_of_sorting_all_voxels(kind, tally_of):
    maps, truths = zip(*kind(np.random.default_rng(3)))
    maps = [one.astype(np.float32) for one in maps]
    tally = tally_of(maps, truths)
    every = np.concatenate([one.ravel() for one in maps])
    truth = np.concatenate([one.ravel() for one in truths])
    exact, threshold = metrics.best_dice(every, truth)
    pooled = tally.best_pooled()
    assert exact - 2e-3 < pooled.dice <= exact + 1e-9
    assert metrics.dice_at(every, truth, pooled.threshold) == pytest.approx(pooled.dice)

    def mean_dice(at):
        return np.mean([metrics.dice_at(*pair, at) for pair in zip(maps, truths)])

    common = tally.best_mean()
    tried = np.quantile(every, np.linspace(0.5, 1, 300))
    assert max(mean_dice(at) for at in tried) - 2e-3 < common.dice
    assert mean_dice(common.threshold) == pytest.approx(common.dice)
    assert tally.mean_dice(common.threshold) == pytest.approx(common.dice)
    curve = curve_of(tally, points=10**7)
    found = np.sum(np.diff(curve['recall'], prepend=0.0) * curve['precision'])
    assert found == pytest.approx(average_precision_score(truth, every), abs=2e-3)
    healthy = every[~truth]
    for rate in (1, 5, 10):
        at = tally.at_rate(rate)
        assert (healthy >= at).mean() <= rate / 100
        assert at <= np.quantile(healthy, 1 - rate / 100) * (1 + 2 * RESOLUTION) + LOWEST


def test_the_highest_of_equal_thresholds_is_one_that_occurs():
    tally = Tally()
    tally.add(np.array([0.1, 0.1, 0.5, 0.5]), np.array([False, False, True, True]))
    assert tally.best_mean() == tally.best_pooled() == (1.0, 0.5)


def test_an_empty_tally_has_no_threshold():
    tally = Tally()
    tally.add(np.empty(0, np.float32), np.empty(0, bool))
    for value in (*tally.best_mean(), *tally.best_pooled(), tally.at_rate(1)):
        assert np.isnan(value)
    assert np.isnan(tally.mean_dice(0.5)) and not tally.values()[0].size
