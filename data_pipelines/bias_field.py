"""N4: the slow shading that a receive coil leaves on a scan, estimated coarsely and divided out.

The field is a B-spline with one knot every 60 mm or so, fitted to the logarithm on shrunken
voxels within the brain: too stiff for it to follow a lesion of a few centimetres.
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
# No coil shades by more than this factor either way; beyond it the fit has gone astray.
LARGEST_FACTOR = 4.0
# Voxels darker than this part of the brain's median (fluid, holes) do not bear on the field.
DARKEST = 0.35


def estimate(data: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The field of a brain scan at full resolution: data / field is without shading.

    Args:
      data: (x, y, z) intensities >= 0, background 0.
      brain: (x, y, z) bool.
      affine: voxel -> world, mm.

    Returns:
      (x, y, z) float32 > 0, with a geometric mean of 1 in the brain.
    """
    factors = np.maximum(np.round(WORKING_SPACING_MM / resampling.voxel_sizes(affine)), 1)
    factors = np.minimum(factors.astype(int), np.array(data.shape))
    small, part = _shrunken(data * brain, factors), _shrunken(brain, factors)
    used = part > 0.5
    small = np.divide(small, part, out=np.zeros_like(small), where=used)
    if used.any():
        used &= small > DARKEST * np.median(small[used])
    if used.sum() < 100:  # nothing to fit a spline to
        return np.ones(data.shape, np.float32)
    log_field = _log_field(small, used, resampling.voxel_sizes(affine) * factors)
    log_field -= log_field[used].mean()
    limit = np.log(LARGEST_FACTOR)
    log_field = np.clip(log_field, -limit, limit)
    return np.exp(_enlarged(log_field, data.shape, factors)).astype(np.float32)


def strength(field: np.ndarray, brain: np.ndarray) -> float:
    """95th over 5th percentile of a field in the brain: 1 is no shading."""
    low, high = np.percentile(field[brain], (5, 95))
    return float(high / low)


def _log_field(small: np.ndarray, used: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    image, mask = (_image(a, spacing) for a in (small, used.astype(np.uint8)))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(ITERATIONS)
    n4.SetConvergenceThreshold(CONVERGENCE)
    n4.SetBiasFieldFullWidthAtHalfMaximum(HISTOGRAM_FWHM)
    with registration.one_thread():
        n4.Execute(image, mask)
        log_field = n4.GetLogBiasFieldAsImage(image)
    return sitk.GetArrayFromImage(log_field).T.astype(np.float32)


def _image(data: np.ndarray, spacing: np.ndarray) -> sitk.Image:
    grid = grids.ModelGrid(data.shape, tuple(float(s) for s in spacing))
    return registration.sitk_image(data, grid)


def _shrunken(data: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Means over blocks of voxels; the last, incomplete ones are padded with their borders."""
    padding = [(0, int(-n % f)) for n, f in zip(data.shape, factors, strict=True)]
    data = np.pad(np.asarray(data, np.float32), padding, mode='edge')
    blocks = [m for n, f in zip(data.shape, factors, strict=True) for m in (n // f, f)]
    return data.reshape(blocks).mean(axis=(1, 3, 5))


def _enlarged(small: np.ndarray, shape: tuple[int, ...], factors: np.ndarray) -> np.ndarray:
    """Linear interpolation between the blocks' middles, one axis after another."""
    for axis, (n, f) in enumerate(zip(shape, factors, strict=True)):
        place = np.clip((np.arange(n) - (f - 1) / 2) / f, 0, small.shape[axis] - 1)
        low = np.minimum(place.astype(int), max(small.shape[axis] - 2, 0))
        high = np.minimum(low + 1, small.shape[axis] - 1)
        weight = (
            (place - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        )
        small = (1 - weight) * small.take(low, axis) + weight * small.take(high, axis)
    return small
