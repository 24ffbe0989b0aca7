"""Planes of an RAS+ volume for pictures.

Volumes are (x, y, z) with x to the subject's right, y to the front, z up. Pictures are
neurological: the right side of the brain is on the right, the front of an axial plane is up, a
sagittal plane looks at its front on the right. Arrays are for `imshow(..., origin='lower')`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Plane(NamedTuple):
    """A viewing direction: the axis it cuts, those it shows, and the letters at its borders."""

    name: str
    cuts: int
    across: int  # array axis shown from left to right
    up: int  # array axis shown from bottom to top
    left: str
    right: str
    bottom: str
    top: str


AXIAL = Plane('axial', 2, 0, 1, 'L', 'R', 'P', 'A')
CORONAL = Plane('coronal', 1, 0, 2, 'L', 'R', 'I', 'S')
SAGITTAL = Plane('sagittal', 0, 1, 2, 'P', 'A', 'I', 'S')
PLANES = (AXIAL, CORONAL, SAGITTAL)


class View(NamedTuple):
    """The part of a volume that is shown: the planes through voxel `centre`, cropped to `box`
    (voxels, one slice per axis), with voxels of `spacing` mm."""

    centre: tuple[int, int, int]
    box: tuple[slice, slice, slice]
    spacing: tuple[float, float, float]


def cut(volume: np.ndarray, plane: Plane, centre: tuple[int, int, int]) -> np.ndarray:
    """The plane through voxel `centre`, (up, across), for imshow with origin='lower'."""
    section = np.take(volume, centre[plane.cuts], axis=plane.cuts)
    return section.T if plane.across < plane.up else section


def aspect(plane: Plane, spacing: tuple[float, float, float]) -> float:
    """Height over width of a voxel in this plane: imshow's `aspect`."""
    return spacing[plane.up] / spacing[plane.across]


def box_around(region: np.ndarray, margin: int = 2) -> tuple[slice, slice, slice]:
    """The bounding box of a bool region, widened by `margin` voxels; all if the region is empty."""
    if not np.any(region):
        return tuple(slice(0, n) for n in region.shape)
    places = np.argwhere(region)
    low, high = np.maximum(places.min(0) - margin, 0), places.max(0) + 1 + margin
    return tuple(slice(int(a), int(min(b, n))) for a, b, n in zip(low, high, region.shape))


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size per axis, in the affine's unit (mm)."""
    return tuple(float(v) for v in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))


def centre_of(
    lesion: np.ndarray | None, anomaly_map: np.ndarray, brain: np.ndarray
) -> tuple[int, int, int]:
    """The voxel to look at: the middle of the largest lesion, else the map's peak, else the brain's
    centre of mass (for a map without a peak), else the middle.

    The centre of mass of several lesions, or of a bent one, may lie in healthy tissue, therefore
    the middle is the voxel of the largest lesion nearest to that lesion's centre of mass.
    """
    finite = np.nan_to_num(anomaly_map, nan=0.0, posinf=0.0, neginf=0.0)
    if lesion is not None and np.any(lesion):
        pieces, _ = ndimage.label(lesion, np.ones((3, 3, 3)))
        voxels = np.argwhere(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))
        centre = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
    elif finite.max() > finite.min():
        centre = np.unravel_index(int(np.argmax(finite)), finite.shape)
    else:
        centre = np.argwhere(brain).mean(axis=0) if np.any(brain) else np.array(brain.shape) // 2
    return tuple(int(v) for v in np.clip(np.round(centre), 0, np.array(brain.shape) - 1))
