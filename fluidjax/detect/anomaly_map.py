"""From a scan and its healthy counterpart to an anomaly map, on the device.

Takes two volumes (x, y, z) in [0, 1], a brain mask and the voxel size in mm; returns a map
(x, y, z), zero outside the (eroded) brain. All lengths are in mm, so that a setting means the same
at every resolution. Source: the post-processing of arXiv:2506.10233 in its order: residual,
division by the maximum, mask, median filter. `PUBLISHED` reproduces it at 1 mm and 160^3.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fluidjax.base.errors import UserError

Spacing = tuple[float, float, float]
SIGNS = ('absolute', 'darker', 'brighter')
KINDS = ('residual', 'ssim')
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # Wang et al. 2004, for intensities in [0, 1]
LEVELS = 65535.0  # distinct values in the median filter
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
      normalise: divide by the map's maximum, as published. A threshold then means something else
        in every scan, and one chosen on validation subjects does not apply.
      median_voxels: edge of the final median filter, odd; 0 filters nothing, published is 5.
      kind: 'residual', or 'ssim': 1 - the local structural similarity of scan and counterpart,
        which also measures texture; `sign` does not apply to it.
      ssim_mm: full width at half maximum of its Gaussian window, in mm.
    """

    smoothing_mm: float
    erosion_mm: float
    max_shift_voxels: int = 0
    sign: str = 'absolute'
    normalise: bool = False
    median_voxels: int = 0
    kind: str = 'residual'
    ssim_mm: float = 8.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f'map setting kind={self.kind!r}: choose one of {", ".join(KINDS)}')
        if not self.ssim_mm > 0:
            raise UserError(f'map setting ssim_mm={self.ssim_mm!r}: must be more than 0')
        if self.sign not in SIGNS:
            raise UserError(f'map setting sign={self.sign!r}: choose one of {", ".join(SIGNS)}')
        for name in ('smoothing_mm', 'erosion_mm', 'max_shift_voxels'):
            if not getattr(self, name) >= 0:
                raise UserError(f'map setting {name}={getattr(self, name)!r}: must be 0 or more')
        if self.median_voxels and (self.median_voxels < 0 or self.median_voxels % 2 == 0):
            raise UserError(f'map setting median_voxels={self.median_voxels}: must be 0 or odd')


PUBLISHED = MapSettings(
    smoothing_mm=0.0, erosion_mm=6.0, max_shift_voxels=2, normalise=True, median_voxels=5
)


def closest_shift(scan: jax.Array, counterpart: jax.Array, max_shift_voxels: int) -> jax.Array:
    """Per voxel, the value among all shifts of `counterpart` that is closest to `scan`.

    Circular shifts of -n..n voxels per axis, the first axis slowest; the first shift wins a tie.
    It loops over the shifts, so that two volumes are in memory at a time, not (2n+1)^3.
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
        values = sum(
            tap * lax.slice_in_dim(padded, i, i + size, axis=axis) for i, tap in enumerate(taps)
        )
    return values


def smooth_inside(
    values: jax.Array, mask: jax.Array, spacing: Spacing, fwhm_mm: float
) -> jax.Array:
    """Gaussian smoothing of only the voxels of `mask` (x, y, z) bool; zero outside it.

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


def dissimilarity(
    scan: jax.Array, counterpart: jax.Array, brain: jax.Array, spacing: Spacing, window_mm: float
) -> jax.Array:
    """(1 - SSIM) / 2 of each voxel's neighbourhood in the brain, (x, y, z) in [0, 1].

    Structural similarity of Wang et al. 2004 with a Gaussian window over the brain's voxels only.
    """
    mean = functools.partial(smooth_inside, mask=brain, spacing=spacing, fwhm_mm=window_mm)
    a, b = mean(scan), mean(counterpart)
    aa, bb, ab = mean(scan**2) - a**2, mean(counterpart**2) - b**2, mean(scan * counterpart) - a * b
    similarity = (
        (2 * a * b + SSIM_C1) * (2 * ab + SSIM_C2) / ((a**2 + b**2 + SSIM_C1) * (aa + bb + SSIM_C2))
    )
    return jnp.where(brain, jnp.clip(0.5 - 0.5 * similarity, 0.0, 1.0), 0.0)


