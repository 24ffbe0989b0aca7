"""Finite differences on a `Grid`: gradient, divergence, curl, and first-order upwind advection.

Scalars are (..., x, y, z); vector fields (..., x, y, z, 3), in mm per unit time for velocities.
All derivatives are per mm, so a flow is the same at every resolution.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fluidjax.errors import UserError
from fluidjax.fluid.grid import Grid

AXES = (-3, -2, -1)
BOUNDARIES = ('neumann', 'published')


def _difference(field: jax.Array, axis: int) -> jax.Array:
    """field[i + 1] - field[i], one shorter along the axis."""
    n = field.shape[axis]
    upper = jax.lax.slice_in_dim(field, 1, n, axis=axis)
    return upper - jax.lax.slice_in_dim(field, 0, n - 1, axis=axis)


def _pad(field: jax.Array, axis: int, before: int, after: int, mode: str = 'constant') -> jax.Array:
    widths = [(0, 0)] * field.ndim
    widths[axis] = (before, after)
    return jnp.pad(field, widths, mode=mode)


def _derivative(field: jax.Array, axis: int, h: float) -> jax.Array:
    """Central difference per mm, one-sided at the faces (as numpy.gradient, edge_order=1)."""
    padded = _pad(_difference(field, axis), axis, 1, 1, mode='edge')
    n = field.shape[axis]
    lower = jax.lax.slice_in_dim(padded, 0, n, axis=axis)
    return (lower + jax.lax.slice_in_dim(padded, 1, n + 1, axis=axis)) * (0.5 / h)


def gradient(field: jax.Array, grid: Grid) -> jax.Array:
    """Gradient (..., x, y, z, 3) of a scalar field, per mm."""
    return jnp.stack([_derivative(field, a, h) for a, h in zip(AXES, grid.spacing)], axis=-1)


def divergence(V: jax.Array, grid: Grid) -> jax.Array:
    """Divergence (..., x, y, z) of a vector field, by the same stencil as `curl`."""
    return sum(_derivative(V[..., k], AXES[k], grid.spacing[k]) for k in range(3))


def curl(potentials: jax.Array, grid: Grid) -> jax.Array:
    """Curl V (..., x, y, z, 3) of three potentials Psi (..., x, y, z, 3), per mm.

    Differences along two axes commute, faces included, so `divergence(curl(Psi))` is zero up to
    rounding everywhere.
    """
    a, b, c = (potentials[..., k] for k in range(3))
    ddx, ddy, ddz = (
        lambda field, axis=axis, h=h: _derivative(field, axis, h)
        for axis, h in zip(AXES, grid.spacing)
    )
    return jnp.stack([ddy(c) - ddz(b), ddz(a) - ddx(c), ddx(b) - ddy(a)], axis=-1)


def advection_operator(
    V: jax.Array, grid: Grid, boundary: str = 'neumann'
) -> Callable[[jax.Array], jax.Array]:
    """The function P -> -V . grad P by first-order upwind differences, for one velocity field.

    Zero-Neumann boundary: P beyond a face equals P at the face. 'neumann' puts that ghost layer
    outside the volume, which keeps every voxel within the bounds of P. 'published' replaces the
    outermost layer by the one inside it before differencing; the interior then obeys 'neumann' on
    the smaller grid, while the outermost layer itself drifts out of [0, 1].

    Args:
      V: velocity (..., x, y, z, 3), mm per unit time.
      grid: geometry.
      boundary: 'neumann' or 'published'.
    """
    if boundary not in BOUNDARIES:
        raise UserError(f'boundary {boundary!r}: choose one of {", ".join(BOUNDARIES)}')
    rates = [V[..., k] / grid.spacing[k] for k in range(3)]  # voxels per unit time
    forward = [jnp.maximum(rate, 0.0) for rate in rates]
    backward = [jnp.minimum(rate, 0.0) for rate in rates]

    def right_hand_side(P: jax.Array) -> jax.Array:
        P = replicate_interior(P) if boundary == 'published' else P
        change = jnp.zeros_like(P)
        for k, axis in enumerate(AXES):
            step = _difference(P, axis)
            change -= forward[k] * _pad(step, axis, 1, 0)
            change -= backward[k] * _pad(step, axis, 0, 1)
        return change

    return right_hand_side


def upwind_advection(
    P: jax.Array, V: jax.Array, grid: Grid, boundary: str = 'neumann'
) -> jax.Array:
    """-V . grad P (..., x, y, z), first-order upwind; see `advection_operator`."""
    return advection_operator(V, grid, boundary)(P)


def replicate_interior(P: jax.Array) -> jax.Array:
    """P with its outermost layer replaced by the next one inside: the published boundary."""
    for axis in AXES:
        interior = jax.lax.slice_in_dim(P, 1, P.shape[axis] - 1, axis=axis)
        P = _pad(interior, axis, 1, 1, mode='edge')
    return P
