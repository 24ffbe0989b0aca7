"""Lesions for the test subjects of the embedded cohort, different from those of training.

Training transports Perlin noise or real masks along a flow and *adds* a shift of intensity
(arXiv:2506.10233, fluid-driven anomaly randomization). Here a lesion is a union of ellipsoids with
an irregular surface, and its intensity is *blended*, I' = (1 - w) I + w (c + texture), towards a
necrotic c between CSF and grey matter. Shape and intensity follow other laws than in training, so
that the test scores are informative.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.spatial import transform

from data_pipelines import grids, template_subjects

# Real lesions have a few ml (MS), about 30 (glioma) or hundreds (stroke).
VOLUME_RANGE_ML = (5.0, 120.0)
STRENGTH_RANGE = (0.6, 1.0)
MAX_LESIONS = 3
MAX_ELLIPSOIDS = 3
SURFACE_WOBBLE = 0.22
# A lesion spreads more easily through tissue than through CSF.
CSF_RESISTANCE = 1.5


@dataclasses.dataclass(frozen=True)
class Lesion:
    """A lesion on a model grid.

    Attributes:
      profile: (x, y, z) float32 in [0, 1], with a soft rim.
      mask: (x, y, z) bool, profile >= 0.5.
    """

    profile: np.ndarray
    mask: np.ndarray


def _ellipsoid_distance(
    rng: np.random.Generator, positions: np.ndarray, centre: np.ndarray, radius: float
) -> np.ndarray:
    """Distance from `centre` in units of the ellipsoid's semi-axes: 1 on its surface."""
    axes = radius * np.exp(rng.normal(0.0, 0.3, 3))
    rotation = transform.Rotation.random(random_state=rng).as_matrix()
    to_unit_ball = (rotation / axes).astype(np.float32)
    return np.linalg.norm((positions - centre.astype(np.float32)) @ to_unit_ball, axis=-1)


def _random_centre(
    rng: np.random.Generator, anatomy: template_subjects.Anatomy, positions: np.ndarray
) -> np.ndarray:
    """Position of a voxel of tissue, most likely of white matter; world mm."""
    weight = np.where(anatomy.brain, anatomy.wm**2 + 0.2 * anatomy.gm**2, 0.0).ravel()
    index = rng.choice(weight.size, p=weight / weight.sum())
    return positions.reshape(-1, 3)[index]


def random_lesion(
    rng: np.random.Generator,
    grid: grids.ModelGrid,
    anatomy: template_subjects.Anatomy,
    volume_ml: float,
) -> Lesion:
    """A lesion of `volume_ml` (to the nearest voxel, at least one) inside the brain."""
    positions = grid.positions()
    radius = (3000.0 * volume_ml / (4 * np.pi)) ** (1 / 3)
    centre = _random_centre(rng, anatomy, positions)
    distance = _ellipsoid_distance(rng, positions, centre, radius)
    for _ in range(rng.integers(0, MAX_ELLIPSOIDS)):
        direction = rng.normal(size=3)
        offset = 0.9 * radius * direction / np.linalg.norm(direction)
        other = _ellipsoid_distance(rng, positions, centre + offset, 0.8 * radius)
        distance = np.minimum(distance, other)

    wobble = template_subjects.smooth_noise(rng, max(8.0, radius))
    surface = np.exp(SURFACE_WOBBLE * template_subjects.sample_field(wobble, positions))
    distance = distance * surface * (1 + CSF_RESISTANCE * anatomy.csf)

    inside = np.sort(distance[anatomy.brain])
    num_voxels = min(max(1, round(volume_ml / grid.voxel_volume_ml)), inside.size)
    threshold = inside[num_voxels - 1]
    mask = anatomy.brain & (distance <= threshold)
    profile = soft_profile(mask, grid, rim_mm=rng.uniform(0.8, 2.0))
    return Lesion(np.where(anatomy.brain, profile, 0.0).astype(np.float32), mask)


def soft_profile(mask: np.ndarray, grid: grids.ModelGrid, rim_mm: float) -> np.ndarray:
    """Logistic function of the distance (mm) to the mask's surface: above 0.5 inside."""
    to_outside = ndimage.distance_transform_edt(mask, sampling=grid.spacing)
    to_inside = ndimage.distance_transform_edt(~mask, sampling=grid.spacing)
    half_voxel = grid.spacing[0] / 2  # the surface runs between voxel centres
    depth = np.where(mask, to_outside - half_voxel, half_voxel - to_inside)
    # Clipped, because exp() would overflow far from the lesion.
    return 1 / (1 + np.exp(-np.clip(depth / rim_mm, -30, 30)))


def paint(
    rng: np.random.Generator,
    clean: np.ndarray,
    lesion: Lesion,
    tissue_means: tuple[float, float, float],
    grid: grids.ModelGrid,
) -> np.ndarray:
    """Blend a lesion into an image: I' = (1 - w) I + w (c + texture), w = strength * profile."""
    csf, gm, _ = tissue_means
    strength = rng.uniform(*STRENGTH_RANGE)
    necrotic = csf + rng.uniform(0.0, 0.4) * (gm - csf)
    texture = rng.uniform(0.02, 0.06) * template_subjects.smooth_noise(rng, 10.0)
    target = necrotic + template_subjects.sample_field(texture, grid.positions())
    weight = strength * lesion.profile
    return (1 - weight) * clean + weight * target


def add_lesions(
    rng: np.random.Generator,
    clean: np.ndarray,
    anatomy: template_subjects.Anatomy,
    tissue_means: tuple[float, float, float],
    grid: grids.ModelGrid,
) -> tuple[np.ndarray, np.ndarray]:
    """Add one to three lesions, each of at least 5 ml, together at most 120 ml, log-uniform.

    Returns:
      (diseased image before bias and noise, mask), (x, y, z) float32 and bool.
    """
    count = int(rng.integers(1, MAX_LESIONS + 1))
    low, high = VOLUME_RANGE_ML
    mask = np.zeros(grid.shape, bool)
    for _ in range(count):
        volume = np.exp(rng.uniform(np.log(low), np.log(high / count)))
        lesion = random_lesion(rng, grid, anatomy, volume)
        clean = paint(rng, clean, lesion, tissue_means, grid)
        mask |= lesion.mask
    return clean, mask
