"""Synthetic scans made of the MNI152 template: a brain, and a head with skull and scalp."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from data_pipelines import grids, mni_template
from data_pipelines.volume_io import Volume

SPACING = 3.0
GRID = grids.ModelGrid((72, 84, 76), (SPACING,) * 3, centre=(0.0, -17.0, 2.0))


def brain_and_mask() -> tuple[np.ndarray, np.ndarray]:
    """Intensities 0..1000, background 0, and the brain (bool), both on GRID."""
    maps = mni_template.on_grid(GRID)
    brain = maps.brain >= 0.5
    return np.where(brain, 1000 * maps.t1, 0).astype(np.float32), brain


def whole_head() -> tuple[Volume, np.ndarray]:
    """8 mm of dark skull, 7 mm of bright scalp, and noise in the air; and the brain (bool)."""
    data, brain = brain_and_mask()
    outside = ndimage.distance_transform_edt(~brain, sampling=SPACING)
    data = np.where(brain, data, np.where(outside <= 8, 120.0, np.where(outside <= 15, 900.0, 0)))
    noise = np.abs(np.random.default_rng(0).normal(0, 15, data.shape))
    return Volume((data + noise).astype(np.float32), GRID.affine, 'head.nii'), brain


def stripped() -> Volume:
    """The brain alone."""
    return Volume(brain_and_mask()[0], GRID.affine, 'brain.nii')
