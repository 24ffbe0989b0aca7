"""The healthy counterpart that keeps the scan: only what is marked is replaced ("lesion filling").

A model's counterpart differs from the scan everywhere, by a blur and by small errors. Outside the
marked region none of that is wanted. So there the scan itself stands; inside stands the model's
counterpart, brought to the level and the texture of the tissue around it:

1. its level: the difference between scan and counterpart around the region, carried inwards;
2. its detail: what is finer than `DETAIL_MM`, raised by the factor that the model loses around it;
3. the noise of the scan, as far as the counterpart has less.

Between the two lies an edge of `EDGE_MM`, outside the marked voxels, in which one fades into the
other. For filling lesions before other software segments or registers a scan, see Battaglini et al.
2012; the difference is that the contents come from a model of healthy brains.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

EDGE_MM = 4.0
LEVEL_MM = 20.0  # full widths at half maximum
DETAIL_MM = 8.0
NOISE_MM = 3.0
AROUND_MM = 25.0  # how far the tissue lies that the texture is taken from
LARGEST_GAIN = 3.0
_SIGMA_PER_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))
_SIGMA_PER_MAD = 1.4826  # of a normal distribution
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
) -> Filled:
    """Replace the marked voxels of a scan by its healthy counterpart, without a seam.

    Args:
        scan: (x, y, z) in [0, 1].
        counterpart: the model's, shaped and scaled alike.
        mask: bool, the marked voxels.
        brain: bool.
        spacing: of the voxels, in mm.
    """
    image = np.where(brain, scan, 0.0).astype(np.float32)
    changed, mask = np.zeros(image.shape, bool), mask.astype(bool) & brain
    if not mask.any():
        return Filled(image, changed)
    box = _box_around(mask, brain, spacing)
    distance = ndimage.distance_transform_edt(~mask[box], sampling=spacing)
    part = np.clip(distance / EDGE_MM, 0.0, 1.0)
    share = np.where(brain[box], 0.5 * (1.0 + np.cos(np.pi * part)), 0.0)
    contents = _Region(image[box], counterpart[box], brain[box], distance, spacing).contents()
    blended = (1.0 - share) * image[box] + share * np.clip(contents, 0.0, 1.0)
    changed[box] = share > 0
    image[box] = np.where(share > 0, blended, image[box])
    return Filled(image, changed)


class _Region(NamedTuple):
    """The volumes around the marked voxels; `distance` to these is in mm."""

    scan: np.ndarray
    counterpart: np.ndarray
    brain: np.ndarray
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
        scan, detail = self._finer(DETAIL_MM, self.scan, self.counterpart)
        gain = float(scan[around].std()) / max(float(detail[around].std()), 1e-6)
        return (np.clip(gain, 1.0, LARGEST_GAIN) - 1.0) * detail

    def _missing_noise(self, sharp: np.ndarray, around: np.ndarray) -> np.ndarray:
        """White noise; the median is that of flat tissue, which edges of anatomy do not change."""
        wanted, there = (
            _SIGMA_PER_MAD * float(np.median(np.abs(fine[around])))
            for fine in self._finer(NOISE_MM, self.scan, sharp)
        )
        sigma = np.sqrt(max(wanted**2 - there**2, 0.0))
        return sigma * np.random.default_rng(0).standard_normal(sharp.shape, np.float32)

    def _level(self, around: np.ndarray) -> np.ndarray:
        """The difference around the region, smoothed and carried inwards, where it fades."""
        difference = np.where(around, self.scan - self.counterpart, 0.0)
        weight = np.maximum(self._blurred(around, LEVEL_MM), _LEAST_WEIGHT)
        return self._blurred(difference, LEVEL_MM) / weight

    def _finer(self, width_mm: float, *volumes: np.ndarray) -> list[np.ndarray]:
        """What a Gaussian blur within the brain removes from each volume."""
        weight = np.maximum(self._blurred(self.brain, width_mm), _LEAST_WEIGHT)
        smooth = (self._blurred(np.where(self.brain, v, 0.0), width_mm) for v in volumes)
        return [np.where(self.brain, v - s / weight, 0.0) for v, s in zip(volumes, smooth)]

    def _blurred(self, volume: np.ndarray, width_mm: float) -> np.ndarray:
        sigma = [_SIGMA_PER_FWHM * width_mm / voxel for voxel in self.spacing]
        return ndimage.gaussian_filter(volume.astype(np.float32), sigma, mode='constant')


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
