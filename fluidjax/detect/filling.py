"""The healthy counterpart that keeps the scan: only what is marked is replaced ("lesion filling").

A model's counterpart differs from the scan everywhere, by a blur and by small errors. Outside the
marked region none of that is wanted. So there the scan itself stands; inside stands the model's
counterpart, brought to the level and the texture of the tissue around it:

1. its level: the mean of the scan around the region and, where it is known, of the scan's other
   side within it, over `LEVEL_MM`;
2. its detail: what is finer than `DETAIL_MM`, times the factor that fits the scan around best;
3. the noise of the scan, as far as the counterpart has less.

Between the two lies an edge of `EDGE_MM`, outside the marked voxels, in which one fades into the
other. For filling lesions before other software segments or registers a scan, see Battaglini et al.
2012; the difference is that the contents come from a model of healthy brains.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

EDGE_MM = 4.0
LEVEL_MM = 12.0  # full widths at half maximum
DETAIL_MM = 8.0
NOISE_MM = 3.0
AROUND_MM = 25.0  # how far the tissue lies that the texture is taken from
GAINS = (0.5, 2.0)  # least and greatest of the detail
_SIGMA_PER_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))
_TENTH_OF_NORMAL = 0.1257  # of the magnitudes of a normal distribution, a tenth is below
_LEAST_WEIGHT = 1e-3
_LEAST_VOXELS = 100  # around the region, to measure a texture


class Filled(NamedTuple):
    """A scan with new contents.

    Attributes:
        image: (x, y, z) in [0, 1], 0 outside the brain.
        changed: bool, where it is not the scan: the marked voxels and their edge.
    """

    image: np.ndarray
    changed: np.ndarray


def fill(
    scan: np.ndarray,
    counterpart: np.ndarray,
    mask: np.ndarray,
    brain: np.ndarray,
    spacing: tuple[float, float, float],
    mirrored: np.ndarray | None = None,
) -> Filled:
    """Replace the marked voxels of a scan by its healthy counterpart, without a seam.

    Args:
        scan: (x, y, z) in [0, 1].
        counterpart: the model's, shaped and scaled alike.
        mask: bool, the marked voxels.
        brain: bool.
        spacing: of the voxels, in mm.
        mirrored: the scan with left and right exchanged, NaN where that side is no healthy tissue.
    """
    image = np.where(brain, scan, 0.0).astype(np.float32)
    changed, mask = np.zeros(image.shape, bool), mask.astype(bool) & brain
    if not mask.any():
        return Filled(image, changed)
    box = _box_around(mask, brain, spacing)
    distance = ndimage.distance_transform_edt(~mask[box], sampling=spacing)
    part = np.clip(distance / EDGE_MM, 0.0, 1.0)
    share = np.where(brain[box], 0.5 * (1.0 + np.cos(np.pi * part)), 0.0)
    other = np.full_like(image[box], np.nan) if mirrored is None else mirrored[box]
    region = _Region(image[box], counterpart[box], brain[box], other, distance, spacing)
    contents = region.contents()
    blended = (1.0 - share) * image[box] + share * np.clip(contents, 0.0, 1.0)
    changed[box] = share > 0
    image[box] = np.where(share > 0, blended, image[box])
    return Filled(image, changed)


def other_side(scan: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    """A scan (x, y, z) with left and right exchanged, NaN where `healthy` (bool) does not hold.

    The first axis must run from left to right, symmetric about the middle of the brain.
    """
    return np.where(healthy, scan, np.nan)[::-1]


class _Region(NamedTuple):
    """The volumes around the marked voxels; `distance` to these is in mm."""

    scan: np.ndarray
    counterpart: np.ndarray
    brain: np.ndarray
    mirrored: np.ndarray
    distance: np.ndarray
    spacing: tuple[float, float, float]

    def contents(self) -> np.ndarray:
        """The counterpart with the level and the texture of the tissue around it."""
        around = self.brain & (self.distance >= EDGE_MM) & (self.distance <= EDGE_MM + AROUND_MM)
        if np.count_nonzero(around) < _LEAST_VOXELS:
            return self.counterpart
        sharp = self.counterpart + self._lost_detail(around)
        sharp = sharp + self._missing_noise(sharp, around)
        return sharp + self._level(around)

    def _lost_detail(self, around: np.ndarray) -> np.ndarray:
        """What the detail lacks to fit that of the scan around the region best."""
        scan, detail = self._finer(DETAIL_MM, self.scan, self.counterpart)
        fit = float(np.mean(scan[around] * detail[around]))
        gain = fit / max(float(np.mean(detail[around] ** 2)), 1e-12)
        return (np.clip(gain, *GAINS) - 1.0) * detail

    def _missing_noise(self, sharp: np.ndarray, around: np.ndarray) -> np.ndarray:
        """Noise as strong as in flat tissue around, and with its correlation between voxels."""
        scan, own = self._finer(NOISE_MM, self.scan, sharp)
        wanted, there = (_spread_in_flat_tissue(fine[around]) for fine in (scan, own))
        white = np.random.default_rng(0).standard_normal(sharp.shape, np.float32)
        amplitude = np.abs(fft.rfftn(np.where(around, scan, 0.0)))
        noise = fft.irfftn(fft.rfftn(white) * amplitude, sharp.shape)
        sigma = np.sqrt(max(wanted**2 - there**2, 0.0))
        return sigma / max(float(noise.std()), 1e-12) * noise

    def _level(self, around: np.ndarray) -> np.ndarray:
        """What the counterpart lacks to the expected level; it fades far from what is known."""
        mirrored = self.brain & (self.distance < EDGE_MM) & np.isfinite(self.mirrored)
        expected = np.where(mirrored, self.mirrored, self.scan)
        known = around | mirrored
        difference = np.where(known, expected - self.counterpart, 0.0)
        weight = np.maximum(self._blurred(known, LEVEL_MM), _LEAST_WEIGHT)
        return self._blurred(difference, LEVEL_MM) / weight

    def _finer(self, width_mm: float, *volumes: np.ndarray) -> list[np.ndarray]:
        """What a Gaussian blur within the brain removes from each volume."""
        weight = np.maximum(self._blurred(self.brain, width_mm), _LEAST_WEIGHT)
        smooth = (self._blurred(np.where(self.brain, v, 0.0), width_mm) for v in volumes)
        return [np.where(self.brain, v - s / weight, 0.0) for v, s in zip(volumes, smooth)]

    def _blurred(self, volume: np.ndarray, width_mm: float) -> np.ndarray:
        sigma = [_SIGMA_PER_FWHM * width_mm / voxel for voxel in self.spacing]
        return ndimage.gaussian_filter(volume.astype(np.float32), sigma, mode='constant')


def _spread_in_flat_tissue(fine: np.ndarray) -> float:
    """Standard deviation of the noise, from the tenth of the voxels that differ least."""
    return float(np.quantile(np.abs(fine), 0.1)) / _TENTH_OF_NORMAL


def _box_around(
    mask: np.ndarray, brain: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[slice, ...]:
    """The smallest box of brain with the marked voxels and all that is measured around them."""
    marked, whole = (ndimage.find_objects(v.astype(np.uint8))[0] for v in (mask, brain))
    reach = [int(np.ceil((EDGE_MM + AROUND_MM + LEVEL_MM) / voxel)) for voxel in spacing]
    return tuple(
        slice(max(limit.start, side.start - more), min(limit.stop, side.stop + more))
        for side, limit, more in zip(marked, whole, reach, strict=True)
    )
