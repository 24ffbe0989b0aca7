"""Scores of one anomaly map, and of one healthy counterpart.

numpy. A score that is not defined is NaN, not an exception: no lesion in the truth (Dice, AP,
AUROC), no healthy voxel (FPR, AUROC), an empty region, or a map with a NaN or an infinity. A voxel
is predicted where its score is >= the threshold. Voxel scores take arrays of any shape and
optionally the `region` (bool, same shape) in which they are computed.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.metrics import structural_similarity
from sklearn.metrics import average_precision_score, roc_auc_score

NAN = float('nan')
MAX_PSNR = 100.0  # of two identical images, in dB; keeps means finite
SSIM_WINDOW = 7
MIN_CONTRAST = 1e-3  # a quarter of a grey level of 256, which is invisible


def _in_region(scores, truth, region) -> tuple[np.ndarray, np.ndarray]:
    scores, truth = np.asarray(scores), np.asarray(truth).astype(bool)
    if region is None:
        return scores.ravel(), truth.ravel()
    region = np.asarray(region).astype(bool)
    return scores[region], truth[region]


def _rankable(scores: np.ndarray, truth: np.ndarray) -> bool:
    return bool(truth.any()) and bool(np.isfinite(scores).all())


def best_dice(
    scores: np.ndarray, truth: np.ndarray, region: np.ndarray | None = None
) -> tuple[float, float]:
    """The largest Dice over all thresholds, and the (highest) threshold that reaches it.

    All distinct scores are tried with one sort: Dice = 2 TP / (predicted + true).
    """
    scores, truth = _in_region(scores, truth, region)
    if not _rankable(scores, truth):
        return NAN, NAN
    order = np.argsort(-scores, kind='stable')
    ranked, hits = scores[order], np.cumsum(truth[order])
    last = np.r_[np.flatnonzero(np.diff(ranked)), ranked.size - 1]  # ties fall together
    dice = 2.0 * hits[last] / (last + 1 + hits[-1])
    best = int(np.argmax(dice))
    return float(dice[best]), float(ranked[last[best]])


def dice_at(
    scores: np.ndarray, truth: np.ndarray, threshold: float, region: np.ndarray | None = None
) -> float:
    """Dice of `scores >= threshold`: 0 where nothing is predicted, NaN where nothing is true."""
    hit, predicted, true = overlap_counts(scores, truth, threshold, region)
    return 2.0 * hit / (predicted + true) if true > 0 and np.isfinite(threshold) else NAN


def overlap_counts(
    scores: np.ndarray, truth: np.ndarray, threshold: float, region: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Numbers of voxels (both, predicted, true) at a threshold; NaN if a score is not finite."""
    scores, truth = _in_region(scores, truth, region)
    if not np.isfinite(scores).all():
        return NAN, NAN, NAN
    predicted = scores >= threshold
    return float((predicted & truth).sum()), float(predicted.sum()), float(truth.sum())


def average_precision(
    scores: np.ndarray, truth: np.ndarray, region: np.ndarray | None = None
) -> float:
    """Area under the precision-recall curve, as in scikit-learn (no interpolation)."""
    scores, truth = _in_region(scores, truth, region)
    return float(average_precision_score(truth, scores)) if _rankable(scores, truth) else NAN


def auroc(scores: np.ndarray, truth: np.ndarray, region: np.ndarray | None = None) -> float:
    """Area under the ROC curve; 0.5 for a constant map."""
    scores, truth = _in_region(scores, truth, region)
    if not _rankable(scores, truth) or truth.all():
        return NAN
    return float(roc_auc_score(truth, scores))


def false_positive_rate(
    scores: np.ndarray, truth: np.ndarray, threshold: float, region: np.ndarray | None = None
) -> float:
    """FP / (FP + TN) at a threshold; also defined without a lesion.

    The published code counts `score > threshold` here and `>=` in its Dice; ours is `>=` in both.
    """
    scores, truth = _in_region(scores, truth, region)
    healthy = scores[~truth]
    if not healthy.size or not np.isfinite(scores).all() or not np.isfinite(threshold):
        return NAN
    return float((healthy >= threshold).mean())


