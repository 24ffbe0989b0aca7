"""From the model's grid back onto a scan's own voxels."""

from __future__ import annotations

import numpy as np

from data_pipelines import grids, resampling
from data_pipelines.volume_io import Volume

SLAB = 16  # planes read at a time, so that the positions need little memory


def to_scan(data: np.ndarray, affine: np.ndarray, scan: Volume) -> np.ndarray:
    """A map or mask on the model's grid, on the voxels of the scan it was made of.

    Linear interpolation, 0 beyond the model's grid; of a mask, where at least half of it lies.

    Args:
      data: (x, y, z) on the model's grid; bool is a mask, all else a map.
      affine: its voxel -> the scan's world, mm: `Preprocessed.affine`.
      scan: gives the voxels; its intensities are not used.

    Returns:
      scan.data.shape, bool for a mask, else float32: `save_like` writes it.
    """
    shape = scan.data.shape
    values = np.empty(shape, np.float32)
    for start in range(0, shape[0], SLAB):
        stop = min(start + SLAB, shape[0])
        slab = scan.affine.copy()
        slab[:3, 3] += scan.affine[:3, 0] * start
        positions = grids.voxel_positions((stop - start, *shape[1:]), slab)
        values[start:stop] = resampling.sample(data, affine, positions)
    return values >= 0.5 if data.dtype == np.bool_ else values
