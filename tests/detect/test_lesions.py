"""Lesions by connected components: found, missed, false, and over a sweep of thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fluidjax.detect import lesions


def two_lesions():
    truth, predicted = np.zeros((2, 12, 12, 12), bool)
    truth[1:3, 1:3, 1:3] = truth[3, 3, 3] = True  # touching by a corner: one lesion
    truth[8:10, 8:10, 8:10] = True
    predicted[3, 3, 3] = predicted[4, 4, 4] = True  # finds the first
    predicted[1, 10, 10] = True  # false, one voxel
    predicted[6:8, 1:3, 8:10] = True  # false, eight voxels
    return predicted, truth


def test_lesion_counts():
    predicted, truth = two_lesions()
    assert lesions.lesion_counts(predicted, truth, 0.064) == (1, 1, 2)
    assert lesions.lesion_counts(predicted, truth, 0.064, min_lesion_ml=0.1) == (1, 1, 1)
    assert lesions.lesion_counts(predicted, truth, 0.064, min_lesion_ml=0.2) == (0, 2, 1)


def test_lesion_scores():
    predicted, truth = two_lesions()
    scores = lesions.lesion_scores(predicted, truth, 0.064)
    assert scores['lesion_precision'] == pytest.approx(1 / 3)
    assert scores['lesion_recall'] == pytest.approx(1 / 2)
    assert scores['lesion_f1'] == pytest.approx(2 / (2 + 1 + 2))
    assert lesions.lesion_scores(predicted, truth, 0.064, 0.1)['lesion_precision'] == 0.5


def test_one_predicted_component_may_find_two_lesions():
    truth, predicted = np.zeros((2, 3, 3, 9), bool)
    truth[1, 1, [1, 7]] = True
    predicted[1, 1, 1:8] = True
    assert lesions.lesion_counts(predicted, truth, 1.0) == (2, 0, 0)


def test_a_lesion_in_pieces_is_found_once():
    truth, predicted = np.zeros((2, 3, 3, 9), bool)
    truth[1, 1, 1:8] = True
    predicted[1, 1, [1, 4, 7]] = True
    assert lesions.lesion_counts(predicted, truth, 1.0) == (1, 0, 0)


def test_a_marked_brain_is_no_hit_where_hits_must_overlap():
    truth, everything = np.zeros((10, 10, 10), bool), np.ones((10, 10, 10), bool)
    truth[2:4, 2:4, 2:4] = True
    assert lesions.lesion_counts(everything, truth, 1.0) == (1, 0, 0)
    assert lesions.lesion_counts(everything, truth, 1.0, min_hit_share=0.1) == (0, 1, 1)
    loose = np.zeros_like(truth)
    loose[1:5, 1:5, 1:5] = True  # 8 of its 64 voxels are lesion
    assert lesions.lesion_counts(loose, truth, 1.0, min_hit_share=8 / 64) == (1, 0, 0)
    assert lesions.lesion_counts(loose, truth, 1.0, min_hit_share=9 / 64) == (0, 1, 1)


def test_without_lesion_or_prediction():
    truth, empty = np.zeros((2, 4, 4, 4), bool)
    truth[1, 1, 1] = True
    assert all(math.isnan(v) for v in lesions.lesion_scores(truth, empty, 1.0).values())
    nothing = lesions.lesion_scores(empty, truth, 1.0)
    assert math.isnan(nothing['lesion_precision'])
    assert nothing['lesion_recall'] == nothing['lesion_f1'] == 0.0
    for mask in (truth, ~empty):
        assert set(lesions.lesion_scores(mask, mask, 1.0).values()) == {1.0}


def test_sweep_thresholds_mark_from_few_to_half():
    one = np.ones(200000, int)
    thresholds = lesions.sweep_thresholds(np.arange(200000.0), one)
    assert len(thresholds) == lesions.SWEEP and np.all(np.diff(thresholds) > 0)
    assert (thresholds[0], thresholds[-1]) == (100000.0, 199980.0)
    pairs = lesions.sweep_thresholds(np.arange(0.0, 200000, 2), 2 * one[::2])  # every score twice
    np.testing.assert_array_equal(pairs, thresholds - thresholds % 2)
    assert lesions.sweep_thresholds(np.array([0.5]), np.array([9])).tolist() == [0.5]
    assert lesions.sweep_thresholds(np.empty(0), np.empty(0, int)).size == 0


def test_sweep_counts_equal_the_counts_one_by_one():
    rng = np.random.default_rng(3)
    region = np.zeros((9, 10, 11), bool)
    region[2:8, 1:9, 3:10] = True
    truth = region & (rng.random(region.shape) < 0.02)
    scores = rng.random(region.shape) + truth
    thresholds = [0.2, 0.9, 1.1, 1.5, 3.0]
    counts = lesions.sweep_counts(
        scores, truth, region, thresholds, 1.0, min_lesion_ml=2.0, min_hit_share=0.3
    )
    alone = [
        lesions.lesion_counts((scores >= t) & region, truth, 1.0, 2.0, 0.3) for t in thresholds
    ]
    np.testing.assert_array_equal(counts, alone)
    assert counts[:, 2].max() > 0 and counts[:, 0].max() > 0
    nowhere = lesions.sweep_counts(scores, truth, region & ~region, thresholds, 1.0)
    assert nowhere.shape == (5, 3) and not nowhere.any()


def test_lesions_are_counted_by_their_size():
    spacing = (2.0, 2.0, 2.0)  # 0.008 ml
    truth = np.zeros((60, 60, 60), bool)
    truth[2:4, 2:4, 2:4] = True  # 0.064 ml
    truth[10:20, 10:20, 10:20] = True  # 8 ml
    truth[30:50, 30:50, 30:50] = True  # 64 ml
    marked = np.zeros_like(truth)
    marked[12:15, 12:15, 12:15] = True
    marked[30:50, 30:50, 30:45] = True
    marked[55:58, 2:5, 2:5] = True  # on nothing
    sized = lesions.SizedLesions()
    sized.add(marked, truth, spacing, 0.008)
    sized.add(np.zeros_like(truth), truth[::-1], spacing, 0.008)
    scores = sized.scores()
    assert scores['found_below_1ml'] == (0.0, 2)
    assert scores['found_5_to_20ml'] == (0.5, 2) and scores['found_above_20ml'] == (0.5, 2)
    assert math.isnan(scores['found_1_to_5ml'][0]) and scores['found_1_to_5ml'][1] == 0
    assert scores['false_regions'] == (0.5, 2)
    # Voxels deeper than 4 mm: 16 of each 20; marked up to the 45th of the 30th to 50th.
    assert scores['core_found'] == (16 * 16 * 13 / (2 * 16**3), 2 * 16**3)


def test_a_region_that_covers_everything_finds_nothing():
    truth = np.zeros((20, 20, 20), bool)
    truth[5:7, 5:7, 5:7] = True
    sized = lesions.SizedLesions()
    sized.add(np.ones_like(truth), truth, (4.0, 4.0, 4.0), 0.064)
    assert sized.scores()['found_below_1ml'] == (0.0, 1)
    assert sized.scores()['false_regions'] == (1.0, 1)


def test_true_lesions_that_nothing_may_find_do_not_count():
    truth = np.zeros((12, 12, 12), bool)
    truth[0, 0, 0] = truth[4:8, 4:8, 4:8] = True
    scores = lesions.lesion_scores(truth, truth, voxel_ml=0.064, min_lesion_ml=0.1)
    assert scores['lesion_recall'] == scores['lesion_f1'] == scores['lesion_precision'] == 1.0
    nothing = lesions.lesion_scores(truth, truth & (np.arange(12) < 1), 0.064, 0.1)
    assert np.isnan(nothing['lesion_f1'])
