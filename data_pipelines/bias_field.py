"""N4: estimates the smooth shading that a receive coil leaves on a scan, to divide it out.

N4 fits a B-spline with at most two intervals per axis to the logarithm of the intensities within
the brain, on every n-th voxel (Tustison et al. 2010; SimpleITK). This spline is too stiff to follow
a lesion of a few centimetres.

Changes here do not need a new `PREPROCESSING_VERSION`: N4 is an option of prediction, off by
default, and no cohort is built with it.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from data_pipelines import grids, registration, resampling

WORKING_SPACING_MM = 4.0
# Two levels: 1 and 2 spline intervals per axis. A third would begin to follow large lesions.
ITERATIONS = (50, 30)
CONVERGENCE = 1e-3
HISTOGRAM_FWHM = 0.15
# No coil shades by more than this factor; a larger one is a failed fit.
LARGEST_FACTOR = 4.0
# Voxels darker than this fraction of the brain's median (CSF, holes) are not used.
DARKEST = 0.35
LEAST_VOXELS = 100  # for a fit


def estimate(data: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The field of a brain scan at full resolution: data / field has no shading.

    Args:
      data: (x, y, z) intensities >= 0, background 0.
      brain: (x, y, z) bool.
      affine: voxel -> world, mm.

    Returns:
      (x, y, z) float32 > 0, with a geometric mean of 1 in the brain; 1 everywhere if the brain is
      too small for a fit.
    """
    if not brain.any():
        return np.ones(data.shape, np.float32)
    spacing = resampling.voxel_sizes(affine)
    factors = np.maximum(np.round(WORKING_SPACING_MM / spacing), 1)
    factors = np.minimum(factors, data.shape).astype(int).tolist()
    # Shrink takes every n-th voxel, so the noise is averaged before.
    smooth = resampling.antialias(data, affine, WORKING_SPACING_MM)
    grid = grids.ModelGrid(data.shape, tuple(spacing.tolist()))
    used = brain & (data > DARKEST * np.median(data[brain]))
    small = sitk.Shrink(registration.sitk_image(smooth, grid), factors)
    mask = sitk.Shrink(registration.sitk_image(used.astype(np.uint8), grid), factors)
    if sitk.GetArrayViewFromImage(mask).sum() < LEAST_VOXELS:
        return np.ones(data.shape, np.float32)
    log_field = _log_field(small, mask, registration.sitk_image(data, grid))
    log_field -= log_field[brain].mean()
    limit = np.log(LARGEST_FACTOR)
    return np.exp(np.clip(log_field, -limit, limit)).astype(np.float32)


def strength(field: np.ndarray, brain: np.ndarray) -> float:
    """95th over 5th percentile of a field in the brain: 1 without shading."""
    low, high = np.percentile(field[brain], (5, 95))
    return float(high / low)


def _log_field(small: sitk.Image, mask: sitk.Image, full: sitk.Image) -> np.ndarray:
    """Logarithm of the field that fits `small`, on the voxels of `full`: (x, y, z)."""
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(ITERATIONS)
    n4.SetConvergenceThreshold(CONVERGENCE)
    n4.SetBiasFieldFullWidthAtHalfMaximum(HISTOGRAM_FWHM)
    with registration.one_thread():
        n4.Execute(small, mask)
        log_field = n4.GetLogBiasFieldAsImage(full)
    return sitk.GetArrayFromImage(log_field).T
