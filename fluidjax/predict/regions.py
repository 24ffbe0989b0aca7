"""The marked regions of a scan as a table: place, volume, values of the map, confidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from fluidjax.detect.evaluate import MIN_LESION_ML, voxel_ml
from fluidjax.detect.lesions import FULL_CONNECTIVITY
from fluidjax.detect.reliability import Rising

MIDLINE_MM = 5.0
COLUMNS = {
    'index': {'Description': 'Number of the region, the largest first'},
    'volume_ml': {'Description': 'Volume', 'Units': 'ml'},
    'x': {'Description': 'Centre of mass in the world of the scan, to the right', 'Units': 'mm'},
    'y': {'Description': 'Centre of mass in the world of the scan, to the front', 'Units': 'mm'},
    'z': {'Description': 'Centre of mass in the world of the scan, upwards', 'Units': 'mm'},
    'mni_x': {'Description': 'Centre of mass in MNI152, to the right', 'Units': 'mm'},
    'mni_y': {'Description': 'Centre of mass in MNI152, to the front', 'Units': 'mm'},
    'mni_z': {'Description': 'Centre of mass in MNI152, upwards', 'Units': 'mm'},
    'side': {
        'Description': f'Side of the centre in MNI152: midline is within {MIDLINE_MM:g} mm of '
        'x = 0',
        'Levels': {'left': '', 'right': '', 'midline': ''},
    },
    'peak': {'Description': 'Highest value of the anomaly map in the region'},
    'mean': {'Description': 'Mean of the anomaly map in the region'},
    'confidence': {
        'Description': 'Share of the marked regions with such a peak that lie on a lesion, in '
        'validation scans with simulated lesions'
    },
}
RANK = (
    '1 - threshold / peak: 0 where the peak just reaches the threshold, 0.5 where it is twice '
    'that. It ranks regions; it is not the share of them that lie on a lesion, which is known at '
    'most for the threshold dice, and not for every model'
)


def columns(confidence: Rising | None) -> dict[str, Any]:
    """The columns and what they are, where the confidence is known, or else only a rank."""
    return COLUMNS if confidence else COLUMNS | {'confidence': {'Description': RANK}}


@dataclasses.dataclass(frozen=True)
class Region:
    """A row of the table; its fields are `COLUMNS`."""

    index: int
    volume_ml: float
    x: float
    y: float
    z: float
    mni_x: float
    mni_y: float
    mni_z: float
    side: str
    peak: float
    mean: float
    confidence: float


def regions_of(
    mask: np.ndarray,
    anomaly_map: np.ndarray,
    affine: np.ndarray,
    mni_from_world: np.ndarray,
    threshold: float,
    min_ml: float = MIN_LESION_ML,
    confidence: Rising | None = None,
) -> list[Region]:
    """The 26-connected pieces of a mask, the largest first.

    Args:
        mask: (x, y, z) bool.
        anomaly_map: (x, y, z), finite.
        affine: voxel -> the scan's world, mm: (4, 4).
        mni_from_world: the scan's world -> MNI152, mm: (4, 4).
        threshold: of the mask.
        min_ml: smaller pieces are left out.
        confidence: of a region, by its peak; None for a rank (`RANK`).
    """
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes or boxes[0] is None:
        return []
    corner = [side.start for side in boxes[0]]
    labels, number = ndimage.label(mask[boxes[0]], FULL_CONNECTIVITY)
    values, volume = anomaly_map[boxes[0]], voxel_ml(affine)
    sizes = volume * np.bincount(labels.ravel(), minlength=number + 1)[1:]
    chosen = [i for i in np.argsort(-sizes, kind='stable') + 1 if sizes[i - 1] >= min_ml]
    if not chosen:
        return []
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, chosen)) + corner
    peaks, means = (f(values, labels, chosen) for f in (ndimage.maximum, ndimage.mean))
    sure = confidence or (lambda peak: 1.0 - threshold / max(peak, 1e-12))
    return [
        _region(
            index,
            float(sizes[piece - 1]),
            affine @ [*centre, 1],
            mni_from_world,
            float(peak),
            float(mean),
            min(max(float(sure(peak)), 0.0), 1.0),
        )
        for index, (piece, centre, peak, mean) in enumerate(zip(chosen, centres, peaks, means), 1)
    ]


def _region(
    index: int,
    volume: float,
    world: np.ndarray,
    mni_from_world: np.ndarray,
    peak: float,
    mean: float,
    confidence: float,
) -> Region:
    mni = mni_from_world @ world
    side = 'midline' if abs(mni[0]) <= MIDLINE_MM else 'right' if mni[0] > 0 else 'left'
    places = (round(float(v), 1) for v in (*world[:3], *mni[:3]))
    return Region(
        index, round(volume, 3), *places, side, round(peak, 5), round(mean, 5), round(confidence, 3)
    )


def as_tsv(regions: Sequence[Region]) -> str:
    """The table as tab-separated values with a header; only the header without regions."""
    rows = [list(COLUMNS), *(map(str, dataclasses.astuple(region)) for region in regions)]
    return ''.join('\t'.join(row) + '\n' for row in rows)
