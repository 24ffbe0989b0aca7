"""What a value of the map means: shares of lesion, counted on validation cases.

A voxel's probability is the share of lesion among voxels with its value of the map; a region's
confidence the share of regions with its peak that lie on a lesion. Both rise with the map, so they
are isotonic regressions (scikit-learn). They hold where lesions are as frequent as in the cases
that they were counted on, simulated ones, each scan with a lesion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.isotonic import IsotonicRegression

from fluidjax.detect.evaluate import MIN_LESION_ML
from fluidjax.detect.histogram import Tally
from fluidjax.detect.lesions import FULL_CONNECTIVITY, HIT_SHARE
from fluidjax.detect.pooled import Pooled

FEWEST_REGIONS = 20  # from which a confidence is fitted
KNOTS = 200  # of a stored curve, about
BINS = 10  # of a reliability diagram
FEWEST_VOXELS = 100  # of a bin that is shown


@dataclasses.dataclass(frozen=True)
class Rising:
    """A share that rises with a value, straight between knots and constant beyond them.

    Attributes:
      at: the knots, ascending.
      share: the share at each, in [0, 1].
    """

    at: tuple[float, ...]
    share: tuple[float, ...]

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """The share at some values, of the same shape."""
        return np.interp(values, self.at, self.share)

    @staticmethod
    def of(stored: Mapping[str, Any] | None) -> Rising | None:
        """From `dataclasses.asdict`, or None."""
        return None if stored is None else Rising(tuple(stored['at']), tuple(stored['share']))


def _fitted(values: np.ndarray, shares: np.ndarray, weights: np.ndarray) -> Rising:
    regression = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds='clip')
    regression.fit(values, shares, weights)
    at, share = regression.X_thresholds_, regression.y_thresholds_
    if len(at) > KNOTS:  # evenly in the logit, as most voxels have small shares; and the ends
        logit = np.log(np.clip(share, 1e-4, None)) - np.log(np.clip(1.0 - share, 1e-4, None))
        steps = np.searchsorted(logit, np.linspace(logit[0], logit[-1], KNOTS // 2)[1:-1])
        chosen = np.unique(np.r_[0, steps, np.maximum(steps - 1, 0), len(at) - 1])
        at, share = at[chosen], share[chosen]
    # Nine digits give a float32 back as it was.
    return Rising(*(tuple(float(f'{v:.9g}') for v in values) for values in (at, share)))


def voxel_probability(tally: Tally) -> Rising | None:
    """The share of lesion by the value of the map; None where there is no lesion."""
    values, lesion, healthy = tally.values()
    if not lesion.sum():
        return None
    return _fitted(values, lesion / (lesion + healthy), lesion + healthy)


def region_confidence(
    pooled: Pooled, threshold: float, min_ml: float = MIN_LESION_ML
) -> Rising | None:
    """The share of marked regions that lie on a lesion, by their peak.

    A region lies on a lesion if `HIT_SHARE` of it does. The share is never surer than n regions
    allow, from 1 / (n + 2) to 1 - 1 / (n + 2).

    Args:
      pooled: the maps of validation cases.
      threshold: at which voxels are marked; NaN where there is none.
      min_ml: smaller regions are left out.

    Returns:
      None with fewer than `FEWEST_REGIONS` regions, or without a threshold.
    """
    if not np.isfinite(threshold):
        return None
    peaks: list[float] = []
    hits: list[float] = []
    for one, lesion, region, ml in pooled:
        labels, number = ndimage.label((one >= threshold) & region, FULL_CONNECTIVITY)
        sizes = np.bincount(labels.ravel(), minlength=number + 1)
        numbers = 1 + np.flatnonzero(sizes[1:] * ml >= min_ml)
        if numbers.size:
            peaks += list(ndimage.maximum(one, labels, numbers))
            hits += list(ndimage.mean(lesion, labels, numbers) >= HIT_SHARE)
    if len(peaks) < FEWEST_REGIONS:
        return None
    found = _fitted(np.asarray(peaks), np.asarray(hits, float), np.ones(len(peaks)))
    least = 1.0 / (len(peaks) + 2)
    return Rising(found.at, tuple(float(s) for s in np.clip(found.share, least, 1.0 - least)))


def diagram(tally: Tally, probability: Rising) -> list[dict[str, float]]:
    """A reliability diagram: for each tenth of the probability its mean and the share of lesion.

    Args:
      tally: of the maps of other cases than those that the probability was fitted to.
      probability: see `voxel_probability`.

    Returns:
      A dictionary `{predicted, observed, voxels}` for each of `BINS` bins that has
      `FEWEST_VOXELS`.
    """
    values, lesion, healthy = tally.values()
    predicted, every = probability(values), lesion + healthy
    places = np.minimum((predicted * BINS).astype(int), BINS - 1)
    bins = []
    for place in range(BINS):
        inside = places == place
        voxels = int(every[inside].sum())
        if voxels >= FEWEST_VOXELS:
            mean = float((predicted * every)[inside].sum() / voxels)
            observed = float(lesion[inside].sum() / voxels)
            bins.append({'predicted': mean, 'observed': observed, 'voxels': voxels})
    return bins


def calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """Mean difference of predicted and observed shares over the bins of a diagram; NaN if none."""
    if not bins:
        return float('nan')
    return float(np.mean([abs(one['predicted'] - one['observed']) for one in bins]))
