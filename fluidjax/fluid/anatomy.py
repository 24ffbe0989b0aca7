"""Where the lateral ventricles lie in MNI152 space, by their middle lines."""

from __future__ import annotations

import functools

import numpy as np

CENTRE_MM = (0.0, -17.0, 5.0)  # of the model's grids, MNI152
# Middle line of the right lateral ventricle of nilearn's MNI152 template, from the frontal horn to
# the beginning of the temporal horn, mm; measured on voxels darker than half of white matter.
_VENTRICLE = (
    (16, 30, 3),
    (12, 24, 7),
    (8, 18, 13),
    (8, 6, 21),
    (8, -6, 22),
    (11, -18, 23),
    (16, -30, 20),
    (20, -36, 17),
    (25, -42, 11),
    (28, -48, 7),
    (33, -42, -1),
)
WALL_MM = 5.0  # from the middle line to the ventricle's wall, about
_MIDLINE_MM = 8.0  # tissue nearer to the midline moves less to the side


@functools.lru_cache(maxsize=4)
def from_ventricles(
    shape: tuple[int, ...], spacing: tuple[float, ...], centre: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each voxel: mm from the nearest middle line, the direction from it, and -1 to 1 by side.

    The direction is a unit vector (x, y, z, 3), less its part to the side near the midline.
    """
    axes = [
        (np.arange(n) - (n - 1) / 2) * h + c for n, h, c in zip(shape, spacing, centre, strict=True)
    ]
    at = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
    right = np.concatenate([np.abs(at[..., :1]), at[..., 1:]], axis=-1)
    line = np.asarray(_VENTRICLE, float)
    nearest, least = np.zeros_like(right), np.full(right.shape[:-1], np.inf)
    for a, b in zip(line[:-1], line[1:], strict=True):
        along = np.clip((right - a) @ (b - a) / ((b - a) @ (b - a)), 0.0, 1.0)
        point = a + along[..., None] * (b - a)
        apart = np.linalg.norm(right - point, axis=-1)
        nearest = np.where((apart < least)[..., None], point, nearest)
        least = np.minimum(apart, least)
    outward = (right - nearest) / np.maximum(least, 1e-3)[..., None]
    outward[..., 0] *= np.sign(at[..., 0]) * np.minimum(1.0, np.abs(at[..., 0]) / _MIDLINE_MM)
    side = np.tanh(at[..., 0] / _MIDLINE_MM)
    return least.astype(np.float32), outward.astype(np.float32), side.astype(np.float32)
