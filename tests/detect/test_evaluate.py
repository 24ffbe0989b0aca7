"""Rows per subject, their summary, and the files they end in."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os

import numpy as np
import pytest
from subjects import perfect

from fluidjax.base.errors import UserError
from fluidjax.detect import baselines, evaluate, metrics
from fluidjax.detect.scores import COHORT_SCORES, SCORES, verdict


def test_a_perfect_method(cases):
    rows = evaluate.score_method(
        [perfect(c) for c in cases],
        [c.healthy for c in cases],
        cases,
        threshold=0.01,
        seconds=[1.0, 2.0, 3.0],
    )
    assert [row['name'] for row in rows] == ['a', 'b', 'c']
    for row, case in zip(rows, cases):
        assert row['lesion_ml'] == pytest.approx(case.lesion.sum() * 0.064)
        for score in (
            'dice_validated',
            'dice_oracle',
            'ap',
            'auroc',
            *evaluate.LESION_SCORES,
            'ssim',
            'ssim_outside',
            'contrast_removed',
        ):
            assert row[score] == pytest.approx(1.0), score
        assert row['fpr'] == row['l1'] == row['l1_outside'] == row['healthy_changed'] == 0.0
        assert row['psnr_outside'] == pytest.approx(metrics.MAX_PSNR)
        assert row['psnr'] == row['psnr_inside'] == pytest.approx(metrics.MAX_PSNR)
    assert evaluate.summarise(rows)['seconds']['mean'] == 2.0


def test_a_filled_scan_is_nearer_to_the_healthy_image_in_the_lesion(cases):
    case = cases[0]
    lesion = case.brain & (case.lesion > 0)
    dark = case.healthy - 0.1 * case.brain  # the level of its surroundings mends it
    [row] = evaluate.score_method([perfect(case)], [dark], [case], None)
    assert row['l1_inside'] == pytest.approx(0.1, abs=1e-4)
    assert row['l1_filled'] < 0.7 * row['l1_inside']
    assert row['psnr_filled'] > row['psnr_inside'] + 1
    before = np.abs(case.image - case.healthy)[lesion].mean()
    assert row['l1_filled'] < 0.5 * before
    unknown = dataclasses.replace(case, healthy=None)
    [row] = evaluate.score_method([perfect(case)], [dark], [unknown], None)
    assert row['l1_inside'] is None and row['l1_filled'] is None


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
    good, bad = (
        evaluate.score_method([perfect(cases[0])], [c], [case], 0.1)[0] for c in (repaired, wrong)
    )
    assert good['l1'] == 0.0 and good['ssim'] == pytest.approx(1.0)
    assert bad['l1'] == pytest.approx(0.1, abs=1e-6)
    assert bad['psnr'] == pytest.approx(20.0, abs=1e-3)
    for row in (good, bad):
        assert row['contrast_removed'] is None
        assert all(row[s] == row[f'{s}_outside'] for s in ('l1', 'psnr', 'ssim'))


def test_counterparts_are_scored_outside_the_lesion_too(cases):
    case = cases[0]
    within = np.where(case.lesion, 0.0, case.healthy)  # wrong in the lesion alone
    beyond = np.where(case.lesion, case.healthy, case.image + 0.1 * case.brain)
    inner, outer = (
        evaluate.score_method([perfect(case)], [c], [case], 0.1)[0] for c in (within, beyond)
    )
    assert inner['l1'] > 0 and inner['ssim'] < 1
    assert inner['l1_outside'] == inner['healthy_changed'] == 0.0
    assert inner['ssim_outside'] == pytest.approx(1.0)
    assert inner['contrast_removed'] < 0
    assert outer['contrast_removed'] == pytest.approx(1.0)
    assert outer['l1_outside'] == pytest.approx(0.1, abs=1e-6)
    assert outer['psnr_outside'] == pytest.approx(20.0, abs=1e-3)
    level = case.image[case.brain & ~case.lesion].mean()
    assert outer['healthy_changed'] == pytest.approx(0.1 / level, abs=1e-5)


def test_what_a_counterpart_mask_hides_is_not_the_contrast_left(cases):
    cut = cases[0].brain.copy()
    cut[:14] = False
    case = dataclasses.replace(cases[0], brain=cut)  # half of the lesion is outside the brain
    assert 0 < (case.lesion & cut).sum() < case.lesion.sum()
    [row] = evaluate.score_method([perfect(case)], [np.where(cut, case.healthy, 0)], [case], 0.1)
    assert row['contrast_removed'] == pytest.approx(1.0)


@pytest.mark.parametrize(
    'name, made, expected',
    [
        ('copy', lambda c: c.image, 'copies the scan'),
        ('blank', lambda c: 0 * c.image, 'blank'),
        ('healthy', lambda c: c.healthy, ''),
        ('half removed', lambda c: (c.image + c.healthy) / 2, ''),
        ('blurred copy', lambda c: 0.9 * c.image, ''),
    ],
)
def test_verdict(cases, name, made, expected):
    rows = evaluate.score_method([perfect(c) for c in cases], [made(c) for c in cases], cases, 0.1)
    assert verdict(evaluate.summarise(rows)) == expected


def test_verdict_without_the_healthy_image(cases):
    unknown = [dataclasses.replace(c, healthy=None) for c in cases]
    maps = [perfect(c) for c in cases]
    blank, copy, none = (
        evaluate.summarise(evaluate.score_method(maps, made, unknown, 0.1))
        for made in ([0 * c.image for c in cases], [c.image for c in cases], None)
    )
    assert verdict(blank) == 'blank'
    assert verdict(copy) == verdict(none) == verdict({}) == ''


def test_a_subject_without_a_mask_and_a_healthy_one(cases):
    unknown = dataclasses.replace(cases[0], lesion=None)
    healthy = dataclasses.replace(
        cases[0], lesion=np.zeros_like(cases[0].lesion), image=cases[0].healthy
    )
    rows = evaluate.score_method(
        [perfect(cases[0])] * 2, [cases[0].healthy] * 2, [unknown, healthy], 0.1, 1.0
    )
    assert all(rows[0][s] is None for s in SCORES if s not in (*COHORT_SCORES, 'seconds'))
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
    for score in ('dice_validated', 'dice_oracle', 'ap', 'auroc', 'fpr', *evaluate.LESION_SCORES):
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


def test_a_mask_of_ones_and_an_empty_brain(cases):
    case = cases[0]
    full = dataclasses.replace(case, lesion=np.ones_like(case.lesion))
    none = np.zeros_like(case.lesion)
    empty = dataclasses.replace(case, brain=none, lesion=none)
    rows = evaluate.score_method([perfect(case)] * 2, [case.healthy] * 2, [full, empty], 0.1, 1.0)
    undefined = ['auroc', 'fpr', 'l1_outside', 'psnr_outside', 'ssim_outside', 'healthy_changed']
    undefined.append('sharpness')
    assert all(rows[0][score] is None for score in undefined)
    assert rows[0]['dice_oracle'] == rows[0]['lesion_recall'] == 1.0
    assert rows[0]['ap'] == pytest.approx(1.0)
    assert rows[0]['l1'] == 0.0 and rows[0]['contrast_removed'] == pytest.approx(1.0)
    assert all(v is None for s, v in rows[1].items() if s not in ('name', 'lesion_ml', 'seconds'))
    json.dumps(evaluate.summarise(rows), allow_nan=False)


def test_nan_in_a_counterpart_gives_none(cases):
    broken = cases[0].healthy.copy()
    broken[10, 12, 9] = np.nan
    [row] = evaluate.score_method([perfect(cases[0])], [broken], cases[:1], 0.1)
    assert row['l1'] is None and row['l1_outside'] is None and row['healthy_changed'] is None
    assert row['contrast_removed'] == pytest.approx(1.0)  # the NaN is not in the lesion
    json.dumps(row, allow_nan=False)


def test_rows_by_size():
    sizes = [0.1, 9.99, 10.0, 49.0, 50.0, 300.0, 0.0, None]
    rows = [{'name': str(v), 'lesion_ml': v, 'ap': v} for v in sizes]
    strata = evaluate.by_size(rows)
    assert {name: [row['lesion_ml'] for row in chosen] for name, chosen in strata.items()} == {
        'below 10 ml': [0.1, 9.99],
        '10 to 50 ml': [10.0, 49.0],
        'above 50 ml': [50.0, 300.0],
    }
    assert list(evaluate.by_size([], (2.5,))) == ['below 2.5 ml', 'above 2.5 ml']
    for edges in ((), (5.0, 5.0), (50.0, 10.0)):
        with pytest.raises(ValueError, match='must be ascending'):
            evaluate.by_size(rows, edges)


def test_every_score_says_what_it_is():
    for name, score in SCORES.items():
        assert score.better in (-1, 0, 1) and score.digits >= 0, name
        assert score.label and score.explanation.rstrip().endswith('.'), name
    assert set(COHORT_SCORES) < set(SCORES)


def test_metrics_json(tmp_path, cases):
    rows = evaluate.score_method([perfect(c) for c in cases], None, cases, 0.1)
    summary = evaluate.summarise(rows, {'dice_global': evaluate.bootstrap_mean([1.0])})
    path = tmp_path / 'eval' / 'metrics.json'
    evaluate.write_metrics(path, {'simulated': {'conddiff': summary}})
    read = json.loads(path.read_text())['simulated']['conddiff']
    assert list(read) == [
        'dice_validated',
        'dice_global',
        'dice_best',
        'threshold_loss',
        'dice_oracle',
        'ap',
        'auroc',
        'fpr',
        'lesion_f1',
        'lesion_precision',
        'lesion_recall',
        'sensitivity_1fp',
        'found_below_1ml',
        'found_1_to_5ml',
        'found_5_to_20ml',
        'found_above_20ml',
        'core_found',
        'false_regions',
        'calibration_error',
        'healthy_ml',
        'healthy_ml_90',
        'strict_ml',
        'strict_ml_90',
        'l1',
        'psnr',
        'ssim',
        'l1_outside',
        'psnr_outside',
        'ssim_outside',
        'l1_inside',
        'psnr_inside',
        'ssim_inside',
        'l1_filled',
        'psnr_filled',
        'ssim_filled',
        'sharpness',
        'contrast_removed',
        'healthy_changed',
        'seconds',
    ]
    assert all(set(entry) == {'mean', 'ci_low', 'ci_high', 'n'} for entry in read.values())
    assert read['l1']['mean'] is None and read['ap']['mean'] == 1.0
    assert [p.name for p in path.parent.iterdir()] == ['metrics.json']


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'metrics.json'
    evaluate.write_text(path, 'old')

    def fails(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', fails)
    with pytest.raises(OSError, match='No space left'):
        evaluate.write_text(path, 'new')
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


def test_mean_and_spread(cases):
    mean, spread = baselines.mean_and_spread(c.image for c in cases)
    expected = np.std([c.image for c in cases], axis=0)
    np.testing.assert_allclose(spread, np.maximum(expected, baselines.LEAST_SPREAD), atol=1e-6)
    np.testing.assert_allclose(mean, np.mean([c.image for c in cases], axis=0), atol=1e-6)
    assert mean.dtype == np.float32
    with pytest.raises(UserError, match='no training images'):
        baselines.mean_and_spread([])
    with pytest.raises(UserError, match='training image 1 has shape'):
        baselines.mean_and_spread([mean, mean[1:]])
