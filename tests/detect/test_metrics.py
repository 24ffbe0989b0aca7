"""Scores agree with scikit-learn, with the published numbers, and are defined at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from fluidjax.detect import metrics

EMPTY = np.zeros(6, bool)
SCORES = np.array([0.1, 0.9, 0.4, 0.9, 0.2, 0.0])


@pytest.fixture(scope='module', params=['continuous', 'tied'])
def sample(request):
    rng = np.random.default_rng(5)
    truth = rng.random((12, 13, 14)) < 0.08
    scores = (rng.normal(size=truth.shape) + 1.3 * truth).astype(np.float32)
    return (scores if request.param == 'continuous' else np.round(scores * 3) / 3), truth


def test_voxel_scores_agree_with_scikit_learn(sample):
    scores, truth = sample
    region = np.zeros(truth.shape, bool)
    region[2:, 1:-1] = True
    s, t = scores[region], truth[region]
    precision, recall, thresholds = precision_recall_curve(t, s)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    dice, threshold = metrics.best_dice(scores, truth, region)
    assert dice == pytest.approx(f1.max(), abs=1e-6)
    assert f1[np.flatnonzero(thresholds == threshold)[0]] == pytest.approx(dice, abs=1e-6)
    assert metrics.dice_at(scores, truth, 0.7, region) == pytest.approx(
        f1_score(t, s >= 0.7), abs=1e-6
    )
    assert metrics.average_precision(scores, truth, region) == pytest.approx(
        average_precision_score(t, s), abs=1e-6
    )
    assert metrics.auroc(scores, truth, region) == pytest.approx(roc_auc_score(t, s), abs=1e-6)
    assert metrics.false_positive_rate(scores, truth, 0.7, region) == pytest.approx(
        ((s >= 0.7) & ~t).sum() / (~t).sum(), abs=1e-12
    )


def test_best_dice_is_reached_at_its_threshold(sample):
    dice, threshold = metrics.best_dice(*sample)
    assert metrics.dice_at(*sample, threshold) == pytest.approx(dice, abs=1e-12)
    assert max(metrics.dice_at(*sample, t) for t in np.linspace(-3, 4, 60)) <= dice


@pytest.mark.parametrize('name', ['anomaly_36x40x52_erode2.npz', 'anomaly_40x48x40.npz'])
def test_golden_scores(golden_dir, name):
    golden = dict(np.load(golden_dir / name))
    pair = golden['anomaly_map'], golden['gt_mask']
    dice, threshold = metrics.best_dice(*pair)
    assert dice == pytest.approx(float(golden['best_dice']), abs=1e-12)
    assert threshold == float(golden['best_threshold'])
    assert metrics.average_precision(*pair) == pytest.approx(float(golden['AP']), abs=1e-9)
    assert metrics.auroc(*pair) == pytest.approx(float(golden['AUC']), abs=1e-9)
    above = np.nextafter(np.float32(threshold), np.float32(2))  # the published FPR is strict
    assert metrics.false_positive_rate(*pair, above) == pytest.approx(
        float(golden['FPR']), abs=1e-12
    )
    assert metrics.dice_at(*pair, above) == pytest.approx(
        float(golden['dice_strict_gt']), abs=1e-12
    )


def test_no_true_voxel():
    assert all(math.isnan(v) for v in metrics.best_dice(SCORES, EMPTY))
    assert math.isnan(metrics.dice_at(SCORES, EMPTY, 0.5))
    assert math.isnan(metrics.average_precision(SCORES, EMPTY))
    assert math.isnan(metrics.auroc(SCORES, EMPTY))
    assert metrics.false_positive_rate(SCORES, EMPTY, 0.5) == pytest.approx(2 / 6)


def test_average_precision_by_hand_with_ties():
    scores, truth = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 1, 0, 0], bool)
    # The tied go together: recall 1/3 at precision 1/2, then 1 at 3/5.
    assert metrics.average_precision(scores, truth) == pytest.approx(1 / 3 / 2 + 2 / 3 * 3 / 5)
    # Of 9 pairs of a lesion and a healthy voxel: 4 in order, 3 tied at half, 2 the wrong way.
    assert metrics.auroc(scores, truth) == pytest.approx((4 + 3 / 2) / 9)
    assert metrics.best_dice(scores, truth) == (pytest.approx(2 * 3 / (5 + 3)), 0.5)


def test_every_voxel_true():
    assert metrics.best_dice(SCORES, ~EMPTY) == (1.0, 0.0)
    assert metrics.average_precision(SCORES, ~EMPTY) == 1.0
    assert math.isnan(metrics.auroc(SCORES, ~EMPTY))
    assert math.isnan(metrics.false_positive_rate(SCORES, ~EMPTY, 0.5))


def test_empty_prediction_and_constant_map():
    truth = np.array([1, 0, 0, 1, 0, 0], bool)
    assert metrics.dice_at(SCORES, truth, 2.0) == 0.0
    dice, threshold = metrics.best_dice(np.full(6, 0.25), truth)
    assert (dice, threshold) == (pytest.approx(2 * 2 / (6 + 2)), 0.25)
    assert metrics.average_precision(np.full(6, 0.25), truth) == pytest.approx(2 / 6)
    assert metrics.auroc(np.full(6, 0.25), truth) == pytest.approx(0.5)


def test_empty_region_and_nan_in_the_map():
    truth = np.array([1, 0, 0, 1, 0, 0], bool)
    broken = np.where(truth, np.nan, SCORES)
    for scores, region in ((SCORES, EMPTY), (broken, None)):
        assert math.isnan(metrics.best_dice(scores, truth, region)[0])
        assert math.isnan(metrics.dice_at(scores, truth, 0.5, region))
        assert math.isnan(metrics.average_precision(scores, truth, region))
        assert math.isnan(metrics.auroc(scores, truth, region))
        assert math.isnan(metrics.false_positive_rate(scores, truth, 0.5, region))
    assert metrics.best_dice(broken, ~truth, ~truth) == (1.0, 0.0)  # the NaN lies elsewhere
    assert math.isnan(metrics.dice_at(SCORES, truth, float('nan')))


def test_image_scores():
    rng = np.random.default_rng(2)
    image = rng.random((16, 15, 14)).astype(np.float32)
    region = np.zeros(image.shape, bool)
    region[4:12, 4:12, 4:12] = True
    other = image + np.where(region, 0.1, 5.0)
    assert metrics.l1(other, image, region) == pytest.approx(0.1, abs=1e-6)
    assert metrics.psnr(other, image, region) == pytest.approx(20.0, abs=1e-4)
    assert metrics.psnr(image, image, region) == pytest.approx(metrics.MAX_PSNR)
    assert metrics.ssim(image, image, region) == pytest.approx(1.0)
    for score in (metrics.l1, metrics.psnr, metrics.ssim):
        assert math.isnan(score(image, image, np.zeros(image.shape, bool)))


def test_sharpness_falls_with_blur_and_knows_only_the_region():
    rng = np.random.default_rng(2)
    image = rng.random((16, 15, 14))
    region = np.zeros(image.shape, bool)
    region[2:14, 2:13, 2:12] = True
    assert metrics.sharpness(image, image, region) == 1.0
    assert metrics.sharpness(0.5 * image + 0.2, image, region) == pytest.approx(0.5)
    blurred = ndimage.gaussian_filter(image, 1.0)
    assert metrics.sharpness(blurred, image, region) < 0.4
    outside = np.where(region, image, 7.0)
    assert metrics.sharpness(outside, image, region) == 1.0
    assert math.isnan(metrics.sharpness(image, np.ones(image.shape), region))


def test_ssim_equals_scikit_image_and_cropping_changes_nothing():
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(2)
    image = ndimage.gaussian_filter(rng.random((30, 28, 26)), 1.0)
    other = image + 0.1 * rng.random(image.shape)
    region = np.zeros(image.shape, bool)
    region[11:15, 12:15, 10:14] = True
    full = structural_similarity(image, other, data_range=1.0, win_size=7, full=True)[1]
    assert metrics.ssim(other, image, region) == pytest.approx(full[region].mean(), abs=1e-9)
    assert metrics.ssim(other, image, region) < 0.999
    thin = slice(0, 5)
    assert 0 < metrics.ssim(other[thin], image[thin], np.ones((5, 28, 26), bool)) < 1


def test_contrast_removed():
    healthy, lesion = np.full((4, 4, 4), 0.6), np.zeros((4, 4, 4), bool)
    lesion[1:3, 1:3, 1:3] = True
    scan = np.where(lesion, 0.2, healthy)
    half = np.where(lesion, 0.4, 9.0)  # what lies outside the lesion does not matter
    worse = np.where(lesion, 0.0, healthy)
    removed = [
        metrics.contrast_removed(c, scan, healthy, lesion) for c in (healthy, half, scan, worse)
    ]
    assert removed == pytest.approx([1.0, 0.5, 0.0, -0.5])
    assert math.isnan(metrics.contrast_removed(half, healthy, healthy, lesion))
    assert math.isnan(metrics.contrast_removed(half, healthy + 1e-5, healthy, lesion))
    assert math.isnan(metrics.contrast_removed(half, scan, healthy, ~lesion & lesion))


def test_healthy_changed():
    scan, region = np.full((4, 4, 4), 0.5), np.zeros((4, 4, 4), bool)
    region[1:3] = True
    scan[0] = 7.0
    changed = [metrics.healthy_changed(c, scan, region) for c in (scan, 0 * scan, scan + 0.1)]
    assert changed == pytest.approx([0.0, 1.0, 0.2])
    assert math.isnan(metrics.healthy_changed(scan, 0 * scan, region))
    assert math.isnan(metrics.healthy_changed(scan, scan, region & ~region))
