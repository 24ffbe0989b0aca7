"""A healthy subject of the embedded cohort: the MNI152 maps with a random anatomy and scanner.

The anatomy is a small affine map, a diffeomorphism, which is the exponential of a stationary
velocity field (scaling and squaring; Arsigny et al. 2006), and a smooth shift of the tissue borders
(cortical thickness, ventricle size). It is drawn on a grid of its own in mm, so a subject has the
same anatomy on all model grids. The scanner is a tissue contrast, a bias field and noise.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.spatial import transform

from data_pipelines import grids, mni_template, resampling

FIELD_GRID = grids.ModelGrid((48, 56, 48), (4.0, 4.0, 4.0))
# Correlation length (mm) and standard deviation (mm) of each part of the velocity.
VELOCITY_SCALES = ((30.0, 3.2), (12.0, 1.4))
NUM_SQUARINGS = 6
ROTATION_STD_DEGREES = 2.5
SCALING_STD = 0.04
SHEAR_STD = 0.02
TRANSLATION_STD_MM = 1.5
TISSUE_SHIFT_SCALE_MM, TISSUE_SHIFT_STD = 14.0, 0.4
BIAS_SCALE_MM = 70.0


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Tissue of one subject on a model grid, each (x, y, z) float32.

    Attributes:
      csf, gm, wm: tissue fractions, their sum about 1 inside the brain.
      detail: T1w intensity that the tissue does not explain, in the template's units.
      brain: bool.
    """

    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    detail: np.ndarray
    brain: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scanner:
    """What determines the intensities of a subject.

    Attributes:
      means: intensity of CSF, grey matter, white matter.
      detail_gain: weight of the template's own detail.
      bias: multiplicative field (x, y, z).
      noise: additive noise (x, y, z).
    """

    means: tuple[float, float, float]
    detail_gain: float
    bias: np.ndarray
    noise: np.ndarray

    def acquire(self, clean: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Add bias and noise to an image: the scan in [0, 1], background exactly 0."""
        scan = np.clip(clean * self.bias + self.noise, 0.0, 1.0)
        return np.where(brain, scan, 0.0).astype(np.float32)


def smooth_noise(rng: np.random.Generator, scale_mm: float) -> np.ndarray:
    """Gaussian random field on `FIELD_GRID`, mean 0, standard deviation 1; (x, y, z) float32.

    Its correlation is exp(-1) at `scale_mm` (Gaussian kernel with half that standard deviation).
    """
    white = rng.standard_normal(FIELD_GRID.shape, dtype=np.float32)
    field = ndimage.gaussian_filter(white, scale_mm / 2 / FIELD_GRID.spacing[0], mode='wrap')
    return (field - field.mean()) / field.std()


def exponentiate(velocity: np.ndarray, num_squarings: int = NUM_SQUARINGS) -> np.ndarray:
    """Displacement (mm) of the flow of a stationary velocity over unit time: scaling and squaring.

    Args:
      velocity: (x, y, z, 3) mm per unit time on `FIELD_GRID`.
      num_squarings: the flow over time 2**-num_squarings is one Euler step, composed with itself
        this many times.
    """
    positions = FIELD_GRID.positions()
    displacement = velocity / 2**num_squarings
    for _ in range(num_squarings):
        displacement = displacement + sample_field(displacement, positions + displacement)
    return displacement


def sample_field(field: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A field on `FIELD_GRID`, (x, y, z) or (x, y, z, c), at world positions (..., 3)."""
    channels = [field] if field.ndim == 3 else np.moveaxis(field, -1, 0)
    sampled = resampling.sample_each(channels, FIELD_GRID.affine, positions, mode='nearest')
    return sampled[0] if field.ndim == 3 else np.stack(sampled, axis=-1)


def random_displacement(rng: np.random.Generator) -> np.ndarray:
    """Displacement (mm) of a random diffeomorphism on `FIELD_GRID`: (x, y, z, 3)."""
    velocity = sum(
        std * np.stack([smooth_noise(rng, scale) for _ in range(3)], axis=-1)
        for scale, std in VELOCITY_SCALES
    )
    return exponentiate(velocity)


def random_affine(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (3, 3), translation (3,) mm about the brain's centre: errors of an alignment."""
    angles = rng.normal(0.0, ROTATION_STD_DEGREES, 3)
    rotation = transform.Rotation.from_euler('xyz', angles, degrees=True).as_matrix()
    scaling = np.diag(np.exp(rng.normal(0.0, SCALING_STD / 2) + rng.normal(0.0, SCALING_STD, 3)))
    shear = np.eye(3) + np.triu(rng.normal(0.0, SHEAR_STD, (3, 3)), 1)
    return rotation @ shear @ scaling, rng.normal(0.0, TRANSLATION_STD_MM, 3)


def random_anatomy(rng: np.random.Generator, grid: grids.ModelGrid) -> Anatomy:
    """A new brain: the template's maps, sampled where a random deformation sends each voxel."""
    matrix, translation = random_affine(rng)
    displacement = random_displacement(rng)
    shifts = np.stack(
        [TISSUE_SHIFT_STD * smooth_noise(rng, TISSUE_SHIFT_SCALE_MM) for _ in range(3)], axis=-1
    )

    positions = grid.positions()
    moved = positions + sample_field(displacement, positions)
    centre = np.array(grids.MNI_BRAIN_CENTRE)
    in_template = ((moved - centre) @ matrix.T + centre + translation).astype(np.float32)

    maps = mni_template.load_template(grid.spacing[0])
    volumes = (maps.csf, maps.gm, maps.wm, maps.detail)
    *fractions, detail = resampling.sample_each(volumes, maps.affine, in_template)
    brain_fraction = sum(fractions)
    # Softmax with shifted logits: borders move, pure tissue stays pure.
    weights = np.moveaxis(np.exp(sample_field(shifts, positions)), -1, 0)
    shifted = [fraction * weight for fraction, weight in zip(fractions, weights)]
    gain = brain_fraction / np.maximum(sum(shifted), 1e-6)
    csf, gm, wm = (gain * s for s in shifted)
    return Anatomy(csf, gm, wm, detail, brain_fraction >= 0.5)


def random_scanner(rng: np.random.Generator, grid: grids.ModelGrid) -> Scanner:
    """Contrast in the order of T1w (CSF < GM < WM), a smooth bias field, Gaussian noise."""
    wm = rng.uniform(0.77, 0.87)
    gm = wm * rng.uniform(0.68, 0.80)
    csf = wm * rng.uniform(0.20, 0.38)
    log_bias = rng.uniform(0.02, 0.06) * smooth_noise(rng, BIAS_SCALE_MM)
    noise = rng.uniform(0.008, 0.02) * rng.standard_normal(grid.shape, dtype=np.float32)
    bias = np.exp(sample_field(log_bias, grid.positions()))
    return Scanner((csf, gm, wm), rng.uniform(0.7, 1.0), bias, noise)


def clean_image(anatomy: Anatomy, scanner: Scanner) -> np.ndarray:
    """T1w intensity before bias and noise: means of the tissues, and the template's detail."""
    csf, gm, wm = scanner.means
    tissue = csf * anatomy.csf + gm * anatomy.gm + wm * anatomy.wm
    return tissue + scanner.detail_gain * anatomy.detail
