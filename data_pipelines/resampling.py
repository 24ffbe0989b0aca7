"""Reading a volume at world positions, without aliasing when the target is coarser."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_FWHM_PER_SIGMA = 2.3548


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Length of each voxel axis, mm: (3,)."""
    return np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)


def antialias(data: np.ndarray, affine: np.ndarray, target_spacing: float) -> np.ndarray:
    """Gaussian low-pass before sampling `data` every `target_spacing` mm.

    The kernel's full width at half maximum is what turns a voxel of the source into one of the
    target (variances add), so an axis that is already coarser than the target stays as it is.
    """
    sizes = voxel_sizes(affine)
    fwhm = np.sqrt(np.maximum(target_spacing**2 - sizes**2, 0.0))
    sigma = fwhm / _FWHM_PER_SIGMA / sizes
    data = np.asarray(data, np.float32)
    return (
        data
        if not sigma.any()
        else ndimage.gaussian_filter(data, sigma, mode='constant', truncate=3.0)
    )


def sample(data: np.ndarray, affine: np.ndarray, positions: np.ndarray, mode: str = 'constant'):
    """Linear interpolation of `data` at world positions.

    Args:
      data: (x, y, z).
      affine: voxel -> world mm of `data`.
      positions: (..., 3) world mm.
      mode: beyond the array: 'constant' reads zero, 'nearest' the outermost voxel.

    Returns:
      (...) float32.
    """
    world_to_voxel = np.linalg.inv(affine).astype(np.float32)
    coordinates = positions @ world_to_voxel[:3, :3].T + world_to_voxel[:3, 3]
    coordinates = np.moveaxis(coordinates, -1, 0)
    return ndimage.map_coordinates(
        np.asarray(data, np.float32), coordinates, order=1, mode=mode, cval=0.0
    )
