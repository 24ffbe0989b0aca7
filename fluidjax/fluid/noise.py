"""Perlin noise in three dimensions, and the lesion seeds cut out of it.

Noise on a lattice of random gradients g is, within a cell, the sum over the 8 corners c of
w_c(u) g_c . (u - c), where w is a product over the axes of fade weights. So it is three small
matrix products, one an axis, which need no gather and cost little on any backend.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.fluid.grid import Grid

_PRECISION = jax.lax.Precision.HIGHEST
_TINY = 1e-6


def _axis_weights(size: int, periods: int) -> tuple[np.ndarray, np.ndarray]:
    """Fade weights w (size, periods + 1) of the lattice planes, and w times (u - plane)."""
    u = np.arange(size) * (periods / size)  # position in cells; no half-voxel offset, as published
    cell = np.minimum(np.floor(u).astype(int), periods - 1)
    fade = _fade(u - cell)
    weights = np.zeros((size, periods + 1))
    weights[np.arange(size), cell] = 1.0 - fade
    weights[np.arange(size), cell + 1] = fade
    offsets = weights * (u[:, None] - np.arange(periods + 1))
    return weights.astype(np.float32), offsets.astype(np.float32)


def _fade(f: np.ndarray) -> np.ndarray:
    return f**3 * (f * (6.0 * f - 15.0) + 10.0)


def perlin_from_gradients(
    gradients: jax.Array, shape: tuple[int, int, int], periods: tuple[int, int, int]
) -> jax.Array:
    """Perlin noise of given lattice gradients (Perlin 2002: fade 6f^5 - 15f^4 + 10f^3).

    Voxel i of an axis of n voxels sits at i * periods / n cells, so any shape will do.

    Args:
      gradients: (periods_x + 1, periods_y + 1, periods_z + 1, 3), one vector a lattice point.
      shape: voxels along x, y, z.
      periods: lattice cells along x, y, z.

    Returns:
      Noise of that shape, about [-0.7, 0.7] for unit gradients; zero at the lattice points.
    """
    (wx, dx), (wy, dy), (wz, dz) = (_axis_weights(n, r) for n, r in zip(shape, periods))
    gx, gy, gz = (gradients[..., k] for k in range(3))

    def contract(spec: str, weights: np.ndarray, field: jax.Array) -> jax.Array:
        return jnp.einsum(spec, weights, field, precision=_PRECISION)

    along_x = contract('yb,abz->ayz', wy, contract('zc,abc->abz', wz, gx))
    across = contract('yb,abz->ayz', dy, contract('zc,abc->abz', wz, gy))
    across += contract('yb,abz->ayz', wy, contract('zc,abc->abz', dz, gz))
    planes = np.concatenate([dx, wx], axis=1)  # one product over both terms
    return contract('xa,ayz->xyz', planes, jnp.concatenate([along_x, across]))


def sphere_gradients(key: jax.Array, periods: tuple[int, int, int]) -> jax.Array:
    """Unit vectors uniform on the sphere for each lattice point, (px + 1, py + 1, pz + 1, 3).

    The published code draws two uniform angles instead, which crowds the poles.
    """
    vectors = jax.random.normal(key, (*(p + 1 for p in periods), 3))
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)


def perlin_noise(
    key: jax.Array, shape: tuple[int, int, int], periods: tuple[int, int, int] = (2, 2, 2)
) -> jax.Array:
    """Perlin noise (x, y, z) whose gradients are uniform on the sphere; one key, one pattern.

    The draw does not depend on the shape: a finer grid samples the same pattern more densely.
    """
    return perlin_from_gradients(sphere_gradients(key, periods), shape, periods)


def upper_threshold(
    values: jax.Array, share: jax.Array, within: jax.Array, num_bisections: int = 16
) -> jax.Array:
    """The level that the given share of the voxels of `within` reach, never above their maximum.

    By bisection of the range, to 1 / 65,536 of it: a sort of the volume costs ten times as much.
    """
    low = jnp.min(jnp.where(within, values, jnp.inf))
    high = jnp.max(jnp.where(within, values, -jnp.inf))
    wanted = share * jnp.sum(within)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        lower, upper = bounds
        middle = 0.5 * (lower + upper)
        too_many = jnp.sum((values >= middle) & within) > wanted
        return jnp.where(too_many, middle, lower), jnp.where(too_many, upper, middle)

    # The upper end is reached by no more voxels than asked for, except by the maximum itself.
    return jax.lax.fori_loop(0, num_bisections, halve, (low, high))[1]


def lesion_seed(
    key: jax.Array,
    grid: Grid,
    periods: tuple[int, int, int] = (2, 2, 2),
    percentiles: tuple[float, float] = (90.0, 99.6),
    within: jax.Array | None = None,
) -> jax.Array:
    """A lesion's probability map P0 before transport: Perlin noise above a random percentile.

    The percentile is uniform between the two given (published: 90 to 99.6) and counted over the
    voxels of `within`, so that a seed has that share of the brain (published: of the volume). The
    published map is the masked noise as it is and peaks near 0.5; here its peak in `within` is 1.

    Args:
      key: PRNG key.
      grid: geometry; only its shape matters, the pattern spans the volume.
      periods: Perlin cells along x, y, z.
      percentiles: least and greatest percentile of the threshold, in per cent.
      within: boolean (x, y, z), the voxels counted; the whole volume where None. Not empty.

    Returns:
      P0 (x, y, z) in [0, 1], zero below the threshold.
    """
    key_noise, key_percentile = jax.random.split(key)
    noise = perlin_noise(key_noise, grid.shape, periods)
    within = jnp.ones(grid.shape, bool) if within is None else within
    low, high = percentiles
    percentile = jax.random.uniform(key_percentile, (), minval=low, maxval=high)
    threshold = upper_threshold(noise, 1.0 - percentile / 100.0, within)
    peak = jnp.max(jnp.where(within, noise, -jnp.inf))
    # The floor keeps a seed where the noise is negative in all of a very small brain.
    scaled = jnp.maximum(noise, _TINY) / jnp.maximum(peak, _TINY)
    return jnp.where(noise >= threshold, jnp.minimum(scaled, 1.0), 0.0)
