"""Thresholds by overlap and by the share of healthy voxels marked."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fluidjax.detect import calibrate, evaluate, metrics
from fluidjax.detect.calibrate import (
    FALSE_PER_CENT,
    best_common,
    healthy_threshold,
    marked_ml,
    smallest_within,
)
from fluidjax.detect.histogram import RESOLUTION, Tally, bins_of, edges_of


@pytest.fixture(scope='module')
def cases(make_case):
    return [make_case('a'), make_case('b', centre=(6, 8, 9), radius=2.0)]


def healthy_scores(maps, cases):
    return np.concatenate([m[evaluate.region_of(c) & ~c.lesion] for m, c in zip(maps, cases)])


def maps_of(cases, kind, dtype):
    rng = np.random.default_rng(4)
    maps = [rng.random(c.image.shape) + 0.5 * c.lesion for c in cases]
    if kind == 'tied':
        maps = [np.round(m * 20) / 20 for m in maps]
    if kind == 'sparse':
        maps = [np.where(m > 0.97, m, 0.0) for m in maps]
    return [m.astype(dtype) for m in maps]


def thresholds(maps, cases):
    tally = Tally()
    calibrate.count(tally, maps, cases)
    return calibrate.thresholds(tally)


def mean_dice(maps, cases, threshold):
    return np.mean(
        [
            metrics.dice_at(m, c.lesion, threshold, evaluate.region_of(c))
            for m, c in zip(maps, cases)
        ]
    )


@pytest.mark.parametrize('kind', ['continuous', 'tied', 'sparse'])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_the_rates_are_kept_and_used_up(cases, kind, dtype):
    maps = maps_of(cases, kind, dtype)
    found, healthy = thresholds(maps, cases), healthy_scores(maps, cases)
    assert list(found) == ['dice', 'fpr_1', 'fpr_5', 'fpr_10']
    for per_cent in FALSE_PER_CENT:
        threshold = found[f'fpr_{per_cent}']
        assert (healthy >= threshold).mean() <= per_cent / 100
        # The next smaller edge at which more is marked exceeds the rate.
        lower = edges_of(bins_of(healthy[healthy < threshold]).max())
        assert (healthy >= lower).mean() > per_cent / 100
    reached = mean_dice(maps, cases, found['dice'])
    every = np.unique(np.concatenate([m[evaluate.region_of(c)] for m, c in zip(maps, cases)]))
    best = max(mean_dice(maps, cases, t) for t in every)
    assert best - 0.01 <= reached <= best  # of 400 thresholds, not all
    common = best_common(maps, cases)
    assert common.dice == pytest.approx(reached, abs=2e-3)
    scored = [evaluate.score_map(m, c, 0.5)['ap'] for m, c in zip(maps, cases)]
    assert common.ap == pytest.approx(np.mean(scored), abs=0.02)
    if kind == 'continuous':
        exact = np.quantile(healthy, 0.95)
        assert found['fpr_5'] == pytest.approx(exact, rel=2 * RESOLUTION + 1 / healthy.size)


def test_mixed_precision_does_not_exceed_the_rate(cases):
    single, double = (
        maps_of(cases, 'continuous', np.float32)[0],
        maps_of(cases, 'continuous', np.float64)[1],
    )
    found = thresholds([single, double], cases)
    assert (healthy_scores([single, double], cases) >= found['fpr_1']).mean() <= 0.01


def test_what_is_left_out(cases):
    maps = maps_of(cases, 'continuous', np.float32)
    unknown = dataclasses.replace(cases[0], lesion=None)
    broken, outside = maps[1].copy(), maps[0].copy()
    broken[cases[1].lesion] = np.nan
    outside[~cases[0].brain] = np.nan  # not scored
    alone = thresholds(maps[:1], cases[:1])
    assert thresholds([maps[0], maps[1], broken], [cases[0], unknown, cases[1]]) == alone
    assert thresholds([outside], cases[:1]) == alone


def test_nothing_to_choose_by(cases):
    case, scores = cases[0], maps_of(cases, 'continuous', np.float32)[0]
    full = dataclasses.replace(case, lesion=np.ones_like(case.lesion))
    healthy = dataclasses.replace(case, lesion=np.zeros_like(case.lesion))
    empty = dataclasses.replace(healthy, brain=np.zeros_like(case.brain))
    of_full, of_healthy = thresholds([scores], [full]), thresholds([scores], [healthy])
    assert of_full['dice'] <= np.quantile(scores[case.brain], 0.55) and math.isnan(of_full['fpr_5'])
    assert math.isnan(of_healthy['dice']) and 0.9 < of_healthy['fpr_5'] < 1.0
    for nothing in (
        thresholds([], []),
        thresholds([scores], [empty]),
        thresholds([scores * np.nan], [case]),
        thresholds([scores], [dataclasses.replace(case, lesion=None)]),
    ):
        assert len(nothing) == 4 and all(math.isnan(v) for v in nothing.values())


def test_a_map_of_zeros_marks_nothing(cases):
    zeros = np.zeros(cases[0].image.shape, np.float32)
    for rule in ('fpr_1', 'fpr_5', 'fpr_10'):
        threshold = thresholds([zeros], cases[:1])[rule]
        assert not (zeros >= threshold).any()
        assert np.finfo(np.float32).tiny < threshold < 1e-11  # not denormal


def test_a_millilitre_in_nine_of_ten_healthy_scans(make_case):
    """The guarantee: with 19 scans, a twentieth exceeds 1 ml with a probability of 0.1 at most."""
    rng = np.random.default_rng(0)
    case = dataclasses.replace(make_case('a'), affine=np.diag([4.0, 4.0, 4.0, 1.0]))
    scales = rng.lognormal(sigma=1.0, size=20)
    maps = [(scale * rng.random(case.brain.shape)).astype(np.float32) for scale in scales]
    smallest = [smallest_within(one, case) for one in maps]
    exceeded = []
    for left_out in range(20):
        others = [one for number, one in enumerate(maps) if number != left_out]
        threshold = healthy_threshold(smallest[:left_out] + smallest[left_out + 1 :])
        exceeded.append(marked_ml(maps[left_out], case, threshold) > 1.0)
        kept = sum(marked_ml(one, case, threshold) <= 1.0 for one in others)
        assert kept == 18  # ceil(0.9 * 20)
    assert np.mean(exceeded) == 0.1
    assert math.isnan(healthy_threshold(smallest[:8]))
    assert math.isnan(marked_ml(maps[0], case, math.nan))
    failed = np.full_like(maps[0], np.nan)
    assert math.isnan(marked_ml(failed, case, 0.5)) and math.isnan(smallest_within(failed, case))
    with_failed = [
        healthy_threshold(order) for order in ([math.nan, *smallest], [*smallest, math.nan])
    ]
    assert with_failed[0] == with_failed[1] >= healthy_threshold(smallest)
    assert math.isnan(healthy_threshold([math.nan] * 9))
