"""Curves of a method over all thresholds, pooled over subjects, in few points.

numpy. Maps of methods have different units, so their thresholds cannot share an axis; the share of
voxels marked at a threshold can.
"""

from __future__ import annotations

import numpy as np

from fluidjax.detect.histogram import Tally

Curve = dict[str, list[float]]


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


def curve_of(tally: Tally, points: int = 200) -> Curve:
    """Precision, recall, false positive rate and Dice of the voxels of all subjects pooled.

    Args:
      tally: of the subjects' maps (`calibrate.count`). Healthy subjects count: voxels marked there
        lower the precision.
      points: at most this many thresholds, each exact, none interpolated; they are edges of the
        tally's bins.

    Returns:
      Lists of one length, thresholds falling: `threshold` (a voxel is marked where its map is at
      least this), `marked` (share of voxels), `precision`, `recall`, `fpr`, `dice`. Empty where
      no lesion is known.
    """
    thresholds, lesion, healthy = (values[::-1] for values in tally.values())
    hits = np.cumsum(lesion)
    true, total = int(lesion.sum()), int(lesion.sum() + healthy.sum())
    if not true:
        return {}
    marked = hits + np.cumsum(healthy)
    chosen = _spread(hits, marked, points)
    hit, marked = hits[chosen], marked[chosen]
    curve = {
        'threshold': thresholds[chosen],
        'marked': marked / total,
        'precision': hit / marked,
        'recall': hit / true,
        'fpr': (marked - hit) / max(total - true, 1),
        'dice': 2 * hit / (marked + true),
    }
    # Nine digits give a float32 threshold back as it was.
    return {name: [float(f'{v:.9g}') for v in values] for name, values in curve.items()}
