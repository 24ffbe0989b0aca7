"""The regular grid of voxels that every operator of this package works on."""

from __future__ import annotations

import dataclasses
import math

from fluidjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Grid:
    """A 3-D grid: a frozen, hashable value, so it can be a static argument under `jax.jit`.

    Attributes:
      shape: voxels along x, y, z; at least 2 each.
      spacing: size of a voxel along x, y, z in mm; positive.

    Raises:
      UserError: for a shape or a spacing that describes no volume.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'shape', tuple(self.shape))
        object.__setattr__(self, 'spacing', tuple(float(h) for h in self.spacing))
        if len(self.shape) != 3 or any(int(n) != n or n < 2 for n in self.shape):
            raise UserError(f'grid shape {self.shape}: give three whole numbers, each 2 or more')
        object.__setattr__(self, 'shape', tuple(int(n) for n in self.shape))
        if len(self.spacing) != 3 or not all(math.isfinite(h) and h > 0 for h in self.spacing):
            raise UserError(f'grid spacing {self.spacing}: give three positive numbers, in mm')

    @property
    def extent(self) -> tuple[float, float, float]:
        """Size of the whole volume along x, y, z in mm."""
        return tuple(n * h for n, h in zip(self.shape, self.spacing))
