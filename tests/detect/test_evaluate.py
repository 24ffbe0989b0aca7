"""Rows per subject, their summary, and the files they end in."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from fluidjax.detect import baselines, evaluate, metrics
from fluidjax.detect.scores import SCORES
from fluidjax.errors import UserError


@pytest.fixture(scope='module')
def cases(make_case):
    return [make_case('a'), make_case('b', centre=(6, 8, 9), radius=2.0),
            make_case('c', centre=(10, 16, 9), radius=3.5)]


def perfect(case):
    return np.abs(case.image - case.healthy)


def noisy(case, seed):
    rng = np.random.default_rng(seed)
    return np.where(case.brain, perfect(case) + 0.3 * rng.random(case.image.shape), 0.0)


def test_a_perfect_method(cases):
    rows = evaluate.score_method([perfect(c) for c in cases], [c.healthy for c in cases], cases,
                                 threshold=0.01, seconds=[1.0, 2.0, 3.0])
    assert [row['name'] for row in rows] == ['a', 'b', 'c']
    for row, case in zip(rows, cases):
        assert row['lesion_ml'] == pytest.approx(case.lesion.sum() * 0.064)
        for score in ('dice_validated', 'dice_oracle', 'ap', 'auroc', 'lesion_f1', 'ssim'):
            assert row[score] == pytest.approx(1.0), score
        assert row['fpr'] == 0.0 and row['l1'] == 0.0
        assert row['psnr'] == pytest.approx(metrics.MAX_PSNR)
    assert evaluate.summarise(rows)['seconds']['mean'] == 2.0


def test_scores_leave_the_background_out(cases):
    case = cases[0]
    everything = np.where(case.brain, perfect(case), 9.0)  # high outside the brain
    [row] = evaluate.score_method([everything], None, [case], 0.01, 0.5)
    assert row['dice_validated'] == 1.0 and row['fpr'] == 0.0 and row['lesion_f1'] == 1.0
    assert row['l1'] is None and row['psnr'] is None and row['ssim'] is None
    assert row['seconds'] == 0.5


def test_a_lesion_outside_the_brain_mask_counts_as_missed(cases):
    holed = dataclasses.replace(cases[0], brain=cases[0].brain & ~cases[0].lesion)
    [row] = evaluate.score_method([np.zeros(holed.image.shape)], None, [holed], 0.5)
    assert row['dice_validated'] == 0.0 and row['lesion_f1'] == 0.0


def test_without_the_healthy_image_the_lesion_is_left_out(cases):
    case = dataclasses.replace(cases[0], healthy=None)
    repaired = np.where(case.lesion, cases[0].healthy, case.image)
    wrong = np.where(case.lesion, case.image, case.image + 0.1)
    good, bad = (evaluate.score_method([perfect(cases[0])], [c], [case], 0.1)[0]
                 for c in (repaired, wrong))
    assert good['l1'] == 0.0 and good['ssim'] == pytest.approx(1.0)
    assert bad['l1'] == pytest.approx(0.1, abs=1e-6)
    assert bad['psnr'] == pytest.approx(20.0, abs=1e-3)


def test_a_subject_without_a_mask_and_a_healthy_one(cases):
    unknown = dataclasses.replace(cases[0], lesion=None)
    healthy = dataclasses.replace(cases[0], lesion=np.zeros_like(cases[0].lesion),
                                  image=cases[0].healthy)
    rows = evaluate.score_method([perfect(cases[0])] * 2, [cases[0].healthy] * 2,
                                 [unknown, healthy], 0.1, 1.0)
    assert all(rows[0][s] is None for s in SCORES if s not in ('dice_global', 'seconds'))
    assert rows[0]['lesion_ml'] is None and rows[0]['seconds'] == 1.0
    assert rows[1]['lesion_ml'] == 0.0 and rows[1]['dice_validated'] is None
    assert rows[1]['fpr'] > 0 and rows[1]['l1'] == 0.0
    summary = evaluate.summarise(rows)
    assert summary['dice_oracle'] == {'mean': None, 'ci_low': None, 'ci_high': None, 'n': 0}
    assert summary['fpr']['n'] == 1 and summary['fpr']['ci_low'] is None


def test_nan_in_a_map_or_no_threshold_gives_none(cases):
    broken = perfect(cases[0]).copy()
    broken[10, 12, 9] = np.nan
    rows = evaluate.score_method([broken, perfect(cases[1])], None, cases[:2], float('nan'))
    for score in ('dice_validated', 'dice_oracle', 'ap', 'auroc', 'fpr', 'lesion_f1'):
        assert rows[0][score] is None, score
    assert rows[1]['dice_oracle'] == 1.0
    assert rows[1]['dice_validated'] is None and rows[1]['fpr'] is None
    assert rows[1]['lesion_f1'] is None
    json.dumps(rows, allow_nan=False)


def test_bootstrap_is_deterministic_and_sensible():
    values = np.random.default_rng(0).normal(0.5, 0.1, 40)
    entry = evaluate.bootstrap_mean(values)
    assert entry == evaluate.bootstrap_mean(values)
    assert entry != evaluate.bootstrap_mean(values, seed=1)
    assert entry['mean'] == pytest.approx(values.mean()) and entry['n'] == 40
    half = 1.96 * values.std() / math.sqrt(40)  # of the normal approximation
    assert entry['ci_high'] - entry['mean'] == pytest.approx(half, rel=0.15)
    assert entry['mean'] - entry['ci_low'] == pytest.approx(half, rel=0.15)
    assert evaluate.bootstrap_mean([*values, None, math.nan]) == entry


def test_bootstrap_of_few():
    nothing = {'mean': None, 'ci_low': None, 'ci_high': None, 'n': 0}
    assert evaluate.bootstrap_mean([None]) == nothing
    assert evaluate.bootstrap_mean([0.4]) == nothing | {'mean': 0.4, 'n': 1}
    two = evaluate.bootstrap_mean([0.2, 0.6])
    assert (two['ci_low'], two['ci_high']) == (0.2, 0.6)


def test_global_dice_is_the_best_pooled_dice(cases):
    maps = [noisy(c, i) for i, c in enumerate(cases)]
    entry = evaluate.global_dice(maps, cases)
    pooled = metrics.best_dice(np.concatenate([m[c.brain] for m, c in zip(maps, cases)]),
                               np.concatenate([c.lesion[c.brain] for c in cases]))[0]
    assert entry['mean'] == pytest.approx(pooled, abs=1e-12)
    assert entry['ci_low'] <= pooled <= entry['ci_high'] and entry['n'] == 3
    assert entry == evaluate.global_dice(maps, cases)
    assert evaluate.global_dice([maps[0] * np.nan], cases[:1])['mean'] is None
    rows = evaluate.score_method(maps, None, cases, 0.3)
    assert evaluate.summarise(rows, entry)['dice_global'] == entry
    oracle = np.mean([row['dice_oracle'] for row in rows])
    assert oracle >= np.mean([row['dice_validated'] for row in rows])


def test_metrics_json(tmp_path, cases):
    rows = evaluate.score_method([perfect(c) for c in cases], None, cases, 0.1)
    summary = evaluate.summarise(rows, evaluate.global_dice([perfect(c) for c in cases], cases))
    path = tmp_path / 'eval' / 'metrics.json'
    evaluate.write_metrics(path, {'simulated': {'conddiff': summary}})
    read = json.loads(path.read_text())['simulated']['conddiff']
    assert list(read) == ['dice_validated', 'dice_global', 'dice_oracle', 'ap', 'auroc', 'fpr',
                          'lesion_f1', 'l1', 'psnr', 'ssim', 'seconds']
    assert all(set(entry) == {'mean', 'ci_low', 'ci_high', 'n'} for entry in read.values())
    assert read['l1']['mean'] is None and read['ap']['mean'] == 1.0
    assert [p.name for p in path.parent.iterdir()] == ['metrics.json']


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'metrics.json'
    evaluate.write_text(path, 'old')
    with pytest.raises(UnicodeEncodeError):
        evaluate.write_text(path, 'new \ud800')
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_subjects_csv(tmp_path, cases):
    rows = evaluate.score_method([perfect(c) for c in cases], None, cases, 0.1)
    rows = [row | {'method': 'a, "b"', 'cohort': 'x'} for row in rows]
    evaluate.write_subjects_csv(tmp_path / 'subjects.csv', rows)
    with open(tmp_path / 'subjects.csv', newline='') as file:
        read = list(csv.DictReader(file))
    assert list(read[0])[:4] == ['cohort', 'method', 'name', 'lesion_ml']
    assert [row['name'] for row in read] == ['a', 'b', 'c'] and read[0]['method'] == 'a, "b"'
    assert float(read[1]['ap']) == rows[1]['ap'] and read[0]['l1'] == ''


def test_intensity_map(cases):
    case = cases[0]
    dark = baselines.intensity_map(case.image, case.brain, darker=True)
    bright = baselines.intensity_map(case.image, case.brain, darker=False)
    np.testing.assert_allclose((dark + bright)[case.brain], 1.0)
    assert not dark[~case.brain].any() and not bright[~case.brain].any()
    [row] = evaluate.score_method([dark], None, [case], 0.7)
    assert row['dice_validated'] == 1.0


def test_mean_brain(cases):
    mean = baselines.mean_brain(c.image for c in cases)
    np.testing.assert_allclose(mean, np.mean([c.image for c in cases], axis=0), atol=1e-6)
    assert mean.dtype == np.float32
    with pytest.raises(UserError, match='no training images'):
        baselines.mean_brain([])
    with pytest.raises(UserError, match='training image 1 has shape'):
        baselines.mean_brain([mean, mean[1:]])
