"""Lesion seeds from a bank of real masks: drawn, mirrored and moved to lie in the brain."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fluidjax.fluid.grid import Grid


def random_voxel(key: jax.Array, mask: jax.Array) -> jax.Array:
    """Indices (3,) of a voxel drawn uniformly from a boolean mask (x, y, z) that is not empty.

    Plane, then line, then voxel, each in proportion to what it holds: no draw over the volume.
    """
    chosen, region = [], mask
    for key_axis in jax.random.split(key, 3):
        counts = region.sum(axis=tuple(range(1, region.ndim)))
        index = jax.random.categorical(key_axis, jnp.log(counts.astype(jnp.float32)))
        chosen.append(index)
        region = region[index]
    return jnp.stack(chosen)


def translate(volume: jax.Array, shift: jax.Array) -> jax.Array:
    """The volume moved by whole voxels (3,), zeros coming in; |shift| at most the axis' length."""
    for axis, n in enumerate(volume.shape):
        widths = [(0, 0)] * volume.ndim
        widths[axis] = (n, n)
        padded = jnp.pad(volume, widths)
        volume = jax.lax.dynamic_slice_in_dim(padded, n - shift[axis], n, axis=axis)
    return volume


def bank_seed(
    key: jax.Array, lesion_bank: jax.Array, brain: jax.Array, grid: Grid, shift_mm: float
) -> jax.Array:
    """A real lesion as P0: drawn from the bank, mirrored left to right half of the time, and moved.

    It is moved by up to `shift_mm` along each axis; if a random voxel of it is then outside the
    brain, to a random place in the brain instead. So it always has a voxel in the brain. The mirror
    is about the middle of axis 0, the mid-sagittal plane of a centred RAS+ grid.

    Args:
      key: PRNG key.
      lesion_bank: masks (n, x, y, z), integer or boolean, on this grid; none empty.
      brain: boolean (x, y, z), not empty.
      grid: geometry.
      shift_mm: the largest shift along an axis, mm.

    Returns:
      P0 (x, y, z), 0 or 1.
    """
    key_mask, key_mirror, key_anchor, key_shift, key_place = jax.random.split(key, 5)
    lesion = lesion_bank[jax.random.randint(key_mask, (), 0, lesion_bank.shape[0])] > 0
    lesion = jnp.where(jax.random.bernoulli(key_mirror), lesion[::-1], lesion)
    anchor = random_voxel(key_anchor, lesion)
    limit = jnp.asarray(shift_mm) / jnp.asarray(grid.spacing)
    jitter = jnp.round(jax.random.uniform(key_shift, (3,), minval=-limit, maxval=limit))
    near = anchor + jitter.astype(anchor.dtype)
    size = jnp.asarray(grid.shape)
    inside = jnp.all((near >= 0) & (near < size)) & brain[tuple(jnp.clip(near, 0, size - 1))]
    target = jnp.where(inside, near, random_voxel(key_place, brain))
    return translate(lesion, target - anchor).astype(jnp.float32)
