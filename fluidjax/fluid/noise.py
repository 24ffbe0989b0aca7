"""Perlin noise in two and three dimensions, at any positions of a regular product of axes.

Noise on a lattice of random gradients g is, within a cell, the sum over the corners c of
w_c(u) g_c . (u - c), where w is a product over the axes of fade weights. So it is a few small
matrix products, one per axis, which need no gather and are fast on any backend; its exact
derivative is the same product with one matrix differentiated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.fluid.grid import Grid

_PRECISION = jax.lax.Precision.HIGHEST
_TINY = 1e-6
Coordinates = tuple[np.ndarray, ...]


def voxel_fractions(grid: Grid) -> Coordinates:
    """Where the voxels lie along each axis, as fractions of the extent: i / n."""
    return tuple(np.arange(n) / n for n in grid.shape)


def _fade(f: np.ndarray) -> np.ndarray:
    return f**3 * (f * (6.0 * f - 15.0) + 10.0)


def _fade_slope(f: np.ndarray) -> np.ndarray:
    return 30.0 * f**2 * (1.0 - f) ** 2


def _axis_weights(
    fractions: np.ndarray, periods: int, differentiated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Fade weights w of the lattice planes (n, periods + 1), and w times (u - plane).

    Differentiated: both with respect to the fraction. Positions a little outside [0, 1) continue
    the polynomials of the outermost cells.
    """
    u = np.asarray(fractions, np.float64) * periods  # position in cells
    cell = np.clip(np.floor(u).astype(int), 0, periods - 1)
    rows = np.arange(len(u))
    weights, slopes = np.zeros((2, len(u), periods + 1))
    weights[rows, cell], weights[rows, cell + 1] = 1.0 - _fade(u - cell), _fade(u - cell)
    slopes[rows, cell], slopes[rows, cell + 1] = -_fade_slope(u - cell), _fade_slope(u - cell)
    distance = u[:, None] - np.arange(periods + 1)
    if not differentiated:
        return weights, weights * distance
    return periods * slopes, periods * (slopes * distance + weights)


def _along(matrix: np.ndarray, field: jax.Array, axis: int) -> jax.Array:
    """The matrix (n, m) applied along an axis of m."""
    product = jnp.tensordot(
        jnp.asarray(matrix, field.dtype), field, axes=(1, axis), precision=_PRECISION
    )
    return jnp.moveaxis(product, 0, axis)


def perlin_at(
    gradients: jax.Array,
    fractions: Coordinates,
    periods: tuple[int, ...],
    derivative: int | None = None,
) -> jax.Array:
    """Perlin noise of given lattice gradients (Perlin 2002: fade 6f^5 - 15f^4 + 10f^3).

    Args:
      gradients: (periods_x + 1, periods_y + 1 (, periods_z + 1), d), one vector per lattice point.
      fractions: for each axis the positions asked for, as fractions of the extent.
      periods: lattice cells along each axis.
      derivative: an axis; the derivative along it, per extent of that axis, instead of the value.

    Returns:
      Noise, one axis for each of `fractions`; about [-0.7, 0.7] for unit gradients, zero at the
      lattice points, twice continuously differentiable.
    """
    waiting = [gradients[..., k] for k in range(len(periods))]
    total = None
    for axis in reversed(range(len(periods))):
        w, offset = _axis_weights(fractions[axis], periods[axis], derivative == axis)
        if total is None:
            total = _along(offset, waiting[axis], axis)
        else:  # one product over both terms
            total = _along(
                np.concatenate([offset, w], axis=1),
                jnp.concatenate([waiting[axis], total], axis=axis),
                axis,
            )
        waiting = [_along(w, field, axis) for field in waiting[:axis]]
    return total


def perlin_from_gradients(
    gradients: jax.Array, shape: tuple[int, ...], periods: tuple[int, ...]
) -> jax.Array:
    """`perlin_at` on the voxels of a shape: voxel i of n at i * periods / n cells, any n."""
    return perlin_at(gradients, voxel_fractions(Grid(shape)), periods)


def sphere_gradients(key: jax.Array, periods: tuple[int, ...]) -> jax.Array:
    """Unit vectors uniform on the sphere (circle) for each lattice point, (px + 1, ..., d).

    The published code draws two uniform angles instead, which crowds the poles
    (`published.angle_gradients`).
    """
    vectors = jax.random.normal(key, (*(p + 1 for p in periods), len(periods)))
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)


def tile_gradients(gradients: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The last lattice plane of the given axes replaced by the first: noise that repeats there."""
    for axis in axes:
        first = jax.lax.slice_in_dim(gradients, 0, 1, axis=axis)
        rest = jax.lax.slice_in_dim(gradients, 0, gradients.shape[axis] - 1, axis=axis)
        gradients = jnp.concatenate([rest, first], axis=axis)
    return gradients


def perlin_noise(
    key: jax.Array,
    fractions: Coordinates,
    periods: tuple[int, ...],
    octaves: int = 1,
    persistence: float = 0.5,
    derivative: int | None = None,
    tiled: bool = False,
) -> jax.Array:
    """Perlin noise whose gradients are uniform on the sphere; one key, one pattern.

    The pattern does not depend on the positions asked for: a finer grid samples it more densely.

    Args:
      key: PRNG key.
      fractions: for each axis the positions, as fractions of the extent (`voxel_fractions`).
      periods: lattice cells along each axis.
      octaves: how many patterns are added, each with twice the cells of the one before it.
      persistence: amplitude of an octave relative to the one before it.
      derivative: an axis; the derivative along it, per extent, instead of the value.
      tiled: whether the pattern repeats beyond the extent.
    """
    if tiled:
        fractions = tuple(f % 1.0 for f in fractions)
    total = 0.0
    for octave in range(octaves):
        cells = tuple(p * 2**octave for p in periods)
        gradients = sphere_gradients(jax.random.fold_in(key, octave), cells)
        gradients = tile_gradients(gradients, tuple(range(len(cells))) if tiled else ())
        total += persistence**octave * perlin_at(gradients, fractions, cells, derivative)
    return total
