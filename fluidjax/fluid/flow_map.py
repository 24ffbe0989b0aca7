"""Transport by the flow map: trace where each voxel's content came from, then gather once.

P(x, T) = P0(X), where X is reached from x by following -V for a time T. V is smooth (Perlin noise
of a few cells), so the displacement X - x is traced at coarse nodes with a fourth-order scheme in a
finer velocity mesh, and interpolated to the voxels (cubic), where P0 is read once. No time step can
be unstable, a sharp edge is smoothed by one linear interpolation instead of dozens of steps, and
the same key gives the same lesion at every resolution. The mass is not kept exactly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.interpolation import linear
from fluidjax.fluid.grid import Grid

_PRECISION = jax.lax.Precision.HIGHEST


def trace_back(V: jax.Array, mesh: Grid, nodes: Grid, time: jax.Array, num_steps: int) -> jax.Array:
    """Displacement X - x of what arrives at each node after a time, mm: (nodes, d).

    Runge-Kutta of fourth order along -V, V interpolated linearly in its mesh, constant beyond it.

    Args:
      V: steady velocity on the mesh (mesh, d), mm per unit time.
      mesh: the grid V is given on.
      nodes: the grid of arrival points; both begin at the first voxel.
      time: how long; negative to look ahead.
      num_steps: steps of the scheme; static.
    """
    column = lambda values: jnp.asarray(values, V.dtype).reshape(-1, *[1] * nodes.ndim)  # noqa: E731
    rate = -jnp.moveaxis(V, -1, 0) / column(mesh.spacing)  # cells of the mesh per unit time
    places = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n, dtype=V.dtype) for n in nodes.shape), indexing='ij')
    )
    start = places * column(nodes.spacing) / column(mesh.spacing)
    dt = time / num_steps

    def velocity(X: jax.Array) -> jax.Array:
        return jax.vmap(lambda component: sample(component, X, mesh.periodic))(rate)

    def step(X: jax.Array, _: None) -> tuple[jax.Array, None]:
        k1 = velocity(X)
        k2 = velocity(X + 0.5 * dt * k1)
        k3 = velocity(X + 0.5 * dt * k2)
        k4 = velocity(X + dt * k3)
        return X + dt / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    end = jax.lax.scan(step, start, None, length=num_steps)[0]
    return jnp.moveaxis((end - start) * column(mesh.spacing), 0, -1)


def to_voxels(field: jax.Array, nodes: Grid, grid: Grid) -> jax.Array:
    """A field at the nodes (nodes, ...) brought to the voxels (x, y (, z), ...), cubic."""
    for axis in range(grid.ndim):
        at = np.arange(grid.shape[axis]) * grid.spacing[axis] / nodes.spacing[axis]
        matrix = cubic_weights(at, nodes.shape[axis], grid.periodic)
        product = jnp.tensordot(matrix, field, axes=(1, axis), precision=_PRECISION)
        field = jnp.moveaxis(product, 0, axis)
    return field


def cubic_weights(at: np.ndarray, size: int, periodic: bool) -> np.ndarray:
    """Matrix (len(at), size): Catmull-Rom interpolation at node indices `at`.

    Beyond the ends the nodes are continued linearly, or around where periodic.
    """
    low = np.floor(at).astype(int)
    low = low if periodic else np.clip(low, 0, size - 2)
    f = at - low
    taps = (
        np.stack(
            [
                -f + 2 * f**2 - f**3,
                2 - 5 * f**2 + 3 * f**3,
                f + 4 * f**2 - 3 * f**3,
                -(f**2) + f**3,
            ],
            axis=1,
        )
        / 2.0
    )
    weights = np.zeros((len(at), size))
    for row, (first, tap) in enumerate(zip(low, taps)):
        for offset, w in zip((-1, 0, 1, 2), tap):
            node = first + offset
            if periodic:
                weights[row, node % size] += w
            elif 0 <= node < size:
                weights[row, node] += w
            else:  # the line through the two outermost nodes
                end, inner = (0, 1) if node < 0 else (size - 1, size - 2)
                weights[row, end] += 2.0 * w
                weights[row, inner] -= w
    return weights.astype(np.float32)


def sample(volume: jax.Array, voxel: jax.Array, periodic: bool = False) -> jax.Array:
    """Linear interpolation of a volume (x, y (, z)) at voxel indices (d, ...), constant beyond."""
    return linear(volume, voxel, 'wrap' if periodic else 'nearest')


def carry(P0: jax.Array, displacement: jax.Array, grid: Grid) -> jax.Array:
    """P (x, y (, z)): P0 read at x + displacement, the displacement (x, y (, z), d) in mm."""
    places = jnp.meshgrid(
        *(jnp.arange(n, dtype=displacement.dtype) for n in grid.shape), indexing='ij'
    )
    at = jnp.stack([p + displacement[..., k] / grid.spacing[k] for k, p in enumerate(places)])
    return sample(P0, at, grid.periodic)
