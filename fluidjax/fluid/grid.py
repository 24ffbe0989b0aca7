"""The regular grid of voxels of all operators in this package, with its boundary condition."""

from __future__ import annotations

import dataclasses
import math
import numbers

from fluidjax.base.errors import UserError

BOUNDARIES = ('neumann', 'periodic')
_MOST_VOXELS = 2**31 - 1  # voxels are counted in 32-bit integers on the device


@dataclasses.dataclass(frozen=True)
class Grid:
    """A 2-D or 3-D grid: a frozen, hashable value, so it can be a static argument under `jax.jit`.

    Voxel i of an axis lies at i * spacing mm.

    Attributes:
      shape: voxels along x, y (, z); at least 2 each.
      spacing: size of a voxel along each axis in mm; positive. 1 mm where None.
      boundary: 'neumann' (beyond a face the value is that at the face) or 'periodic'.

    Raises:
      UserError: for an invalid shape, spacing or boundary.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    boundary: str = 'neumann'

    def __post_init__(self) -> None:
        shape = _as_tuple(self.shape)
        if len(shape) not in (2, 3) or not all(_is_count(n) and n >= 2 for n in shape):
            raise UserError(f'grid shape {shape}: give two or three whole numbers, each 2 or more')
        if math.prod(int(n) for n in shape) > _MOST_VOXELS:
            raise UserError(f'grid shape {shape}: has more than 2^31 voxels; resample or crop it')
        spacing = (1.0,) * len(shape) if self.spacing is None else _as_tuple(self.spacing)
        if len(spacing) != len(shape) or not all(_is_positive(h) for h in spacing):
            raise UserError(f'grid spacing {spacing}: give {len(shape)} positive numbers, in mm')
        if self.boundary not in BOUNDARIES:
            raise UserError(
                f'grid boundary {self.boundary!r}: choose one of {", ".join(BOUNDARIES)}'
            )
        object.__setattr__(self, 'shape', tuple(int(n) for n in shape))
        object.__setattr__(self, 'spacing', tuple(float(h) for h in spacing))

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of a scalar field (..., x, y (, z)), counted from the end."""
        return tuple(range(-self.ndim, 0))

    @property
    def periodic(self) -> bool:
        """Whether the faces of the volume are joined."""
        return self.boundary == 'periodic'

    @property
    def extent(self) -> tuple[float, ...]:
        """Size of the whole volume along each axis in mm."""
        return tuple(n * h for n, h in zip(self.shape, self.spacing))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres; in 2-D that of a slice 1 mm thick."""
        return math.prod(self.spacing) / 1000.0


def _as_tuple(values: object) -> tuple:
    return tuple(values) if hasattr(values, '__iter__') else (values,)


def _is_count(n: object) -> bool:
    return isinstance(n, numbers.Real) and math.isfinite(n) and n == int(n)


def _is_positive(h: object) -> bool:
    return isinstance(h, numbers.Real) and math.isfinite(h) and h > 0
