"""From a scan and its healthy counterpart to an anomaly map, on the device.

In: two volumes (x, y, z) in [0, 1], a brain mask, the voxel size in mm. Out: one map (x, y, z),
zero outside the (eroded) brain. All lengths are in mm, so that one setting means the same at every
resolution. Source: the post-processing of arXiv:2506.10233, whose order of steps is kept:
residual, division by the maximum, mask, median filter. `PUBLISHED` reproduces it at 1 mm and 160^3.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fluidjax.errors import UserError

Spacing = tuple[float, float, float]
SIGNS = ('absolute', 'darker', 'brighter')
FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))


@dataclasses.dataclass(frozen=True)
class MapSettings:
    """How a residual becomes an anomaly map. Hashable: a static argument of jitted functions.

    Attributes:
      smoothing_mm: full width at half maximum of the Gaussian, in mm; 0 smooths nothing.
      erosion_mm: how much of the brain's rim is left out, in mm, rounded to voxels per axis.
      max_shift_voxels: each voxel is compared with the best of (2n+1)^3 shifts of the counterpart;
        0 compares voxel with voxel, the published value is 2.
      sign: 'absolute', or only where the scan is 'darker' or 'brighter' than its counterpart.
      normalise: divide by the map's maximum, as published. A threshold then means another thing in
        every scan and does not carry over from validation subjects.
      median_voxels: edge of the final median filter, odd; 0 filters nothing, published is 5.
    """

    smoothing_mm: float
    erosion_mm: float
    max_shift_voxels: int = 0
    sign: str = 'absolute'
    normalise: bool = False
    median_voxels: int = 0

    def __post_init__(self):
        if self.sign not in SIGNS:
            raise UserError(f'map setting sign={self.sign!r}: choose one of {", ".join(SIGNS)}')
        for name in ('smoothing_mm', 'erosion_mm', 'max_shift_voxels'):
            if not getattr(self, name) >= 0:
                raise UserError(f'map setting {name}={getattr(self, name)!r}: must be 0 or more')
        if self.median_voxels and (self.median_voxels < 0 or self.median_voxels % 2 == 0):
            raise UserError(f'map setting median_voxels={self.median_voxels}: must be 0 or odd')


PUBLISHED = MapSettings(smoothing_mm=0.0, erosion_mm=6.0, max_shift_voxels=2, normalise=True,
                        median_voxels=5)


def brain_mask(scan: jax.Array, threshold: float = 0.01, fill_holes: bool = True) -> jax.Array:
    """The brain (x, y, z) bool of a skull-stripped scan in [0, 1], taken from the scan itself.

    The published code thresholds the healthy image, which a real scan does not have. A lesion may
    be as black as the background, so voxels with brain on both sides along all three axes count as
    brain; `fill_holes=False` is the plain threshold.
    """
    brain = scan > threshold
    if not fill_holes:
        return brain
    inside = jnp.ones_like(brain)
    for axis in range(scan.ndim):
        before = lax.cummax(brain.astype(jnp.int8), axis=axis)
        after = lax.cummax(brain.astype(jnp.int8), axis=axis, reverse=True)
        inside &= (before * after) > 0
    return brain | inside


def closest_shift(scan: jax.Array, counterpart: jax.Array, max_shift_voxels: int) -> jax.Array:
    """Per voxel, the value among all shifts of `counterpart` that is closest to `scan`.

    Circular shifts of -n..n voxels per axis, the first axis slowest; the first shift wins a tie.
    A scan over the shifts: two volumes are alive at a time, not (2n+1)^3.
    """
    n = max_shift_voxels
    if n == 0:
        return counterpart
    padded = jnp.pad(counterpart, n, mode='wrap')
    starts = jnp.asarray(list(itertools.product(range(2 * n, -1, -1), repeat=3)))

    def keep_closer(best, start):
        moved = lax.dynamic_slice(padded, start, scan.shape)
        return jnp.where(jnp.abs(scan - moved) < jnp.abs(scan - best), moved, best), None

    first = lax.dynamic_slice(padded, starts[0], scan.shape)
    return lax.scan(keep_closer, first, starts[1:])[0]


def signed_residual(scan: jax.Array, counterpart: jax.Array, sign: str) -> jax.Array:
    """|scan - counterpart|, or the part where the scan is 'darker' or 'brighter'; never < 0."""
    difference = scan - counterpart
    if sign == 'absolute':
        return jnp.abs(difference)
    return jnp.maximum(-difference if sign == 'darker' else difference, 0.0)


def _blur(values: jax.Array, spacing: Spacing, fwhm_mm: float) -> jax.Array:
    """Separable Gaussian, zero beyond the border, cut at 4 standard deviations."""
    for axis, voxel in enumerate(spacing):
        sigma = fwhm_mm / (FWHM_PER_SIGMA * voxel)
        radius = int(np.ceil(4.0 * sigma))
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-6)) ** 2)
        taps = (taps / taps.sum()).astype(np.float32)
        padded = jnp.pad(values, [(radius, radius) if a == axis else (0, 0) for a in range(3)])
        size = values.shape[axis]
        values = sum(tap * lax.slice_in_dim(padded, i, i + size, axis=axis)
                     for i, tap in enumerate(taps))
    return values


def smooth_inside(values: jax.Array, mask: jax.Array, spacing: Spacing,
                  fwhm_mm: float) -> jax.Array:
    """Gaussian smoothing that sees only the voxels of `mask` (x, y, z) bool; zero outside it.

    The smoothed values are divided by the smoothed mask, so the rim does not fade: a constant
    stays that constant.
    """
    values = jnp.where(mask, values, 0.0)
    if fwhm_mm == 0.0:
        return values
    weights = _blur(mask.astype(values.dtype), spacing, fwhm_mm)
    smoothed = _blur(values, spacing, fwhm_mm) / jnp.where(mask, weights, 1.0)
    return jnp.where(mask, smoothed, 0.0)


def erode(mask: jax.Array, spacing: Spacing, erosion_mm: float) -> jax.Array:
    """Erode a bool mask by the 6-neighbour cross, round(mm / voxel size) times along each axis.

    Beyond the border counts as background. At 1 mm this is scipy's binary_erosion with that many
    iterations; the published number is depth // 25 (6 at 160^3), which below 25 voxels is 0, and
    0 iterations erode until nothing is left. Here 0 mm erodes nothing.
    """
    steps = [int(erosion_mm / voxel + 0.5) for voxel in spacing]
    for step in range(max(steps)):
        padded, kept = jnp.pad(mask, 1), mask
        for axis in (a for a in range(3) if step < steps[a]):
            for offset in (0, 2):
                start = [offset if a == axis else 1 for a in range(3)]
                kept &= lax.dynamic_slice(padded, start, mask.shape)
        mask = kept
    return mask


def _to_ordered(values: jax.Array) -> jax.Array:
    """float32 -> uint32 whose order is the order of the floats."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _from_ordered(keys: jax.Array) -> jax.Array:
    bits = jnp.where(keys >> 31 == 1, keys ^ jnp.uint32(1 << 31), ~keys)
    return lax.bitcast_convert_type(bits, jnp.float32)


