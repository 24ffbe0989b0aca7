"""Scans on the model's grid, as preprocessing returns them and cohorts and detectors use them."""

from __future__ import annotations

import dataclasses

import numpy as np

# Tissues of a label map; `stem` is white matter of cerebellum and brain stem.
TISSUES = ('csf', 'grey', 'white', 'deep_grey', 'cerebellar_grey', 'stem')


@dataclasses.dataclass(frozen=True)
class Subject:
    """One subject on the model grid.

    Attributes:
      name: unique within its split.
      image: (x, y, z) float32 in [0, 1], background 0.
      brain: (x, y, z) bool.
      lesion: (x, y, z) bool, or None where no mask is known.
      healthy: (x, y, z) float32, the same subject without its lesion, or None.
      affine: voxel -> the scan's own world, mm: (4, 4) float64.
      tissue: (x, y, z, tissues) uint8, fractions of `TISSUES`, 255 for 1; None where not known.
    """

    name: str
    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray | None
    healthy: np.ndarray | None
    affine: np.ndarray
    tissue: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Preprocessed:
    """A scan on the model grid.

    Attributes:
      image: (x, y, z) float32 in [0, 1], background exactly 0.
      brain: (x, y, z) bool.
      lesion: (x, y, z) bool, or None where no mask was given.
      affine: model voxel -> the scan's own world, mm: scan_from_mni @ grid.affine.
      overlap: Dice of the brain mask with the MNI152 brain on this grid; below about 0.85 the
        registration, or the skull stripping, is suspect.
      warnings: short sentences for a person, see `quality`; empty is good.
      faults: those of the warnings that make results meaningless: wrong axes, wrong contrast.
      extraction: how the brain was found, see `brain_extraction.Extraction.method`.
      before: (x, y, z) the image with its shading; None where that was not divided out.
      shading: how strong it is, see `bias_field.strength`; 1 where the header's axes are wrong.
      contrast: by the tissues' intensities, see `quality.contrast_of`.
      background: intensity of the scan's background, which is 0 in the image.
    """

    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray | None
    affine: np.ndarray
    overlap: float
    warnings: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    extraction: str = 'none'
    before: np.ndarray | None = None
    shading: float = 1.0
    contrast: str = 't1w'
    background: float = 0.0
