"""The grids of the model: where each voxel of a preprocessed volume lies in MNI152 space.

A grid is a box of isotropic voxels, RAS+, centred on the bounding box of the MNI152 brain. The
brain of nilearn's template (1 mm mask) extends over 145 x 181 x 155 mm. All grids contain all of it
except the paper's: its cube of 160 mm is 21 mm shorter than the brain in y, so the frontal and
occipital poles lie outside it: 1.8 % of the brain's volume.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Middle of the bounding box of nilearn's MNI152 brain mask: x -72..72, y -107..73, z -72..82 mm.
MNI_BRAIN_CENTRE = (0.0, -17.0, 5.0)


@dataclasses.dataclass(frozen=True)
class ModelGrid:
    """A box of voxels in MNI152 space.

    Attributes:
      shape: number of voxels along x, y, z.
      spacing: voxel size along x, y, z, mm.
      centre: world position of the middle of the box, mm (RAS+).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    centre: tuple[float, float, float] = MNI_BRAIN_CENTRE

    @property
    def affine(self) -> np.ndarray:
        """Voxel index -> MNI152 world mm, RAS+: (4, 4) float64."""
        affine = np.diag([*self.spacing, 1.0])
        half_extent = (np.array(self.shape) - 1) / 2 * self.spacing
        affine[:3, 3] = np.array(self.centre) - half_extent
        return affine

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing)) / 1000.0

    def positions(self) -> np.ndarray:
        """World position of every voxel, mm: (x, y, z, 3) float32."""
        return voxel_positions(self.shape, self.affine)


def voxel_positions(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """World position (mm) of each voxel of an array with this affine: (x, y, z, 3) float32."""
    axes = [np.arange(n, dtype=np.float64) for n in shape]
    index = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
    return (index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def _isotropic(shape: tuple[int, int, int], spacing: float) -> ModelGrid:
    return ModelGrid(shape, (spacing, spacing, spacing))


GRIDS = {
    'demo': _isotropic((40, 48, 40), 4.0),
    'smoke': _isotropic((16, 16, 16), 12.0),
    '2mm': _isotropic((80, 96, 80), 2.0),
    '1.5mm': _isotropic((112, 128, 112), 1.5),
    '1mm': _isotropic((160, 192, 160), 1.0),
    'paper': _isotropic((160, 160, 160), 1.0),
}
