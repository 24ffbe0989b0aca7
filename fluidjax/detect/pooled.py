"""Scores of a whole test set, whose maps come one after another and are not kept in memory.

Voxels are counted in a `histogram.Tally`. Some scores also need each map at thresholds that follow
from all maps; until then the maps wait in a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.detect import lesions, metrics
from fluidjax.detect.evaluate import MIN_LESION_ML, Entry, entry_of, scorable, voxel_ml
from fluidjax.detect.histogram import Tally


class Scored(NamedTuple):
    """A map (x, y, z), 0 outside the region; lesion and region (x, y, z) bool; ml of a voxel."""

    anomaly_map: np.ndarray
    lesion: np.ndarray
    region: np.ndarray
    ml: float


class Pooled:
    """The maps of one method for a test set, as their tally and in a temporary file.

    The file has no name, so nothing is left of it, however the process ends. It takes 4 bytes for
    each voxel that is scored and 2 bits for each other one: 7 MB for a brain at 160^3.

    Args:
      folder: where the file is made; it must exist. By default that of the system, which may be
        in memory.

    Attributes:
      tally: of the voxels.
      count: number of maps.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.tally = Tally()
        self.count = 0
        self._file = tempfile.TemporaryFile(dir=folder)

    def __enter__(self) -> Pooled:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, maps: Iterable[np.ndarray], subjects: Iterable[Subject]) -> None:
        """Add maps (x, y, z). Subjects without a mask or with a map that is not finite are left
        out; healthy ones count."""
        for one, lesion, region, subject in scorable(maps, subjects):
            self.tally.add(one[region], lesion[region])
            shape_and_ml = np.array([*region.shape, voxel_ml(subject.affine)])
            for part in (shape_and_ml, one[region], np.packbits(lesion), np.packbits(region)):
                np.save(self._file, part)
            self.count += 1

    def __iter__(self) -> Iterator[Scored]:
        """The maps, one after another, as they were added."""
        self._file.seek(0)
        for _ in range(self.count):
            (*shape, ml), values, lesion, region = (np.load(self._file) for _ in range(4))
            lesion, region = (_unpacked(mask, shape) for mask in (lesion, region))
            anomaly_map = np.zeros(region.shape, values.dtype)
            anomaly_map[region] = values
            yield Scored(anomaly_map, lesion, region, float(ml))
        self._file.seek(0, 2)


def _unpacked(mask: np.ndarray, shape: Iterable[float]) -> np.ndarray:
    shape = tuple(int(size) for size in shape)
    return np.unpackbits(mask, count=int(np.prod(shape))).reshape(shape).astype(bool)


def global_dice(pooled: Pooled, seed: int = 0) -> Entry:
    """`dice_global`: pooled Dice at the best threshold for this test set.

    The interval resamples subjects at that threshold.
    """
    threshold = pooled.tally.best_pooled().threshold
    if not np.isfinite(threshold):
        return entry_of(np.mean, 0, seed)
    counts = np.array(
        [
            metrics.overlap_counts(one.anomaly_map, one.lesion, threshold, one.region)
            for one in pooled
        ]
    )

    def dice(chosen):
        hit, predicted, true = np.moveaxis(counts[chosen], -1, 0).sum(axis=-1)
        return 2.0 * hit / np.maximum(predicted + true, 1.0)

    return entry_of(dice, len(counts), seed)


def sensitivity_at_fp(
    pooled: Pooled, false_per_scan: float = 1.0, min_lesion_ml: float = MIN_LESION_ML, seed: int = 0
) -> Entry:
    """Share of all true lesions found with at most so many false regions per scan on average.

    A point of the free-response ROC (FROC): of `lesions.SWEEP` thresholds, which are quantiles of
    all scores pooled, the one that finds most lesions within the limit; 0 if all exceed it. A
    marked region is a hit if `lesions.HIT_SHARE` of it is lesion, else one marked brain would find
    everything. The interval resamples subjects at that threshold.

    Args:
      pooled: the maps; those of healthy subjects count for their false regions.
      false_per_scan: the limit.
      min_lesion_ml: marked regions below this volume are ignored.
      seed: of the bootstrap.
    """
    if not pooled.tally.with_lesion:
        return entry_of(np.mean, 0, seed)
    scores, lesion, healthy = pooled.tally.values()
    thresholds = lesions.sweep_thresholds(scores, lesion + healthy)
    counts = np.stack(  # (subjects, thresholds, (found, missed, false))
        [
            lesions.sweep_counts(
                one.anomaly_map, one.lesion, one.region, thresholds, one.ml, min_lesion_ml
            )
            for one in pooled
        ]
    )
    allowed = counts[..., 2].sum(axis=0) <= false_per_scan * len(counts)
    found = np.where(allowed, counts[..., 0], 0)
    best = len(thresholds) - 1 - int(np.argmax(found.sum(axis=0)[::-1]))  # the highest of equals
    true = counts[:, best, :2].sum(axis=-1)
    return entry_of(
        lambda chosen: _ratio(found[chosen, best].sum(axis=-1), true[chosen].sum(axis=-1)),
        len(counts),
        seed,
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where a resample drew only healthy subjects; the interval leaves it out."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
