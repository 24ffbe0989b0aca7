"""What a value of the map means."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import ndimage

from fluidjax.base.subject import Subject
from fluidjax.detect import reliability
from fluidjax.detect.histogram import Tally
from fluidjax.detect.pooled import Pooled
from fluidjax.detect.reliability import Rising


def tally_of(rng, count=200_000, bend=1.0):
    """Scores in (0, 1] whose lesion share is score^bend / 2."""
    scores = rng.uniform(size=count).astype(np.float32)
    tally = Tally()
    tally.add(scores, rng.uniform(size=count) < 0.5 * scores**bend)
    return tally


def test_the_probability_is_the_share_of_lesion():
    probability = reliability.voxel_probability(tally_of(np.random.default_rng(0)))
    at = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(probability(at), 0.5 * at, atol=0.03)
    assert len(probability.at) <= reliability.KNOTS + 2
    assert np.all(np.diff(probability.at) > 0) and np.all(np.diff(probability.share) >= 0)
    assert probability(-1.0) == probability.share[0] and probability(9.0) == probability.share[-1]
    stored = json.loads(json.dumps(dataclasses.asdict(probability)))
    assert Rising.of(stored) == probability and Rising.of(None) is None


def test_small_probabilities_are_kept_where_most_voxels_are():
    """Healthy voxels around 0.04, lesions around 0.25: the curve is steep and starts near 0."""
    rng = np.random.default_rng(3)
    lesion = rng.uniform(size=600_000) < 0.03
    scores = np.where(
        lesion, rng.normal(0.25, 0.12, lesion.shape), rng.normal(0, 0.04, lesion.shape)
    )
    scores = np.abs(scores).astype(np.float32)
    tally = Tally()
    tally.add(scores, lesion)
    probability = reliability.voxel_probability(tally)
    assert probability(scores).sum() == pytest.approx(lesion.sum(), rel=0.03)
    for low, high in ((0.02, 0.05), (0.05, 0.08), (0.1, 0.15), (0.2, 0.3)):
        some = (scores >= low) & (scores < high)
        assert probability(scores[some]).mean() == pytest.approx(lesion[some].mean(), rel=0.2)


def test_without_a_lesion_there_is_no_probability():
    tally = Tally()
    tally.add(np.linspace(0, 1, 50, dtype=np.float32), np.zeros(50, bool))
    assert reliability.voxel_probability(tally) is None


def test_the_diagram_is_on_the_diagonal_where_cases_are_alike_and_off_it_where_not():
    rng = np.random.default_rng(1)
    probability = reliability.voxel_probability(tally_of(rng))
    alike = reliability.diagram(tally_of(rng), probability)
    other = reliability.diagram(tally_of(rng, bend=3.0), probability)
    assert reliability.calibration_error(alike) < 0.02
    assert reliability.calibration_error(other) > 0.05
    assert sum(one['voxels'] for one in alike) == 200_000
    assert np.isnan(reliability.calibration_error([]))


def cases_of(rng, count):
    """Maps of blobs, the higher ones on lesions, with their cases."""
    for number in range(count):
        one, lesion = np.zeros((20, 20, 20)), np.zeros((20, 20, 20), bool)
        for x in (4, 14):
            for y in (4, 14):
                peak = rng.uniform(0.2, 1.0)
                one[x - 1 : x + 2, y - 1 : y + 2, 9:12] = 0.15
                one[x, y, 10] = peak
                lesion[x, y, 9:12] = rng.uniform() < peak
        brain = np.ones(one.shape, bool)
        yield one, Subject(f'{number}', one, brain, lesion, None, np.diag([4.0, 4, 4, 1]))


def test_the_confidence_of_a_region_is_the_share_that_lie_on_a_lesion():
    maps, cases = zip(*cases_of(np.random.default_rng(2), 100), strict=True)
    assert ndimage.label(maps[0] >= 0.1)[1] == 4
    with Pooled() as pooled:
        pooled.add(maps[:2], cases[:2])
        assert reliability.region_confidence(pooled, 0.1) is None  # too few
        pooled.add(maps[2:], cases[2:])
        confidence = reliability.region_confidence(pooled, 0.1)
        assert reliability.region_confidence(pooled, float('nan')) is None
    for peak in (0.3, 0.6, 0.9):
        assert confidence(peak) == pytest.approx(peak, abs=0.15)
    assert 1 / 402 <= min(confidence.share) and max(confidence.share) <= 401 / 402
