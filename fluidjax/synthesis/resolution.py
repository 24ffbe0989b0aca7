"""What thick slices and blur make of a volume: one matrix along each axis."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

PRECISION = jax.lax.Precision.HIGHEST  # else TPUs and GPUs round every image


def slice_matrix(n: int, spacing: float, thickness: jax.Array) -> jax.Array:
    """What slices of a thickness (mm) make of n voxels, `(n, n)`: averaged, then interpolated.

    The identity where slices are not thicker than voxels.
    """
    ratio = jnp.maximum(thickness / spacing, 1.0)
    voxel, number = jnp.arange(n, dtype=jnp.float32), jnp.arange(n, dtype=jnp.float32)[:, None]
    first, last = number * ratio, (number + 1.0) * ratio  # of slice `number`, in voxels
    overlap = jnp.clip(jnp.minimum(last, voxel + 1.0) - jnp.maximum(first, voxel), 0.0, 1.0)
    average = overlap / jnp.maximum(overlap.sum(axis=1, keepdims=True), 1e-6)
    count = jnp.ceil(n / ratio)
    place = jnp.clip((voxel + 0.5) / ratio - 0.5, 0.0, count - 1.0)[:, None]
    between = jnp.maximum(0.0, 1.0 - jnp.abs(place - number.T))
    return jnp.matmul(between, average, precision=PRECISION)


def blur_matrix(n: int, spacing: float, sigma_mm: jax.Array) -> jax.Array:
    """A Gaussian blur of n voxels, `(n, n)`, each row summing to 1; the identity at 0 mm."""
    apart = jnp.arange(n)[:, None] - jnp.arange(n)
    width = jnp.maximum(sigma_mm / spacing, 1e-3)
    weights = jnp.exp(-0.5 * jnp.minimum((apart / width) ** 2, 100.0)) * (apart**2 <= 1e4)
    weights = jnp.where((apart != 0) & (width <= 1e-3), 0.0, weights)
    return weights / weights.sum(axis=1, keepdims=True)


def applied(volume: jax.Array, matrices: Sequence[jax.Array]) -> jax.Array:
    """A volume `(x, y, z)` times a matrix along each axis."""
    for axis, matrix in enumerate(matrices):
        product = jnp.tensordot(matrix, volume, axes=(1, axis), precision=PRECISION)
        volume = jnp.moveaxis(product, 0, axis)
    return volume


def within_brain(image: jax.Array, brain: jax.Array, matrices: Sequence[jax.Array]) -> jax.Array:
    """The same of the voxels of the brain alone, without the black ones around it.

    Args:
        image: `(x, y, z)`; outside the brain it stays as it is.
        brain: `(x, y, z)`, 1 in the brain.
        matrices: one along each axis, their rows summing to 1.
    """
    share = applied(brain, matrices)
    return jnp.where(brain > 0, applied(image * brain, matrices) / jnp.maximum(share, 1e-3), image)
