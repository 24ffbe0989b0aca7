"""Where the lateral ventricles lie in MNI152 space, by their middle lines."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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


def from_ventricles(
    shape: tuple[int, ...], spacing: tuple[float, ...], centre: tuple[float, float, float]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each voxel: mm from the nearest middle line, the direction from it, and -1 to 1 by side.

    The direction is a unit vector (x, y, z, 3), less its part to the side near the midline.
    """
    axes = [
        (jnp.arange(n) - (n - 1) / 2) * h + c
        for n, h, c in zip(shape, spacing, centre, strict=True)
    ]
    x, y, z = jnp.meshgrid(*axes, indexing='ij', sparse=True)
    here = (jnp.abs(x), y, z)
    line = np.asarray(_VENTRICLE, np.float32)
    away, least = [jnp.zeros(shape)] * 3, jnp.full(shape, jnp.inf)
    for a, b in zip(line[:-1], line[1:], strict=True):
        length = ((b - a) ** 2).sum()
        along = sum((p - q) * (d / length) for p, q, d in zip(here, a, b - a, strict=True))
        along = jnp.clip(along, 0.0, 1.0)
        apart = [p - (q + along * d) for p, q, d in zip(here, a, b - a, strict=True)]
        squared = sum(p**2 for p in apart)
        away = [jnp.where(squared < least, new, old) for new, old in zip(apart, away, strict=True)]
        least = jnp.minimum(squared, least)
    distance = jnp.sqrt(least)
    sideways = jnp.sign(x) * jnp.minimum(1.0, jnp.abs(x) / _MIDLINE_MM)
    outward = jnp.stack([away[0] * sideways, *away[1:]], axis=-1)
    outward = outward / jnp.maximum(distance, 1e-3)[..., None]
    return distance, outward, jnp.broadcast_to(jnp.tanh(x / _MIDLINE_MM), shape)
