"""Linear interpolation of volumes on the device.

`jax.scipy.ndimage.map_coordinates` gives the same values. Here they are gathered by one index into
the flattened volume, which several volumes that are read at the same places share.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Beyond = Literal['zero', 'nearest', 'wrap']


def linear(volume: jax.Array, at: Sequence[jax.Array] | jax.Array, beyond: Beyond) -> jax.Array:
    """A volume read between its voxels.

    Args:
        volume: `(x, y)` or `(x, y, z)`, floats; for several at the same places use `jax.vmap` over
            the first argument alone.
        at: for each axis the places, voxel indices, all of one shape.
        beyond: what is beyond the volume: zero (a place less than a voxel outside still has its
            share), the nearest voxel, or the volume again.

    Returns:
        The values, shaped as the places.
    """
    low, fractions = [], []
    for place, n in zip(at, volume.shape, strict=True):
        if beyond != 'wrap':  # what cannot be a voxel number is not converted to one
            place = jnp.clip(place, *((0, n - 1) if beyond == 'nearest' else (-1, n)))
        floor = jnp.floor(place)
        low.append(floor.astype(jnp.int32))
        fractions.append(place - floor)
    flat = volume.reshape(-1)

    def add(total: jax.Array, corner: jax.Array) -> tuple[jax.Array, None]:
        index, weight = jnp.int32(0), jnp.ones((), volume.dtype)
        for n, first, offset, part in zip(volume.shape, low, corner, fractions, strict=True):
            voxel = first + offset
            weight = weight * jnp.where(offset > 0, part, 1.0 - part)
            if beyond == 'zero':
                weight = jnp.where((voxel >= 0) & (voxel < n), weight, 0.0)
            voxel = voxel % n if beyond == 'wrap' else jnp.clip(voxel, 0, n - 1)
            index = index * n + voxel
        return total + weight * jnp.take(flat, index, mode='clip'), None

    # A loop, because XLA would compute the places anew for every corner, and they are costly.
    corners = np.array(list(itertools.product((0, 1), repeat=volume.ndim)), np.int32)
    return jax.lax.scan(add, jnp.zeros(low[0].shape, volume.dtype), corners)[0]
