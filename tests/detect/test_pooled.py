"""Scores of a whole test set: maps that come one after another, and wait in a file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from subjects import noisy, perfect

from fluidjax.detect import evaluate, metrics, pooled
from fluidjax.detect.pooled import Pooled


def added(maps, cases):
    """One after another, as an evaluation adds them."""
    collected = Pooled()
    for one, case in zip(maps, cases, strict=True):
        collected.add([one], [case])
    return collected


def global_dice(maps, cases):
    with added(maps, cases) as collected:
        return pooled.global_dice(collected)


def sensitivity_at_fp(maps, cases, **settings):
    with added(maps, cases) as collected:
        return pooled.sensitivity_at_fp(collected, **settings)


def test_maps_come_back_as_they_were_added(cases):
    maps = [noisy(case, seed).astype(np.float32) for seed, case in enumerate(cases)]
    unknown = dataclasses.replace(cases[0], lesion=None)
    with added([*maps, maps[0], np.nan * maps[0]], [*cases, unknown, cases[0]]) as collected:
        for _ in range(2):
            found = list(collected)
            assert len(found) == collected.count == 3
            for one, made, case in zip(found, maps, cases, strict=True):
                region = evaluate.region_of(case)
                np.testing.assert_array_equal(one.anomaly_map, np.where(region, made, 0))
                np.testing.assert_array_equal(one.lesion, case.lesion)
                np.testing.assert_array_equal(one.region, region)
                assert one.ml == evaluate.voxel_ml(case.affine)
                assert one.anomaly_map.dtype == np.float32


def test_global_dice_is_the_best_pooled_dice(cases):
    maps = [noisy(c, i) for i, c in enumerate(cases)]
    entry = global_dice(maps, cases)
    pooled = metrics.best_dice(
        np.concatenate([m[c.brain] for m, c in zip(maps, cases)]),
        np.concatenate([c.lesion[c.brain] for c in cases]),
    )[0]
    assert entry['mean'] == pytest.approx(pooled, abs=1e-12)
    assert entry['ci_low'] <= pooled <= entry['ci_high'] and entry['n'] == 3
    assert entry == global_dice(maps, cases)
    assert global_dice([maps[0] * np.nan], cases[:1])['mean'] is None
    rows = evaluate.score_method(maps, None, cases, 0.3)
    assert evaluate.summarise(rows, {'dice_global': entry})['dice_global'] == entry
    oracle = np.mean([row['dice_oracle'] for row in rows])
    assert oracle >= np.mean([row['dice_validated'] for row in rows])


def test_sensitivity_of_a_perfect_and_of_a_blank_map(cases):
    maps = [perfect(c) for c in cases]
    entry = sensitivity_at_fp(maps, cases)
    assert entry == {'mean': 1.0, 'ci_low': 1.0, 'ci_high': 1.0, 'n': 3}
    flat = [np.ones(c.image.shape) for c in cases]  # one region a scan, that touches the lesion
    assert sensitivity_at_fp(flat, cases)['mean'] == 0.0
    rows = evaluate.score_method(maps, None, cases, 0.3)
    summary = evaluate.summarise(rows, {'sensitivity_1fp': entry})
    assert summary['sensitivity_1fp'] == entry and summary['dice_global']['mean'] is None


def test_sensitivity_counts_the_false_regions_of_the_cohort(cases):
    # In every scan three specks outshine the lesion; the first scan's lesion is not seen at all.
    maps = [perfect(c) for c in cases]
    maps[0] = np.zeros_like(maps[0])
    for one in maps:
        for place in ((10, 5, 9), (10, 18, 9), (4, 12, 9)):
            one[place[0] : place[0] + 2, place[1], place[2]] = 2.0
    entry = sensitivity_at_fp(maps, cases)
    assert entry['mean'] == entry['ci_low'] == entry['ci_high'] == 0.0  # three a scan: never 1
    entry = sensitivity_at_fp(maps, cases, false_per_scan=3.0)
    assert entry['mean'] == pytest.approx(2 / 3) and entry['n'] == 3
    assert entry['ci_low'] < 2 / 3 < entry['ci_high']
    assert entry == sensitivity_at_fp(maps, cases, false_per_scan=3.0)
    # Specks of two voxels (0.128 ml) are no finding where those must have 0.2 ml.
    assert sensitivity_at_fp(maps, cases, min_lesion_ml=0.2)['mean'] == entry['mean']
    # Healthy scans without a false region make room for the others' on average.
    healthy = [dataclasses.replace(c, lesion=np.zeros_like(c.lesion)) for c in cases] * 2
    quiet = [np.zeros_like(m) for m in maps] * 2
    roomy = sensitivity_at_fp(maps + quiet, cases + healthy)
    assert roomy['mean'] == entry['mean'] and roomy['n'] == 9


def test_sensitivity_of_what_cannot_be_scored(cases):
    nothing = {'mean': None, 'ci_low': None, 'ci_high': None, 'n': 0}
    maps, case = [perfect(cases[0])], cases[0]
    unknown = dataclasses.replace(case, lesion=None)
    healthy = dataclasses.replace(case, lesion=np.zeros_like(case.lesion))
    empty = dataclasses.replace(healthy, brain=np.zeros_like(case.brain))
    for subject in (unknown, healthy, empty):
        assert sensitivity_at_fp(maps, [subject]) == nothing
    assert sensitivity_at_fp([maps[0] * np.nan], [case]) == nothing
    assert sensitivity_at_fp([], []) == nothing
    assert sensitivity_at_fp(maps, [case]) == nothing | {'mean': 1.0, 'n': 1}
    mixed = sensitivity_at_fp([maps[0], maps[0] * np.nan, maps[0]], [case, case, unknown])
    assert mixed == nothing | {'mean': 1.0, 'n': 1}
    # Resamples of healthy subjects alone have no sensitivity and do not pull the interval to 0.
    both = sensitivity_at_fp([*maps, 0 * maps[0]], [case, healthy])
    assert both == {'mean': 1.0, 'ci_low': 1.0, 'ci_high': 1.0, 'n': 2}