def median_filter(volume: jax.Array, size: int) -> jax.Array:
    """Median over cubes of `size` (odd) voxels of a volume (x, y, z) >= 0, border reflected.

    As scipy.ndimage.median_filter, of values rounded to 1/65535 of the volume's maximum: they are
    then 16-bit integers, and the median's bits are found from the highest down by counting the
    neighbours below, plane by plane: without sorting, and with the memory of one plane. A volume
    with a NaN or an infinity is returned unchanged.
    """
    reach, rank = size // 2, size**3 // 2
    _, ny, nz = volume.shape
    peak = jnp.max(volume)
    step = jnp.where(peak > 0, peak, 1.0) / LEVELS
    keys = jnp.round(volume / step).astype(jnp.uint16)
    padded = jnp.pad(keys, reach, mode='symmetric')
    counter = jnp.uint8 if size**3 < 256 else jnp.uint16

    def filter_plane(x: jax.Array) -> jax.Array:
        slab = lax.dynamic_slice_in_dim(padded, x, size, axis=0)
        neighbours = [
            slab[i, j : j + ny, k : k + nz] for i, j, k in itertools.product(range(size), repeat=3)
        ]

        def set_bit(number: jax.Array, median: jax.Array) -> jax.Array:
            candidate = median | (jnp.uint16(1 << 15) >> number.astype(jnp.uint16))
            below = sum((value < candidate).astype(counter) for value in neighbours)
            return jnp.where(below <= rank, candidate, median)

        return lax.fori_loop(0, 16, set_bit, jnp.zeros((ny, nz), jnp.uint16))

    medians = lax.map(filter_plane, jnp.arange(volume.shape[0]))
    return jnp.where(jnp.isfinite(peak), medians * step, volume)


def residual_map(
    scan: jax.Array,
    counterpart: jax.Array,
    brain: jax.Array,
    spacing: Spacing,
    settings: MapSettings,
) -> jax.Array:
    """The anomaly map (x, y, z) of one scan: large where the scan differs from its counterpart.

    `spacing` and `settings` are static under jit; `residual_maps` is the batched version. A NaN
    inside the brain stays a NaN (the scores are then undefined), outside it becomes 0.

    Args:
      scan, counterpart: (x, y, z) in [0, 1], the scan and its healthy reconstruction.
      brain: (x, y, z) bool.
      spacing: voxel size in mm per axis, a tuple of floats.
      settings: see `MapSettings`.

    Returns:
      (x, y, z) float32 >= 0, zero outside the eroded brain. The median filter comes last, as
      published, and may bridge notches of a few voxels in the mask.
    """
    brain = brain.astype(bool)
    counterpart = closest_shift(scan, counterpart, settings.max_shift_voxels)
    if settings.kind == 'ssim':
        residual = dissimilarity(scan, counterpart, brain, spacing, settings.ssim_mm)
    else:
        residual = signed_residual(scan, counterpart, settings.sign)
    if settings.normalise:
        residual = residual / (jnp.max(residual) + 1e-8)
    smooth = smooth_inside(residual, brain, spacing, settings.smoothing_mm)
    anomaly = jnp.where(erode(brain, spacing, settings.erosion_mm), smooth, 0.0)
    return median_filter(anomaly, settings.median_voxels) if settings.median_voxels else anomaly


@functools.partial(jax.jit, static_argnames=('spacing', 'settings'))
def residual_maps(
    scans: jax.Array,
    counterparts: jax.Array,
    brains: jax.Array,
    spacing: Spacing,
    settings: MapSettings,
) -> jax.Array:
    """`residual_map` over a batch (n, x, y, z), jitted."""
    return jax.vmap(lambda s, c, b: residual_map(s, c, b, spacing, settings))(
        scans, counterparts, brains
    )
