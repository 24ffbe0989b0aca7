"""The part of a scan that is not air, and whether it is a whole head or a brain without skull."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from data_pipelines import grids, resampling
from data_pipelines.volume_io import Volume

WORKING_SPACING_MM = 3.0
# Below this fraction of the bright end a voxel is air, whatever its noise.
AIR_FRACTION = 0.1
# A skull is a dark shell below a brighter scalp. It is searched down to this depth, and must be
# darker than this fraction of the scalp: 0.24 and 0.30 for two heads, 0.86 to 1.00 for 17 brains.
SHELL_DEPTH_MM = 24.0
SHELL_DARKNESS = 0.6
# The face and the neck have no such shell: only this much below the top is examined.
UPPER_HEAD_MM = 90.0
# No skull-stripped brain is as large (ml).
LARGEST_BRAIN_ML = 2400.0


@dataclasses.dataclass(frozen=True)
class Coarse:
    """A scan on isotropic voxels along the axes of its own voxels.

    Attributes:
      data: (x, y, z) float32, air near 0.
      head: (x, y, z) bool: everything within the outer surface of the head.
      affine: voxel -> the scan's world, mm.
      spacing: mm.
    """

    data: np.ndarray
    head: np.ndarray
    affine: np.ndarray
    spacing: float


def air_level(data: np.ndarray) -> float:
    """Intensity of air: a low percentile of the volume's faces, most of which may show tissue."""
    faces = [np.take(data, (0, -1), axis=k).ravel() for k in range(3)]
    return float(np.percentile(np.concatenate(faces), 10))


def coarse_head(scan: Volume) -> Coarse | None:
    """The scan at about 3 mm with its head mask; None if nothing is brighter than air."""
    sizes = resampling.voxel_sizes(scan.affine)
    spacing = max(WORKING_SPACING_MM, float(sizes.min()))
    shape = np.maximum(1, np.round(np.array(scan.data.shape) * sizes / spacing)).astype(int)
    # The first voxel's outer corner stays where it is.
    step = np.array(scan.data.shape) / shape
    affine = scan.affine.copy()
    affine[:3, :3] = scan.affine[:3, :3] * step
    affine[:3, 3] += scan.affine[:3, :3] @ ((step - 1) / 2)
    smooth = resampling.antialias(scan.data - air_level(scan.data), scan.affine, spacing)
    positions = grids.voxel_positions(tuple(int(n) for n in shape), affine)
    data = resampling.sample(smooth, scan.affine, positions, mode='nearest')
    head = _head(data)
    return None if head is None else Coarse(data, head, affine, spacing)


def _head(data: np.ndarray) -> np.ndarray | None:
    """The largest component that is not air, with the holes of each plane filled (nose, ears)."""
    some = data[data > 0.02 * data.max()]
    if not some.size or data.max() <= 0:
        return None
    bright = data > AIR_FRACTION * np.percentile(some, 98)
    labels, count = ndimage.label(bright)
    if count > 1:
        bright = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    head = ndimage.binary_closing(np.pad(bright, 3), iterations=2)
    for axis in range(3):
        for plane in np.moveaxis(head, axis, 0):
            plane[...] = ndimage.binary_fill_holes(plane)
    return head[3:-3, 3:-3, 3:-3]


def is_whole_head(coarse: Coarse | None) -> bool:
    """Whether a scan shows skull and scalp, and not only a brain; see `coarse_head`.

    A skull is a dark shell below a bright one (the scalp).
    """
    if coarse is None or not coarse.head.any():
        return False
    if coarse.head.sum() * coarse.spacing**3 / 1000 > LARGEST_BRAIN_ML:
        return True
    return shell_darkness(coarse) < SHELL_DARKNESS


def shell_darkness(coarse: Coarse) -> float:
    """Lowest ratio of the intensity at a depth to the brightest above it, at most 1."""
    depth = depth_below_surface(coarse)
    height = grids.voxel_positions(coarse.head.shape, coarse.affine)[..., 2]
    upper = coarse.head & (height > height[coarse.head].max() - UPPER_HEAD_MM)
    edges = np.arange(0.0, SHELL_DEPTH_MM + 1e-6, coarse.spacing)
    rings = [upper & (depth > low) & (depth <= low + coarse.spacing) for low in edges]
    profile = [float(np.median(coarse.data[ring])) for ring in rings if ring.any()]
    brightest = np.maximum.accumulate(profile)
    ratios = [here / above for here, above in zip(profile, brightest, strict=True) if above > 0]
    return float(min(ratios, default=1.0))


def depth_below_surface(coarse: Coarse) -> np.ndarray:
    """Depth (x, y, z) in mm below the surface of the head; a face that cuts it is no surface."""
    inside = np.pad(coarse.head, 1, mode='edge')
    return ndimage.distance_transform_edt(inside)[1:-1, 1:-1, 1:-1] * coarse.spacing
