"""Random incompressible flows V = curl(Psi), at the nodes of a grid or at the faces of its voxels.

Psi is Perlin noise: three independent potentials in 3-D, one stream function in 2-D. A flow can be
confined to a brain: Psi is multiplied by a ramp chi that falls to zero at the brain's surface, so
that V = curl(chi Psi) has no component through it (Bridson et al. 2007, "Curl-noise for procedural
fluid flow") and a lesion slides along the border instead of leaving.

At the nodes V = chi curl(Psi) + grad(chi) x Psi, with the noise differentiated exactly. At the
faces the potentials live on the edges of the voxels and V is their circulation, so that inflow and
outflow of a voxel are equal to rounding, and nothing flows through the surface of a confined
brain.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.fluid.grid import Grid
from fluidjax.fluid.noise import Coordinates, perlin_noise, voxel_fractions
from fluidjax.fluid.operators import curl_of, forward_difference
from fluidjax.fluid.settings import FluidSettings

_PRECISION = jax.lax.Precision.HIGHEST
_LENGTHS_A_RAMP = (
    0.2  # length of the blur that locates the brain's surface; gaps below 4 mm leak a little
)


class FaceFlow(NamedTuple):
    """A flow at the upper faces of the voxels, the faces between voxel i and i + 1 of each axis.

    speeds: for each axis the velocity through the face, (x, y (, z)) mm per unit time; None where
      there is only diffusion.
    diffusivity: for each axis D at the face, (x, y (, z)) mm^2 per unit time; None without.
    """

    speeds: tuple[jax.Array, ...] | None
    diffusivity: tuple[jax.Array, ...] | None = None


def coarse_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Nodes about `spacing_mm` apart over the same volume, never closer than its voxels.

    The first node of an axis is the first voxel and the last the last (where periodic, the nodes
    divide the extent).
    """
    shape, spacing = [], []
    for n, h in zip(grid.shape, grid.spacing):
        intervals = n if grid.periodic else n - 1
        nodes = min(intervals, max(1, round(intervals * h / spacing_mm)))
        shape.append(max(2, nodes + (0 if grid.periodic else 1)))
        spacing.append(intervals * h / (shape[-1] - (0 if grid.periodic else 1)))
    return Grid(tuple(shape), tuple(spacing), grid.boundary)


def node_fractions(nodes: Grid, grid: Grid) -> Coordinates:
    """Positions of the nodes of `coarse_grid` as fractions of the extent of the grid."""
    return tuple(
        np.arange(m) * s / length for m, s, length in zip(nodes.shape, nodes.spacing, grid.extent)
    )


def border_ramp(
    brain: jax.Array, grid: Grid, at: Coordinates, width_mm: float, along: int | None = None
) -> jax.Array:
    """The ramp chi: 0 at the brain's surface and outside, 1 deeper than about `width_mm`.

    A smooth step of the depth d below the surface, which is found by blurring: with an exponential
    kernel of length L the share of brain a depth d below a flat surface is 1 - exp(-d / L) / 2
    (Varadhan 1967; oblique surfaces seem up to 1.7 times as deep). Unlike a distance
    transform it is smooth, is one matrix product per axis, and has an exact derivative.

    Args:
      brain: boolean (x, y (, z)); beyond the volume there is no brain, unless periodic.
      grid: geometry of the mask.
      at: for each axis the positions of the result, as fractions of the extent.
      width_mm: depth at which the flow is free.
      along: an axis; the derivative of chi along it, per mm, instead of chi.
    """
    length = _LENGTHS_A_RAMP * width_mm
    outside = 1.0 - blurred(brain, grid, at, length)
    outside = jnp.clip(outside, 0.5 * np.exp(-width_mm / length), 0.5)
    t = -length * jnp.log(2.0 * outside) / width_mm
    if along is None:
        return t**2 * (3.0 - 2.0 * t)
    slope = length * blurred(brain, grid, at, length, along) / outside
    return 6.0 * t * (1.0 - t) / width_mm * slope


