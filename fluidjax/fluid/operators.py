"""Finite differences on a `Grid`: gradient, divergence and curl, at the voxels.

Scalars are (..., x, y (, z)); vector fields (..., x, y (, z), d), in mm per unit time for
velocities. All derivatives are per mm, so a flow is the same at every resolution.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fluidjax.fluid.grid import Grid


def forward_difference(field: jax.Array, axis: int) -> jax.Array:
    """field[i + 1] - field[i], one shorter along the axis."""
    n = field.shape[axis]
    upper = jax.lax.slice_in_dim(field, 1, n, axis=axis)
    return upper - jax.lax.slice_in_dim(field, 0, n - 1, axis=axis)


def pad(field: jax.Array, axis: int, before: int, after: int, mode: str = 'constant') -> jax.Array:
    """`jnp.pad` along one axis."""
    widths = [(0, 0)] * field.ndim
    widths[axis] = (before, after)
    return jnp.pad(field, widths, mode=mode)


def derivative(field: jax.Array, axis: int, grid: Grid) -> jax.Array:
    """Central difference per mm along one of `grid.axes`.

    One-sided at the faces (as numpy.gradient, edge_order=1), or around them where periodic.
    """
    h = grid.spacing[axis]
    if grid.periodic:
        return (jnp.roll(field, -1, axis) - jnp.roll(field, 1, axis)) / (2.0 * h)
    step = forward_difference(field, axis)
    inner = pad(step, axis, 1, 0, 'edge') + pad(step, axis, 0, 1, 'edge')
    return inner / (2.0 * h)


def gradient(field: jax.Array, grid: Grid) -> jax.Array:
    """Gradient (..., x, y (, z), d) of a scalar field, per mm."""
    return jnp.stack([derivative(field, axis, grid) for axis in grid.axes], axis=-1)


def curl(potentials: jax.Array, grid: Grid) -> jax.Array:
    """Divergence-free V (..., d) of the potentials Psi, per mm.

    In 3-D the curl of three potentials (..., x, y, z, 3); in 2-D (dPsi/dy, -dPsi/dx) of one stream
    function (..., x, y, 1). Differences along two axes commute, faces included, so
    the divergence by the same differences is zero up to rounding everywhere.
    """

    def d(k: int, axis: int) -> jax.Array:
        return derivative(potentials[..., k], grid.axes[axis], grid)

    return jnp.stack(curl_of(d, grid.ndim), axis=-1)


def curl_of(d, ndim: int) -> list[jax.Array]:
    """The components of a curl from d(k, axis), the derivative of potential k along an axis."""
    if ndim == 2:
        return [d(0, 1), -d(0, 0)]
    return [d(2, 1) - d(1, 2), d(0, 2) - d(2, 0), d(1, 0) - d(0, 1)]
