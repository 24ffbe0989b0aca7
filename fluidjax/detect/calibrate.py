"""Thresholds of a method from its maps of validation subjects, by overlap or by false alarms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fluidjax.detect import metrics
from fluidjax.detect.evaluate import Subject, region_of

FALSE_PER_CENT = (1, 5, 10)


def thresholds(maps: Sequence[np.ndarray], cases: Sequence[Subject]) -> dict[str, float]:
    """The thresholds a method can be used at; a voxel is marked where its score is >= one.

    Args:
      maps: an anomaly map (x, y, z) per case.
      cases: validation subjects with lesion masks (all False for healthy ones). Those without a
        mask, or with a map that is not finite where it is scored, are left out.

    Returns:
      dice: of the best Dice of all voxels pooled (`metrics.threshold_for`).
      fpr_1, fpr_5, fpr_10: the smallest at which at most 1, 5, 10 % of the healthy voxels, pooled
        over the cases, are marked.
      NaN where there is no lesion or no healthy voxel to choose by.
    """
    known = [
        (np.asarray(m), np.asarray(case.lesion).astype(bool), region_of(case))
        for m, case in zip(maps, cases, strict=True)
        if case.lesion is not None
    ]
    known = [one for one in known if np.isfinite(one[0][one[2]]).all()]
    healthy = [m[region & ~lesion] for m, lesion, region in known]
    pooled = np.sort(np.concatenate(healthy)) if healthy else np.empty(0)
    single = any(one.dtype == np.float32 for one in healthy)
    found = {'dice': metrics.threshold_for(*zip(*known)) if known else metrics.NAN}
    return found | {
        f'fpr_{per_cent}': _at_rate(pooled, per_cent, single) for per_cent in FALSE_PER_CENT
    }


def _at_rate(ascending: np.ndarray, per_cent: int, single: bool) -> float:
    """The smallest number that at most `per_cent` % of the values reach.

    It lies just above the highest value that must stay unmarked, and its ties with it. "Just above"
    in single precision where a map has that: a smaller step would round back onto the value.
    """
    if not ascending.size:
        return metrics.NAN
    marked = ascending.size * per_cent // 100  # at most so many; integers, so no rounding
    unmarked = ascending[ascending.size - marked - 1]
    kind = np.float32 if single else np.float64
    if unmarked == 0:  # what lies between is denormal, and an accelerator takes it for 0
        return float(np.finfo(kind).tiny)
    return float(np.nextafter(kind(unmarked), kind(np.inf)))