def blurred(
    mask: jax.Array, grid: Grid, at: Coordinates, length_mm: float, along: int | None = None
) -> jax.Array:
    """Share of a mask (x, y (, z)) around positions, weighted by exp(-|x| / length) per axis.

    Args:
      mask: 0 or 1, or boolean; nothing beyond the volume, unless periodic.
      grid: its geometry.
      at: for each axis the positions, as fractions of the extent.
      length_mm: of the kernel.
      along: an axis; the derivative along it, per mm, instead of the share.
    """
    share = mask.astype(jnp.float32)
    for axis in range(grid.ndim):
        weights = _kernel_weights(grid, at[axis], axis, length_mm, along == axis)
        product = jnp.tensordot(weights, share, axes=(1, axis), precision=_PRECISION)
        share = jnp.moveaxis(product, 0, axis)
    return share


def _kernel_weights(
    grid: Grid, at: np.ndarray, axis: int, length: float, differentiated: bool
) -> np.ndarray:
    """Matrix (positions, voxels): the integral of the kernel (or of its slope) over each voxel."""
    n, h = grid.shape[axis], grid.spacing[axis]
    weights = np.zeros((len(at), n))
    for lap in (-1, 0, 1) if grid.periodic else (0,):
        offset = h * (np.arange(n) + lap * n) - at[:, None] * grid.extent[axis]
        below, above = (offset - 0.5 * h) / length, (offset + 0.5 * h) / length
        if differentiated:  # moving the kernel adds its value at the upper face
            weights += (np.exp(-np.abs(below)) - np.exp(-np.abs(above))) / (2.0 * length)
        else:
            weights += _laplace(above) - _laplace(below)
    return weights.astype(np.float32)


def _laplace(x: np.ndarray) -> np.ndarray:
    """Cumulative distribution of the density exp(-|x|) / 2."""
    half = 0.5 * np.exp(-np.abs(x))
    return np.where(x < 0, half, 1.0 - half)


def _potential(
    key: jax.Array, at: Coordinates, grid: Grid, settings: FluidSettings, along: int | None = None
) -> jax.Array:
    """Psi / velocity_scale at some positions, or its derivative along an axis, per mm."""
    noise = perlin_noise(
        key,
        at,
        settings.periods(grid.ndim),
        settings.perlin_octaves,
        settings.perlin_persistence,
        along,
        grid.periodic,
    )
    return noise if along is None else noise / grid.extent[along]


def _potential_keys(key: jax.Array, ndim: int) -> jax.Array:
    return jax.random.split(key, 3 if ndim == 3 else 1)


def node_velocity(
    key: jax.Array, grid: Grid, nodes: Grid, settings: FluidSettings, brain: jax.Array | None = None
) -> jax.Array:
    """V (nodes, d), mm per unit time, of the flow of a key.

    Args:
      key: PRNG key; the same flow at every resolution.
      grid: the grid whose extent the noise spans.
      nodes: where V is wanted, from `coarse_grid`.
      settings: what to draw; `border_mm` says how a flow is confined.
      brain: boolean (x, y (, z)) on the grid, what the flow is confined to; None for an open flow.
    """
    key_flow, _ = flow_keys(key)
    keys, at = _potential_keys(key_flow, grid.ndim), node_fractions(nodes, grid)
    if brain is not None:
        chi = border_ramp(brain, grid, at, settings.border_mm)
        slopes = [
            border_ramp(brain, grid, at, settings.border_mm, axis) for axis in range(grid.ndim)
        ]

    def d(k: int, axis: int) -> jax.Array:
        slope = _potential(keys[k], at, grid, settings, axis)
        if brain is None:
            return slope
        return chi * slope + slopes[axis] * _potential(keys[k], at, grid, settings)

    return settings.velocity_scale * jnp.stack(curl_of(d, grid.ndim), axis=-1)