def median_filter(volume: jax.Array, size: int) -> jax.Array:
    """Median over cubes of `size` (odd) voxels, border reflected; exact.

    Equals scipy.ndimage.median_filter. Nothing is sorted: the median's 32 bits are found from the
    highest down by counting the neighbours below, plane by plane, which takes one plane's memory.
    """
    reach, rank = size // 2, size**3 // 2
    _, ny, nz = volume.shape
    padded = jnp.pad(_to_ordered(volume), reach, mode='symmetric')

    def filter_plane(x):
        slab = lax.dynamic_slice_in_dim(padded, x, size, axis=0)
        neighbours = [slab[i, j:j + ny, k:k + nz]
                      for i, j, k in itertools.product(range(size), repeat=3)]

        def set_bit(step, found):
            candidate = found | (jnp.uint32(1 << 31) >> step.astype(jnp.uint32))
            below = sum((value < candidate).astype(jnp.int32) for value in neighbours)
            return jnp.where(below <= rank, candidate, found)

        return lax.fori_loop(0, 32, set_bit, jnp.zeros((ny, nz), jnp.uint32))

    return _from_ordered(lax.map(filter_plane, jnp.arange(volume.shape[0])))


def residual_map(scan: jax.Array, counterpart: jax.Array, brain: jax.Array, spacing: Spacing,
                 settings: MapSettings) -> jax.Array:
    """The anomaly map (x, y, z) of one scan: large where the scan is unlike its counterpart.

    Pure; jit it with `spacing` and `settings` static, vmap it over the first three (or call
    `residual_maps`). A NaN inside the brain stays one (the scores then say so), outside it is
    dropped.

    Args:
      scan, counterpart: (x, y, z) in [0, 1], the scan and its healthy reconstruction.
      brain: (x, y, z) bool, see `brain_mask`.
      spacing: voxel size in mm per axis, a tuple of floats.
      settings: see `MapSettings`.

    Returns:
      (x, y, z) float32 >= 0, zero outside the eroded brain. The median filter comes last, as
      published, and may bridge notches of a few voxels in the mask.
    """
    counterpart = closest_shift(scan, counterpart, settings.max_shift_voxels)
    residual = signed_residual(scan, counterpart, settings.sign)
    if settings.normalise:
        residual = residual / (jnp.max(residual) + 1e-8)
    brain = brain.astype(bool)
    smooth = smooth_inside(residual, brain, spacing, settings.smoothing_mm)
    anomaly = jnp.where(erode(brain, spacing, settings.erosion_mm), smooth, 0.0)
    return median_filter(anomaly, settings.median_voxels) if settings.median_voxels else anomaly


@functools.partial(jax.jit, static_argnames=('spacing', 'settings'))
def residual_maps(scans: jax.Array, counterparts: jax.Array, brains: jax.Array, spacing: Spacing,
                  settings: MapSettings) -> jax.Array:
    """`residual_map` over a batch (n, x, y, z), jitted."""
    return jax.vmap(lambda s, c, b: residual_map(s, c, b, spacing, settings))(
        scans, counterparts, brains)
