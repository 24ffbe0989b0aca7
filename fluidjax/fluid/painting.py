"""Painting a lesion probability map into a healthy image: the intensity laws."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Lesion shift m in units of mu, the mean intensity inside the mask: m = +-(least + span * u).
SHIFTS = {'paper': (0.75, 0.25), 'una': (1.0, 1.0)}


def paint_lesion(
    image: jax.Array,
    P: jax.Array,
    mask: jax.Array,
    u_shift: jax.Array,
    u_spread: jax.Array,
    noise: jax.Array,
    bright: jax.Array | bool = False,
    law: str = 'paper',
) -> jax.Array:
    """I <- max(0, I + P (m + s n)), with m and s scaled by the intensity under the lesion.

    mu is the mean intensity inside the mask; s = u_spread mu / 4; m = +-(0.75 + 0.25 u_shift) mu in
    the paper's code (arXiv:2506.10233) and +-(1 + u_shift) mu in UNA's (arXiv:2501.13370).

    Args:
      image: intensities (x, y, z), not negative.
      P: lesion probability (x, y, z) in [0, 1].
      mask: lesion voxels (x, y, z), 0 or 1; not empty.
      u_shift, u_spread: uniform on [0, 1), scalars or one a voxel. (The published code draws one
        pair for the mask and another for the faint voxels around it.)
      noise: standard normal (x, y, z).
      bright: the lesion is brighter than the tissue; darker where False.
      law: 'paper' or 'una'.

    Returns:
      The painted image (x, y, z), not rescaled.
    """
    least, span = SHIFTS[law]
    mu = jnp.sum(image * mask) / jnp.maximum(jnp.sum(mask), 1.0)
    sign = jnp.where(bright, 1.0, -1.0)
    shift = sign * (least + span * u_shift) * mu
    return jnp.maximum(image + P * (shift + 0.25 * mu * u_spread * noise), 0.0)


def divide_by_maximum(image: jax.Array) -> jax.Array:
    """The image divided by its own maximum; an image of zeros stays as it is."""
    peak = jnp.max(image)
    return image / jnp.where(peak > 0.0, peak, 1.0)
