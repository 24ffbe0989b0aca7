"""How a threshold is chosen from maps of validation subjects: by overlap, or by false alarms.

`runs/thresholds.py` says on which subjects, and stores the result with the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.detect import metrics
from fluidjax.detect.evaluate import scorable, voxel_ml
from fluidjax.detect.histogram import MARKED_SHARES, Tally

FALSE_PER_CENT = (1, 5, 10)
HEALTHY_ML, HEALTHY_SHARE = 1.0, 0.9  # of `healthy_1ml`: 1 ml at most in 90 % of healthy scans


class Common(NamedTuple):
    """The threshold with the best mean Dice of some cases.

    Attributes:
      dice: that mean.
      threshold: the threshold.
      ap: mean average precision, from the thresholds that were tried.
    """

    dice: float
    threshold: float
    ap: float


def count(tally: Tally, maps: Iterable[np.ndarray], cases: Iterable[Subject]) -> None:
    """Add maps to a tally: the voxels that are scored, of the cases whose lesion is known.

    Args:
      tally: is changed.
      maps: an anomaly map (x, y, z) per case. One that is not finite where it is scored is left
        out.
      cases: with lesion masks (all False for healthy ones). Those without a mask are left out.
    """
    for one, lesion, region, _ in scorable(maps, cases):
        tally.add(one[region], lesion[region])


def thresholds(tally: Tally) -> dict[str, float]:
    """The thresholds of a method; a voxel is marked where its score is >= the threshold.

    Args:
      tally: of maps of validation subjects (`count`).

    Returns:
      dice: of the best mean Dice over the cases with a lesion.
      fpr_1, fpr_5, fpr_10: the smallest at which at most 1, 5, 10 % of the healthy voxels, pooled
        over the cases, are marked.
      All are edges of the tally's bins, which are 0.024 % of the score apart. NaN where there is no
      lesion or no healthy voxel to choose by.
    """
    rates = {f'fpr_{rate}': tally.at_rate(rate) for rate in FALSE_PER_CENT}
    return {'dice': tally.best_mean().threshold, **rates}


def best_common(maps: Sequence[np.ndarray], cases: Sequence[Subject]) -> Common:
    """The threshold, one for all cases, with the best mean over the cases of each one's Dice.

    For few cases, by sorting all their voxels: recipes are compared by it (`recipe.choose`).
    The mean is over the cases with a lesion. 400 thresholds are tried, scores that occur and mark
    from 0.002 to 50 % of all voxels; between two neighbours the marked volume changes by 2.6 %.
    NaN if no lesion remains.
    """
    known = [(one[region], lesion[region]) for one, lesion, region, _ in scorable(maps, cases)]
    known = [(scores, truth) for scores, truth in known if truth.any()]
    if not known:
        return Common(metrics.NAN, metrics.NAN, metrics.NAN)
    pooled = np.sort(np.concatenate([scores for scores, _ in known]))
    rank = pooled.size - np.maximum(1, np.round(MARKED_SHARES * pooled.size).astype(int))
    tried = np.unique(pooled[rank])
    curves = [_curves(scores, truth, tried) for scores, truth in known]
    dice = np.mean([one for one, _ in curves], axis=0)
    best = len(tried) - 1 - int(np.argmax(dice[::-1]))  # the highest of equals
    return Common(float(dice[best]), float(tried[best]), float(np.mean([ap for _, ap in curves])))


def _curves(
    scores: np.ndarray, truth: np.ndarray, ascending: np.ndarray
) -> tuple[np.ndarray, float]:
    """A case's Dice at each of some ascending thresholds, and its average precision over them."""
    reached = np.searchsorted(ascending, scores, side='right')  # the number of thresholds reached
    size = len(ascending) + 1

    def marked(which: np.ndarray) -> np.ndarray:
        return np.cumsum(np.bincount(which, minlength=size)[::-1])[::-1][1:]

    hits, found = marked(reached[truth]), marked(reached)
    recall = hits[::-1] / truth.sum()  # of falling thresholds
    precision = hits[::-1] / np.maximum(found[::-1], 1)
    ap = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    return 2.0 * hits / (found + truth.sum()), ap


def healthy_threshold(smallest: Sequence[float]) -> float:
    """`healthy_1ml`: at most 1 ml is marked in 90 % of healthy scans, by conformal prediction.

    For each healthy scan the smallest threshold that marks at most 1 ml is a score; the result is
    the ceil(0.9 (n + 1))-th smallest of n scores. If a new healthy scan is exchangeable with these
    (drawn as they were, and the map was not fitted to them), the probability that more than 1 ml is
    marked in it is at most 10 % (Vovk et al. 2005, split conformal prediction). It holds for the
    average over draws of both, not for every set of n scans.

    Args:
      smallest: these scores of healthy validation scans (`smallest_within`).

    Returns:
      The threshold; NaN for fewer than 9 scans, with which no threshold has that guarantee.
    """
    rank = math.ceil(HEALTHY_SHARE * (len(smallest) + 1) - 1e-9)
    if rank > len(smallest):
        return metrics.NAN
    # A scan whose map failed counts as one in which too much is marked at any threshold.
    ordered = sorted(math.inf if math.isnan(score) else score for score in smallest)
    return ordered[rank - 1] if math.isfinite(ordered[rank - 1]) else metrics.NAN


def marked_ml(anomaly_map: np.ndarray, case: Subject, threshold: float) -> float:
    """Volume in ml that is marked in the brain of a scan.

    NaN without a threshold, and for a map that is not finite.
    """
    inside = np.asarray(anomaly_map)[np.asarray(case.brain).astype(bool)]
    if not math.isfinite(threshold) or not np.isfinite(inside).all():
        return metrics.NAN
    return float((inside >= threshold).sum()) * voxel_ml(case.affine)


def smallest_within(anomaly_map: np.ndarray, case: Subject) -> float:
    """The smallest threshold that marks at most `HEALTHY_ML` of a scan's brain; NaN for a map that
    is not finite."""
    scores = np.sort(np.asarray(anomaly_map)[np.asarray(case.brain).astype(bool)])
    if not np.isfinite(scores).all():
        return metrics.NAN
    allowed = int(HEALTHY_ML / voxel_ml(case.affine) + 1e-9)
    return _just_above(scores, scores.size - 1 - allowed, scores.dtype == np.float32)


def _just_above(ascending: np.ndarray, place: int, single: bool) -> float:
    """A number that the values up to a place do not reach, the smallest in single precision.

    A smaller step above the value at that place would be rounded off if a map has single precision.
    With a place below the first all values may reach it.
    """
    if place < 0:
        return 0.0
    unmarked, kind = ascending[place], np.float32 if single else np.float64
    if unmarked == 0:  # the next number is denormal, which accelerators take for 0
        return float(np.finfo(kind).tiny)
    return float(np.nextafter(kind(unmarked), kind(np.inf)))
