"""Affine registration of a skull-stripped scan to the MNI152 template (SimpleITK).

Mattes mutual information over every voxel of the template's brain and a margin. A similarity
transform, initialised with the brains' centres and volumes, comes first, then the affine one,
coarse to fine; without the similarity transform the affine one diverged on a rotated brain. On one
thread and without random sampling the result is the same, to the bit, each time.

SimpleITK uses LPS. Here both images have RAS+ origins and axis-aligned grids, so its "physical
space" is RAS+ and no sign changes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from data_pipelines import grids, mni_template, resampling

REGISTRATION_SPACING_MM = 4.0
MARGIN_MM = 10.0
HISTOGRAM_BINS = 32
# Per level: shrink factor, smoothing in mm.
SIMILARITY_LEVELS = ((2, 5.0),)
AFFINE_LEVELS = ((2, 4.0), (1, 2.0))
SIMILARITY_STEP_MM, AFFINE_STEP_MM = 4.0, 1.0  # longest first step of a level
MAX_ITERATIONS = 100
FAR_APART_MM = 20.0  # centres of a brain in two scans of a session, by their headers
TEMPLATE_GRID = grids.ModelGrid((48, 56, 48), (REGISTRATION_SPACING_MM,) * 3)


def register_to_mni(scan: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The affine map from MNI152 world to the scan's world, both RAS+ mm.

    Args:
      scan: (x, y, z) intensities, background 0.
      brain: (x, y, z) bool.
      affine: voxel -> world of the scan.

    Returns:
      scan_from_mni, (4, 4) float64.
    """
    fixed, fixed_mask, mni_centre, mni_volume = _fixed_images()
    moving, scan_centre, scan_volume = _moving_image(scan, brain, affine)
    similarity = sitk.Similarity3DTransform()
    similarity.SetCenter(mni_centre)
    similarity.SetScale((scan_volume / mni_volume) ** (1 / 3))
    similarity.SetTranslation([float(s - m) for s, m in zip(scan_centre, mni_centre, strict=True)])
    full = sitk.AffineTransform(3)
    full.SetCenter(mni_centre)

    with one_thread():
        method = registration_method(fixed_mask, similarity, SIMILARITY_LEVELS, SIMILARITY_STEP_MM)
        method.Execute(fixed, moving)
        full.SetMatrix(similarity.GetMatrix())
        full.SetTranslation(similarity.GetTranslation())
        registration_method(fixed_mask, full, AFFINE_LEVELS, AFFINE_STEP_MM).Execute(fixed, moving)
    return as_matrix(full)


def register_rigidly(
    fixed: np.ndarray,
    fixed_brain: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_brain: np.ndarray,
    moving_affine: np.ndarray,
) -> np.ndarray:
    """The rigid map from one scan's world to another's of the same head, both RAS+ mm.

    It starts from the headers, or, where by these the brains lie apart, from their centres.

    Args:
      fixed, moving: (x, y, z) intensities, background 0, of any contrasts.
      fixed_brain, moving_brain: (x, y, z) bool.
      fixed_affine, moving_affine: voxel -> world.

    Returns:
      moving_from_fixed, (4, 4) float64.
    """
    image, centre, _ = _moving_image(fixed, fixed_brain, fixed_affine)
    mask, _, _ = _moving_image(fixed_brain.astype(np.float32), fixed_brain, fixed_affine)
    other, other_centre, _ = _moving_image(moving, moving_brain, moving_affine)
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre)
    apart = np.subtract(other_centre, centre)
    if np.linalg.norm(apart) > FAR_APART_MM:
        rigid.SetTranslation(apart.tolist())
    with one_thread():
        inside = sitk.Cast(mask > 0.05, sitk.sitkUInt8)
        method = registration_method(inside, rigid, AFFINE_LEVELS, AFFINE_STEP_MM)
        method.Execute(image, other)
    return as_matrix(rigid)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """SimpleITK on one thread, so that its sums are always in the same order."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def registration_method(
    fixed_mask: sitk.Image,
    transform: sitk.Transform,
    levels: tuple[tuple[int, float], ...],
    longest_step_mm: float,
) -> sitk.ImageRegistrationMethod:
    """A registration, which optimises `transform` in place."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    method.SetMetricFixedMask(fixed_mask)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    shrink_factors, smoothing = zip(*levels, strict=True)
    method.SetShrinkFactorsPerLevel(shrink_factors)
    method.SetSmoothingSigmasPerLevel(smoothing)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-2,
        numberOfIterations=MAX_ITERATIONS,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-6,
        estimateLearningRate=method.Once,
        maximumStepSizeInPhysicalUnits=longest_step_mm,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    return method


def as_matrix(transform: sitk.AffineTransform) -> np.ndarray:
    """x -> M (x - c) + t + c as a homogeneous matrix, (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return matrix


def sitk_image(data: np.ndarray, grid: grids.ModelGrid) -> sitk.Image:
    """An array (x, y, z) on an axis-aligned RAS+ grid as a SimpleITK image, signs unchanged."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.affine[:3, 3].tolist())
    return image


def _centre_and_volume(brain: np.ndarray, affine: np.ndarray) -> tuple[list[float], float]:
    """Centre of mass in world mm and volume in mm3 of a mask."""
    centre = affine[:3, :3] @ np.array(ndimage.center_of_mass(brain)) + affine[:3, 3]
    return centre.tolist(), float(brain.sum() * abs(np.linalg.det(affine[:3, :3])))


@functools.lru_cache(maxsize=1)
def _fixed_images() -> tuple[sitk.Image, sitk.Image, list[float], float]:
    """The template, its brain with a margin, the brain's centre (mm) and volume (mm3)."""
    grid = TEMPLATE_GRID
    maps = mni_template.on_grid(grid)
    brain = maps.brain >= 0.5
    margin = ndimage.distance_transform_edt(~brain, sampling=grid.spacing[0]) <= MARGIN_MM
    centre, volume = _centre_and_volume(brain, grid.affine)
    fixed = sitk_image(maps.t1, grid)
    return fixed, sitk_image(margin.astype(np.uint8), grid), centre, volume


def _moving_image(
    scan: np.ndarray, brain: np.ndarray, affine: np.ndarray
) -> tuple[sitk.Image, list[float], float]:
    """The scan around its brain, axis-aligned in its own world; the brain's centre and volume."""
    spacing = REGISTRATION_SPACING_MM
    centre, volume = _centre_and_volume(brain, affine)
    voxels = np.argwhere(brain)
    corners = voxels @ affine[:3, :3].T + affine[:3, 3]
    low, high = corners.min(axis=0) - MARGIN_MM, corners.max(axis=0) + MARGIN_MM
    shape = tuple(int(n) for n in np.ceil((high - low) / spacing) + 1)
    grid = grids.ModelGrid(shape, (spacing,) * 3, centre=tuple(((low + high) / 2).tolist()))
    smooth = resampling.antialias(scan, affine, spacing)
    # Intensities of about 1, whatever the scanner's unit.
    smooth = smooth / np.percentile(scan[brain], 98)
    return sitk_image(resampling.sample(smooth, affine, grid.positions()), grid), centre, volume
