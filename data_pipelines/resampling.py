"""Interpolation of volumes at world positions, and from one grid of voxels onto another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from data_pipelines import grids
from data_pipelines.volume_io import Volume

_FWHM_PER_SIGMA = 2.3548
_PLANES_AT_ONCE = 16  # of a scan, so that the positions of its voxels need little memory


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Length of each voxel axis, mm: (3,)."""
    return np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)


def antialias(data: np.ndarray, affine: np.ndarray, target_spacing: float) -> np.ndarray:
    """Smooth a volume before it is sampled every `target_spacing` mm.

    The full width at half maximum of the Gaussian kernel turns a voxel of the source into one of
    the target (variances add). An axis that is already coarser than the target is not smoothed.
    """
    sizes = voxel_sizes(affine)
    fwhm = np.sqrt(np.maximum(target_spacing**2 - sizes**2, 0.0))
    sigma = fwhm / _FWHM_PER_SIGMA / sizes
    data = np.asarray(data, np.float32)
    if not sigma.any():
        return data
    return ndimage.gaussian_filter(data, sigma, mode='constant', truncate=3.0)


def sample(
    data: np.ndarray, affine: np.ndarray, positions: np.ndarray, mode: str = 'constant'
) -> np.ndarray:
    """Linear interpolation of `data` at world positions.

    Args:
      data: (x, y, z).
      affine: voxel -> world mm of `data`.
      positions: (..., 3) world mm.
      mode: beyond the array: 'constant' reads zero, 'nearest' the outermost voxel.

    Returns:
      (...) float32.
    """
    return sample_each([data], affine, positions, mode)[0]


def sample_each(
    volumes: Sequence[np.ndarray], affine: np.ndarray, positions: np.ndarray, mode: str = 'constant'
) -> list[np.ndarray]:
    """`sample` for several volumes on the same voxels."""
    world_to_voxel = np.linalg.inv(affine).astype(np.float32)
    coordinates = positions @ world_to_voxel[:3, :3].T + world_to_voxel[:3, 3]
    coordinates = np.moveaxis(coordinates, -1, 0)
    return [
        ndimage.map_coordinates(
            np.asarray(data, np.float32), coordinates, order=1, mode=mode, cval=0.0
        )
        for data in volumes
    ]


def resample_image(
    data: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], target_affine: np.ndarray
) -> np.ndarray:
    """A volume on other voxels: smoothed if they are coarser, then interpolated linearly.

    Args:
      data: (x, y, z).
      affine: voxel -> world mm of `data`.
      shape: of the result.
      target_affine: voxel of the result -> the same world, mm.

    Returns:
      `shape`, float32.
    """
    spacing = float(np.mean(voxel_sizes(target_affine)))
    positions = grids.voxel_positions(shape, target_affine)
    return sample(antialias(data, affine, spacing), affine, positions)


def resample_mask(
    mask: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], target_affine: np.ndarray
) -> np.ndarray:
    """A mask on other voxels: `shape`, bool, true where the resampled mask is at least 0.5.

    If it is below 0.5 everywhere, its largest voxel is kept, so that no small lesion is lost.
    """
    fraction = resample_image(mask, affine, shape, target_affine)
    best = fraction.max()
    return fraction >= 0.5 if best >= 0.5 or best <= 0 else fraction >= best


def to_scan(data: np.ndarray, affine: np.ndarray, scan: Volume) -> np.ndarray:
    """A map or a mask on the model's grid, interpolated linearly at the voxels of a scan.

    Args:
      data: (x, y, z) on the model's grid; a mask is bool, a map has any other type.
      affine: its voxel -> the scan's world, mm: `Preprocessed.affine`.
      scan: its voxels are used, its intensities are not.

    Returns:
      scan.data.shape: float32, 0 beyond the model's grid; bool for a mask, true where the
      interpolated mask is at least 0.5. `volume_io.save_like` writes it.
    """
    shape = scan.data.shape
    values = np.empty(shape, np.float32)
    for start in range(0, shape[0], _PLANES_AT_ONCE):
        stop = min(start + _PLANES_AT_ONCE, shape[0])
        slab = scan.affine.copy()
        slab[:3, 3] += scan.affine[:3, 0] * start
        positions = grids.voxel_positions((stop - start, *shape[1:]), slab)
        values[start:stop] = sample(data, affine, positions)
    return values >= 0.5 if data.dtype == np.bool_ else values