def l1(image: np.ndarray, reference: np.ndarray, region: np.ndarray) -> float:
    """Mean absolute difference inside `region` (bool)."""
    region = np.asarray(region).astype(bool)
    return (
        float(np.abs(_double(image)[region] - _double(reference)[region]).mean())
        if region.any()
        else NAN
    )


def psnr(image: np.ndarray, reference: np.ndarray, region: np.ndarray) -> float:
    """Peak signal-to-noise ratio inside `region`, in dB, for a peak of 1; at most `MAX_PSNR`."""
    region = np.asarray(region).astype(bool)
    if not region.any():
        return NAN
    error = float(np.mean((_double(image)[region] - _double(reference)[region]) ** 2))
    return float(-10.0 * np.log10(error + 10.0 ** (-MAX_PSNR / 10.0)))


def ssim(image: np.ndarray, reference: np.ndarray, region: np.ndarray) -> float:
    """Structural similarity (scikit-image, 7^3 window, range 1), its local values averaged inside
    `region` (bool). Volumes thinner than 7 voxels use the largest odd window that fits."""
    region = np.asarray(region).astype(bool)
    if not region.any():
        return NAN
    window = min(SSIM_WINDOW, *(n - 1 + n % 2 for n in region.shape))
    if window < 3:
        return NAN
    box = _bounding_box(region, margin=window)
    local = structural_similarity(
        _double(image)[box], _double(reference)[box], data_range=1.0, win_size=window, full=True
    )[1]
    return float(local[region[box]].mean())


def contrast_removed(
    counterpart: np.ndarray, scan: np.ndarray, healthy: np.ndarray, lesion: np.ndarray
) -> float:
    """Share of a lesion's contrast that the counterpart no longer has.

    1 - mean|counterpart - healthy| / mean|scan - healthy| inside `lesion` (bool): 1 for the healthy
    image itself, 0 for a copy of the scan, negative if it is worse than the scan. NaN where the
    lesion has no contrast (below `MIN_CONTRAST`).
    """
    contrast = l1(scan, healthy, lesion)
    return 1.0 - l1(counterpart, healthy, lesion) / contrast if contrast >= MIN_CONTRAST else NAN


def healthy_changed(counterpart: np.ndarray, scan: np.ndarray, region: np.ndarray) -> float:
    """mean|counterpart - scan| / mean scan in the healthy `region` (bool): 0 for a copy, 1 for a
    blank volume; NaN where the scan is dark there."""
    region = np.asarray(region).astype(bool)
    level = float(_double(scan)[region].mean()) if region.any() else 0.0
    return l1(counterpart, scan, region) / level if level > 0 else NAN


def sharpness(image: np.ndarray, reference: np.ndarray, region: np.ndarray) -> float:
    """Mean difference of neighbouring voxels inside `region` (bool), divided by the reference's.

    1: as sharp as the reference; below 1: blurred. Noise counts as detail. NaN where the reference
    is flat.
    """
    region, steps = np.asarray(region).astype(bool), []
    for volume in (_double(image), _double(reference)):
        inside = np.where(region, volume, np.nan)
        steps.append(sum(np.nansum(np.abs(np.diff(inside, axis=axis))) for axis in range(3)))
    return float(steps[0] / steps[1]) if steps[1] > 0 else NAN


def _double(image: np.ndarray) -> np.ndarray:
    return np.asarray(image, np.float64)


def _bounding_box(region: np.ndarray, margin: int) -> tuple[slice, ...]:
    """A box around the region; voxels further away than the margin do not change its SSIM."""
    box = ndimage.find_objects(region.astype(np.int8))[0]
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)
