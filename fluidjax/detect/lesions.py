"""Scores of whole lesions instead of voxels: lesions found and missed, regions marked falsely.

numpy. Lesions and marked regions are 26-connected components of a mask. A marked region is a hit or
false, a true lesion found or missed; see `lesion_counts` for the rule. Undefined scores are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# The library panoptica 2.1 does not fit: it pins numpy below 2.3, needs pandas and plotly, and
# matches one to one by IoU, so that a lesion found in two pieces, or two lesions found as one,
# would count as missed.

NAN = float('nan')
FULL_CONNECTIVITY = np.ones((3, 3, 3), bool)  # 26 neighbours
SWEEP = 40  # thresholds of `sweep_thresholds`
SWEEP_SHARES = (1e-4, 0.5)  # of all voxels that the highest and the lowest threshold mark
HIT_SHARE = 0.1  # see `lesion_counts`; as in nnDetection and PI-CAI
# Classes of lesions by volume: the least and the greatest ml.
SIZE_CLASSES = {
    'below_1ml': (0.0, 1.0),
    '1_to_5ml': (1.0, 5.0),
    '5_to_20ml': (5.0, 20.0),
    'above_20ml': (20.0, float('inf')),
}
CORE_MM = 4.0  # deeper voxels of a lesion of the largest class are its core


class LesionCounts(NamedTuple):
    """Connected components: true ones that were found and missed, predicted ones that are false."""

    found: int
    missed: int
    false: int


def lesion_counts(
    predicted: np.ndarray,
    truth: np.ndarray,
    voxel_ml: float,
    min_lesion_ml: float = 0.0,
    min_hit_share: float = 0.0,
) -> LesionCounts:
    """Count lesions by 26-connected components of two masks (x, y, z).

    A marked region that touches a true voxel is a hit, else false; a true lesion is found if a hit
    touches it.

    Args:
      predicted: bool, the marked voxels.
      truth: bool, the lesions.
      voxel_ml: volume of a voxel in ml.
      min_lesion_ml: marked regions below this volume are removed beforehand, and true ones, which
        they cannot find, do not count.
      min_hit_share: a hit must have at least this share of its voxels in true lesions. Without it
        one region that covers the whole brain finds everything and is never false.
    """
    predicted, truth = np.asarray(predicted).astype(bool), np.asarray(truth).astype(bool)
    return _counts(
        predicted, *ndimage.label(truth, FULL_CONNECTIVITY), voxel_ml, min_lesion_ml, min_hit_share
    )


def _counts(
    predicted: np.ndarray,
    true_labels: np.ndarray,
    true_number: int,
    voxel_ml: float,
    min_lesion_ml: float,
    min_hit_share: float,
) -> LesionCounts:
    reached, false = _matched(
        predicted, true_labels, true_number, voxel_ml, min_lesion_ml, min_hit_share
    )
    counted = np.ones(true_number, bool)
    if min_lesion_ml > 0:
        counted = np.bincount(true_labels.ravel())[1:] * voxel_ml >= min_lesion_ml
    found = int(reached[counted].sum())
    return LesionCounts(found, int(counted.sum()) - found, false)


def _matched(
    predicted: np.ndarray,
    true_labels: np.ndarray,
    true_number: int,
    voxel_ml: float,
    min_lesion_ml: float,
    min_hit_share: float,
) -> tuple[np.ndarray, int]:
    """Whether each true lesion is found, `(true_number,)` bool, and the number of false regions."""
    labels, number = ndimage.label(predicted, FULL_CONNECTIVITY)
    marked = labels[predicted]  # only the marked voxels matter, which are far fewer
    under = true_labels[predicted]
    size = np.bincount(marked, minlength=number + 1)
    inside = np.bincount(marked[under > 0], minlength=number + 1)
    large = size * voxel_ml >= min_lesion_ml
    large[0] = False  # the background
    hit = large & (inside > 0) & (inside >= min_hit_share * size)
    reached = np.zeros(true_number + 1, bool)
    reached[under[hit[marked]]] = True
    return reached[1:], int(large.sum() - hit.sum())


class SizedLesions:
    """The lesions of a test set by their volume, found and missed at a threshold.

    A lesion is found by the rule of `lesion_counts` with `HIT_SHARE`.
    """

    def __init__(self) -> None:
        self._ml: list[np.ndarray] = []
        self._found: list[np.ndarray] = []
        self._false: list[int] = []
        self._core = np.zeros(2, int)  # marked, all

    def add(
        self,
        predicted: np.ndarray,
        truth: np.ndarray,
        spacing: Sequence[float],
        voxel_ml: float,
        min_lesion_ml: float = 0.0,
    ) -> None:
        """Add a scan.

        Args:
          predicted, truth: (x, y, z) bool, the marked voxels and the lesions.
          spacing: voxel size, mm.
          voxel_ml: volume of a voxel, less than the product of the sizes where axes are oblique.
          min_lesion_ml: marked regions below this volume are removed beforehand, and true ones,
            which they cannot find, do not count.
        """
        labels, number = ndimage.label(truth, FULL_CONNECTIVITY)
        found, false = _matched(predicted, labels, number, voxel_ml, min_lesion_ml, HIT_SHARE)
        ml = np.bincount(labels.ravel(), minlength=number + 1)[1:] * voxel_ml
        self._ml.append(ml[ml >= min_lesion_ml])
        self._found.append(found[ml >= min_lesion_ml])
        self._false.append(false)
        large = np.isin(labels, 1 + np.flatnonzero(ml >= SIZE_CLASSES['above_20ml'][0]))
        if large.any():
            core = ndimage.distance_transform_edt(large, spacing) > CORE_MM
            self._core += [int((core & predicted).sum()), int(core.sum())]

    def scores(self) -> dict[str, tuple[float, int]]:
        """Each score with the number that it is taken over: lesions, voxels, or scans.

        Returns:
          found_CLASS: share of the lesions of each of `SIZE_CLASSES` that are found; core_found:
          share of the voxels in the cores of the largest ones that are marked; false_regions: mean
          number of false regions in a scan. NaN where there is none to count.
        """
        ml, found = (np.concatenate(v) if v else np.zeros(0) for v in (self._ml, self._found))
        scores = {}
        for name, (least, most) in SIZE_CLASSES.items():
            chosen = found[(ml >= least) & (ml < most)]
            scores[f'found_{name}'] = float(np.mean(chosen)) if chosen.size else NAN, chosen.size
        marked, voxels = (int(n) for n in self._core)
        scores['core_found'] = marked / voxels if voxels else NAN, voxels
        scans = len(self._false)
        scores['false_regions'] = float(np.mean(self._false)) if scans else NAN, scans
        return scores


def lesion_scores(
    predicted: np.ndarray, truth: np.ndarray, voxel_ml: float, min_lesion_ml: float = 0.0
) -> dict[str, float]:
    """Lesion precision, recall and F1 of two masks (x, y, z); see `lesion_counts`.

    Returns:
      lesion_precision: found / (found + false), NaN where nothing is marked.
      lesion_recall: found / (found + missed).
      lesion_f1: 2 found / (2 found + missed + false), their harmonic mean.
      All are NaN where nothing is true.
    """
    found, missed, false = lesion_counts(predicted, truth, voxel_ml, min_lesion_ml)
    if found + missed == 0:
        return {'lesion_precision': NAN, 'lesion_recall': NAN, 'lesion_f1': NAN}
    return {
        'lesion_precision': found / (found + false) if found + false else NAN,
        'lesion_recall': found / (found + missed),
        'lesion_f1': 2 * found / (2 * found + missed + false),
    }


def sweep_thresholds(scores: np.ndarray, counts: np.ndarray, number: int = SWEEP) -> np.ndarray:
    """At most `number` thresholds, ascending, that mark `SWEEP_SHARES` of all voxels pooled.

    Args:
      scores: finite, ascending (`histogram.Tally.values`).
      counts: number of voxels with each score, 1 or more.
      number: of thresholds. They are scores that occur, and equal ones are one threshold; their
        shares are evenly spaced in the logarithm, since the few highest voxels matter most.
    """
    if not len(scores):
        return np.asarray(scores)
    reached = np.cumsum(counts)
    above = np.ceil(np.geomspace(*SWEEP_SHARES, number) * reached[-1]).astype(int)
    return np.unique(scores[np.searchsorted(reached, reached[-1] - above, side='right')])


def sweep_counts(
    anomaly_map: np.ndarray,
    truth: np.ndarray,
    region: np.ndarray,
    thresholds: Sequence[float],
    voxel_ml: float,
    min_lesion_ml: float = 0.0,
    min_hit_share: float = HIT_SHARE,
) -> np.ndarray:
    """`lesion_counts` of one scan at every threshold: (thresholds, 3) int.

    Args:
      anomaly_map, truth, region: (x, y, z); only voxels of `region` (bool) can be marked, and
        `truth` (bool) lies in it.
    """
    boxes = ndimage.find_objects(np.asarray(region).astype(np.int8))
    if not boxes:
        return np.zeros((len(thresholds), 3), int)
    anomaly_map, truth, region = (np.asarray(v)[boxes[0]] for v in (anomaly_map, truth, region))
    true = ndimage.label(truth, FULL_CONNECTIVITY)
    region = region.astype(bool)
    return np.array(
        [
            _counts((anomaly_map >= t) & region, *true, voxel_ml, min_lesion_ml, min_hit_share)
            for t in thresholds
        ],
        int,
    ).reshape(len(thresholds), 3)
