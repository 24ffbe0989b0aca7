"""How a threshold is chosen from maps of validation subjects: by overlap, or by false alarms.

`runs/thresholds.py` says on which subjects, and stores the result with the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.detect import metrics
from fluidjax.detect.evaluate import scorable

FALSE_PER_CENT = (1, 5, 10)


def thresholds(maps: Sequence[np.ndarray], cases: Sequence[Subject]) -> dict[str, float]:
    """The thresholds of a method; a voxel is marked where its score is >= the threshold.

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
    known = [case[:3] for case in scorable(maps, cases)]
    healthy = [one[region & ~lesion] for one, lesion, region in known]
    pooled = np.sort(np.concatenate(healthy)) if healthy else np.empty(0)
    single = any(one.dtype == np.float32 for one in healthy)
    rates = {f'fpr_{rate}': _at_rate(pooled, rate, single) for rate in FALSE_PER_CENT}
    return {'dice': metrics.threshold_for(*zip(*known)) if known else metrics.NAN, **rates}


def _at_rate(ascending: np.ndarray, per_cent: int, single: bool) -> float:
    """The smallest number that at most `per_cent` % of the values reach.

    It lies just above the highest value that must stay unmarked, as must all values equal to it;
    just above in single precision if a map has it, in which a smaller step would be rounded off.
    """
    if not ascending.size:
        return metrics.NAN
    marked = ascending.size * per_cent // 100  # the largest number allowed
    unmarked = ascending[ascending.size - marked - 1]
    kind = np.float32 if single else np.float64
    if unmarked == 0:  # the next number is denormal, which accelerators take for 0
        return float(np.finfo(kind).tiny)
    return float(np.nextafter(kind(unmarked), kind(np.inf)))
