"""Operator and draws of the published code, with their peculiarities; used by parity runs.

Three things in the code of arXiv:2506.10233, after UNA's, differ from ours: gradient directions
come from two uniform angles, which crowds the poles; the three potentials are one and the same, so
V is orthogonal to (1, 1, 1); and the boundary condition is met by replicating the first inner layer
into the outermost one before differencing, so the outermost layer drifts out of [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fluidjax.fluid.grid import Grid
from fluidjax.fluid.noise import perlin_from_gradients, tile_gradients
from fluidjax.fluid.operators import curl, forward_difference, pad


def gradients_from_angles(theta: jax.Array, phi: jax.Array) -> jax.Array:
    """Unit vectors (sin phi cos theta, sin phi sin theta, cos phi), (..., 3)."""
    return jnp.stack(
        [jnp.sin(phi) * jnp.cos(theta), jnp.sin(phi) * jnp.sin(theta), jnp.cos(phi)], axis=-1
    )


def angle_gradients(key: jax.Array, periods: tuple[int, int, int]) -> jax.Array:
    """The published draw: theta and phi uniform on [0, 2 pi), tiled along axis 0."""
    theta, phi = 2.0 * jnp.pi * jax.random.uniform(key, (2, *(p + 1 for p in periods)))
    return tile_gradients(gradients_from_angles(theta, phi), (0,))


def published_noise(key: jax.Array, grid: Grid, periods: tuple[int, int, int]) -> jax.Array:
    """Perlin noise (x, y, z) of the published draw."""
    return perlin_from_gradients(angle_gradients(key, periods), grid.shape, periods)


def published_velocity(
    key: jax.Array, grid: Grid, periods: tuple[int, int, int], scale: float
) -> jax.Array:
    """V (x, y, z, 3), mm per unit time: the curl of one potential taken three times."""
    potential = published_noise(key, grid, periods)
    return scale * curl(jnp.stack([potential] * 3, axis=-1), grid)


def upwind_operator(
    V: jax.Array, grid: Grid, replicated: bool = True
) -> Callable[[jax.Array], jax.Array]:
    """The function P -> -V . grad P by first-order upwind differences, V at the voxels.

    Args:
      V: velocity (..., x, y, z, 3), mm per unit time.
      grid: geometry.
      replicated: the published boundary, see `replicate_interior`. Where False, P beyond a face
        equals P at the face; the interior of the published solution obeys that on the smaller grid.
    """
    rates = [V[..., k] / grid.spacing[k] for k in range(grid.ndim)]  # voxels per unit time
    forward = [jnp.maximum(rate, 0.0) for rate in rates]
    backward = [jnp.minimum(rate, 0.0) for rate in rates]

    def right_hand_side(P: jax.Array) -> jax.Array:
        P = replicate_interior(P, grid) if replicated else P
        change = jnp.zeros_like(P)
        for k, axis in enumerate(grid.axes):
            step = forward_difference(P, axis)
            change -= forward[k] * pad(step, axis, 1, 0)
            change -= backward[k] * pad(step, axis, 0, 1)
        return change

    return right_hand_side


def upwind_rate(V: jax.Array, grid: Grid) -> jax.Array:
    """Largest sum over the axes of |V_k| / h_k: a stable Euler step is at most its inverse."""
    return jnp.max(sum(jnp.abs(V[..., k]) / grid.spacing[k] for k in range(grid.ndim)))


def replicate_interior(P: jax.Array, grid: Grid) -> jax.Array:
    """P with its outermost layer replaced by the next one inside: the published boundary."""
    for axis in grid.axes:
        interior = jax.lax.slice_in_dim(P, 1, P.shape[axis] - 1, axis=axis)
        P = pad(interior, axis, 1, 1, mode='edge')
    return P
