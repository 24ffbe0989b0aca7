"""One person's scan on the model's grid, as cohorts give it and the evaluation takes it."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Subject:
    """One subject on the model grid.

    Attributes:
      name: unique within its split.
      image: (x, y, z) float32 in [0, 1], background 0.
      brain: (x, y, z) bool.
      lesion: (x, y, z) bool, or None where no mask is known.
      healthy: (x, y, z) float32, the same subject without its lesion, or None.
      affine: voxel -> the scan's own world, mm: (4, 4) float64.
    """

    name: str
    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray | None
    healthy: np.ndarray | None
    affine: np.ndarray
