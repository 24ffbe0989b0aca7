"""Histograms of anomaly maps, from which thresholds and curves of any number of scans are computed.

A bin holds the float32 numbers that share their first bits: 4096 bins per factor of two from 1e-12
to 1e7, the same for all maps, whatever their unit. So the bins are as fine, relative to the score,
among the few highest voxels as anywhere else, and no range has to be known beforehand. The numbers
of voxels above a bin's lower edge are exact; only thresholds between two edges are not
distinguished, and those are `RESOLUTION` of the score apart, 0.024 %.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_DROPPED = 11  # of the 23 bits after the leading one
RESOLUTION = 2.0 ** (_DROPPED - 23)
# Scores below the lowest are in the bin of 0, those above the highest in one bin.
_LOWEST, _HIGHEST = np.float32(2.0**-40), np.float32(2.0**24)
_FIRST, _LAST = (int(score.view(np.int32)) >> _DROPPED for score in (_LOWEST, _HIGHEST))
_BINS = _LAST - _FIRST + 2
# Shares of all voxels that the thresholds of a best mean Dice mark, highest thresholds first.
MARKED_SHARES = np.geomspace(2e-5, 0.5, 400)


class Best(NamedTuple):
    """The threshold with the best Dice, and that Dice; both NaN where no lesion is known."""

    dice: float
    threshold: float


_NONE = Best(float('nan'), float('nan'))


def bins_of(scores: np.ndarray) -> np.ndarray:
    """The number of each score's bin, int32 of the same shape; higher scores have higher ones.

    Anomaly maps are not negative; a negative score would count as 0.
    """
    scores = np.asarray(scores)
    single = np.minimum(scores, _HIGHEST).astype(np.float32)
    if scores.dtype != np.float32:  # round down, so that a score is never below its bin's edge
        single = np.where(single > scores, np.nextafter(single, np.float32(0)), single)
    # The bits of positive numbers have the order of the numbers; those of negative ones are lower.
    return np.maximum((single.view(np.int32) >> _DROPPED) - np.int32(_FIRST - 1), 0)


def edges_of(bins: np.ndarray) -> np.ndarray:
    """The smallest score of some bins, float32."""
    bins = np.asarray(bins, np.int32)
    edges = ((bins + np.int32(_FIRST - 1)) << _DROPPED).view(np.float32)
    return np.where(bins == 0, np.float32(0), edges)


class Tally:
    """Numbers of healthy and of lesion voxels by score, of all scans that were added.

    It takes 8 MB, whatever the number and size of the scans.

    Attributes:
      lesion, healthy: number of voxels in each bin.
      with_lesion: number of scans with a lesion.
    """

    def __init__(self) -> None:
        self.lesion = np.zeros(_BINS, np.int64)
        self.healthy = np.zeros(_BINS, np.int64)
        self.with_lesion = 0
        self._diseased = np.zeros(_BINS, np.int64)  # voxels of the scans with a lesion
        self._dice = np.zeros(_BINS)  # at the bins' edges, summed over the scans with a lesion

    def add(self, scores: np.ndarray, truth: np.ndarray) -> None:
        """Count the voxels of a scan.

        Args:
          scores: (n,), finite, of the voxels that are scored.
          truth: (n,) bool, whether they are lesion.
        """
        if not scores.size:
            return
        bins = bins_of(scores)
        low, high = int(bins.min()), int(bins.max()) + 1
        every = np.bincount(bins - low, minlength=high - low)
        lesion = np.bincount(bins[truth] - low, minlength=high - low)
        self.lesion[low:high] += lesion
        self.healthy[low:high] += every - lesion
        true = int(lesion.sum())
        if true:
            dice = 2.0 * _reaching(lesion) / (_reaching(every) + true)
            self._dice[low:high] += dice
            self._dice[:low] += dice[0]
            self._diseased[low:high] += every
            self.with_lesion += 1

    def best_mean(self) -> Best:
        """The best mean over the scans with a lesion of each one's Dice, one threshold for all.

        400 thresholds are tried, which mark from 0.002 to 50 % of the voxels of these scans;
        between two neighbours the marked volume changes by 2.6 %.
        """
        if not self.with_lesion:
            return _NONE
        reached = np.cumsum(self._diseased)
        marked = np.maximum(1, np.round(MARKED_SHARES * reached[-1]).astype(int))
        tried = np.unique(np.searchsorted(reached, reached[-1] - marked, side='right'))
        return _best(self._dice / self.with_lesion, tried)

    def best_pooled(self) -> Best:
        """The best Dice of the voxels of all scans together."""
        true = int(self.lesion.sum())
        if not true:
            return _NONE
        hits = _reaching(self.lesion)
        dice = 2.0 * hits / (hits + _reaching(self.healthy) + true)
        return _best(dice, np.flatnonzero(self.lesion + self.healthy))

    def mean_dice(self, threshold: float) -> float:
        """Mean Dice over the scans with a lesion at a threshold, which is the edge of a bin."""
        if not self.with_lesion or not np.isfinite(threshold):
            return float('nan')
        return float(self._dice[bins_of(np.float32(threshold))] / self.with_lesion)

    def at_rate(self, per_cent: float) -> float:
        """The smallest edge that at most `per_cent` % of the healthy voxels reach; NaN without."""
        total = int(self.healthy.sum())
        if not total:
            return float('nan')
        allowed = int(total * per_cent // 100)
        unmarked = np.flatnonzero(_reaching(self.healthy) > allowed)
        return float(edges_of(unmarked[-1] + 1))

    def values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Edges of the bins that are not empty, ascending, with their lesion and healthy voxels."""
        used = np.flatnonzero(self.lesion + self.healthy)
        return edges_of(used), self.lesion[used], self.healthy[used]


def _best(dice: np.ndarray, tried: np.ndarray) -> Best:
    """The best Dice at the edges of some ascending bins, of equals the highest."""
    best = tried[len(tried) - 1 - int(np.argmax(dice[tried][::-1]))]
    return Best(float(dice[best]), float(edges_of(best)))


def _reaching(counts: np.ndarray) -> np.ndarray:
    """Numbers of voxels at or above each bin's edge."""
    return np.cumsum(counts[::-1])[::-1]
