"""Curves of a method over all thresholds, pooled over subjects, in few points.

numpy. Maps of methods have different units, so their thresholds cannot share an axis; the share of
voxels marked at a threshold can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Curve = dict[str, list[float]]


def _pooled(maps, truths, regions) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth of the voxels of all subjects whose map is finite and whose lesion is known
    (it may be empty: voxels marked there lower the precision)."""
    scores, labels = [], []
    for anomaly_map, truth, region in zip(maps, truths, regions, strict=True):
        if truth is None:
            continue
        region = np.ones(np.shape(truth), bool) if region is None else np.asarray(region, bool)
        inside = np.asarray(anomaly_map)[region]
        if np.isfinite(inside).all():
            scores.append(inside)
            labels.append(np.asarray(truth).astype(bool)[region])
    if not scores:
        return np.zeros(0), np.zeros(0, bool)
    return np.concatenate(scores), np.concatenate(labels)


def _spread(hits: np.ndarray, marked: np.ndarray, points: int) -> np.ndarray:
    """Indices of at most `points` thresholds, with the first and the last: half of them evenly
    spaced in recall, half in the logarithm of the voxels marked, where recall hardly changes."""
    if hits.size <= points:
        return np.arange(hits.size)
    half = points // 2
    by_recall = np.searchsorted(hits, np.linspace(hits[0], hits[-1], half))
    sizes = np.geomspace(marked[0], marked[-1], points - half)
    by_size = np.searchsorted(marked, np.minimum(sizes, marked[-1]))
    return np.unique(np.r_[0, by_recall[1:-1], by_size[1:-1], hits.size - 1])


def curves_of(
    maps: Sequence[np.ndarray],
    truths: Sequence[np.ndarray | None],
    regions: Sequence[np.ndarray] | None = None,
    points: int = 200,
) -> Curve:
    """Precision, recall, false positive rate and Dice of the voxels of all subjects pooled.

    Args:
      maps: an anomaly map per subject; those that hold a NaN or an infinity are left out.
      truths: the lesion masks; a subject with None is left out, an empty mask counts.
      regions: where voxels are scored (`evaluate.region_of`); default everywhere.
      points: at most this many thresholds, each exact, none interpolated.

    Returns:
      Lists of one length, thresholds falling: `threshold` (a voxel is marked where its map is at
      least this), `marked` (share of voxels), `precision`, `recall`, `fpr`, `dice`. Empty where
      no lesion is known.
    """
    regions = [None] * len(maps) if regions is None else regions
    scores, truth = _pooled(maps, truths, regions)
    if not truth.any():
        return {}
    order = np.argsort(scores)[::-1]
    ranked, hits = scores[order], np.cumsum(truth[order])
    last = np.r_[np.flatnonzero(np.diff(ranked)), ranked.size - 1]  # ties fall together
    true, healthy = int(hits[-1]), ranked.size - int(hits[-1])
    last = last[_spread(hits[last], last + 1, points)]
    hit, marked = hits[last], last + 1
    curve = {
        'threshold': ranked[last],
        'marked': marked / ranked.size,
        'precision': hit / marked,
        'recall': hit / true,
        'fpr': (marked - hit) / max(healthy, 1),
        'dice': 2 * hit / (marked + true),
    }
    # Nine digits give a float32 threshold back as it was.
    return {name: [float(f'{v:.9g}') for v in values] for name, values in curve.items()}