def face_flow(
    key: jax.Array, grid: Grid, settings: FluidSettings, brain: jax.Array | None = None
) -> FaceFlow:
    """The flow of a key at the upper faces of the voxels, with its diffusivity where there is one.

    Args:
      key: PRNG key, the same flow as `node_velocity`'s.
      grid: geometry.
      settings: what to draw; `border_mm` says how a flow is confined.
      brain: boolean (x, y (, z)) the flow is confined to; None for an open flow.
    """
    key_flow, key_phi = flow_keys(key)
    keys = _potential_keys(key_flow, grid.ndim)
    # Potential k lives on the edges along axis k: between the voxels of the other axes.
    between = [
        tuple(a for a in range(grid.ndim) if grid.ndim == 2 or a != k) for k in range(len(keys))
    ]
    potentials = [
        _potential(keys[k], _edges(grid, between[k]), grid, settings) for k in range(len(keys))
    ]
    if brain is not None:
        potentials = [
            psi * _edge_ramp(brain, grid, axes, settings.border_mm)
            for psi, axes in zip(potentials, between)
        ]

    def d(k: int, axis: int) -> jax.Array:
        """Difference along one axis of an edge's, at the upper faces of the remaining one."""
        step = forward_difference(potentials[k], grid.axes[axis]) / grid.spacing[axis]
        across = 1 - axis if grid.ndim == 2 else 3 - k - axis
        return jax.lax.slice_in_dim(step, 1, grid.shape[across] + 1, axis=across)

    speeds = tuple(settings.velocity_scale * v for v in curl_of(d, grid.ndim))
    return FaceFlow(speeds, face_diffusivity(key_phi, grid, settings, brain))


def flow_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of the velocity's potentials and of the diffusivity's."""
    return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)


def face_diffusivity(
    key: jax.Array, grid: Grid, settings: FluidSettings, brain: jax.Array | None = None
) -> tuple[jax.Array, ...] | None:
    """D = diffusion_scale Phi^2 at the upper faces, mm^2 per unit time, Phi Perlin noise.

    Zero at the surface of `brain`, where one is given, and at the volume's faces unless periodic.
    """
    if settings.diffusion_scale == 0.0:
        return None
    phi = _potential(key, voxel_fractions(grid), grid, settings)
    D = settings.diffusion_scale * phi**2
    faces = []
    for axis in grid.axes:
        face = 0.5 * (D + upper_neighbour(D, axis, grid, 'edge'))
        within = jnp.ones(grid.shape, bool) if brain is None else brain
        open_face = within & upper_neighbour(within, axis, grid)
        faces.append(jnp.where(open_face, face, 0.0))
    return tuple(faces)


def upper_neighbour(field: jax.Array, axis: int, grid: Grid, mode: str = 'zero') -> jax.Array:
    """field[i + 1]; beyond the last voxel the first where periodic, else zero or the last."""
    n = field.shape[axis]
    rest = jax.lax.slice_in_dim(field, 1, n, axis=axis)
    last = jax.lax.slice_in_dim(field, *((0, 1) if grid.periodic else (n - 1, n)), axis=axis)
    if not grid.periodic and mode == 'zero':
        last = jnp.zeros_like(last)
    return jnp.concatenate([rest, last], axis=axis)


def _edges(grid: Grid, between: tuple[int, ...]) -> Coordinates:
    """Positions of edges: half a voxel below the first voxel to half above the last one along the
    axes `between`, the voxels along the others."""
    return tuple(
        (np.arange(n + 1) - 0.5) / n if axis in between else np.arange(n) / n
        for axis, n in enumerate(grid.shape)
    )


def _edge_ramp(
    brain: jax.Array, grid: Grid, between: tuple[int, ...], width_mm: float
) -> jax.Array:
    """chi on edges, exactly zero on those that touch a voxel outside the brain."""
    inside = brain
    for axis in between:
        widths = [(1, 1) if a == axis else (0, 0) for a in range(grid.ndim)]
        padded = jnp.pad(inside, widths, mode='wrap' if grid.periodic else 'constant')
        n = padded.shape[axis]
        inside = jax.lax.slice_in_dim(padded, 1, n, axis=axis) & jax.lax.slice_in_dim(
            padded, 0, n - 1, axis=axis
        )
    return jnp.where(inside, border_ramp(brain, grid, _edges(grid, between), width_mm), 0.0)
