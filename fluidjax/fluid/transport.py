"""A lesion carried along the flow of a key: by its map, by stepping, or as published.

    dP/dt = -V . grad P + div(D grad P),  V = curl(Psi),  D = diffusion_scale Phi^2

`flow_map` reads P0 once where the flow brings it from, between half steps of diffusion where there
is any (Strang 1968); `koren` and `upwind` step the equation in conservative form. `fluidjax
bench fluid` measures time and error of each: at 1 mm the map is best in both; on coarse grids
(4 mm) upwind steps are faster and less accurate. The steps keep mass exactly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.fluid import finite_volume, flow, flow_map, published
from fluidjax.fluid.flow import FaceFlow
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.integrate import INTEGRATORS, euler, split_time, trajectory
from fluidjax.fluid.settings import FluidSettings

# Spacing of the flow map's nodes, in cells of its velocity mesh.
NODE_SPACING = 1.5
_DIFFUSION_SPLITS = 4  # Strang steps of the flow map where the lesion diffuses as well


def confining(brain: jax.Array | None, settings: FluidSettings) -> jax.Array | None:
    """The brain a flow is confined to, or None for an open flow."""
    return brain if settings.border_mm > 0 else None


def displacement(
    key: jax.Array,
    time: jax.Array,
    grid: Grid,
    settings: FluidSettings,
    brain: jax.Array | None = None,
) -> tuple[jax.Array, Grid]:
    """The origin of what arrives at each node after a time: X - x (nodes, d) in mm, and the nodes.

    Args:
      key: of the flow.
      time: how long; negative to look ahead.
      grid: geometry.
      settings: the flow, and how finely it is traced.
      brain: boolean (x, y (, z)), what the flow is confined to where `border_mm` > 0.
    """
    mesh = flow.coarse_grid(grid, settings.mesh_spacing_mm(grid))
    nodes = flow.coarse_grid(grid, NODE_SPACING * settings.mesh_spacing_mm(grid))
    V = flow.node_velocity(key, grid, mesh, settings, confining(brain, settings))
    return flow_map.trace_back(V, mesh, nodes, time, settings.map_steps(grid)), nodes


def transport(
    P0: jax.Array,
    key: jax.Array,
    time: jax.Array,
    grid: Grid,
    settings: FluidSettings = FluidSettings(),
    brain: jax.Array | None = None,
) -> jax.Array:
    """P0 carried along the flow of a key for a time; no value leaves the bounds of P0.

    Args:
      P0: (x, y (, z)).
      key: of the flow and of the diffusivity.
      time: a scalar, one per sample under vmap; negative to go back along the flow. A stepping
        scheme shortens it if `settings.num_steps` stable steps do not reach it, and diffusion if it
        is beyond `settings.transport_time`.
      grid: geometry and boundary, static.
      settings: the flow and the scheme, static.
      brain: boolean (x, y (, z)), what the flow is confined to where `border_mm` > 0.

    Returns:
      P (x, y (, z)).

    Raises:
      UserError: P0 or the brain has another shape than the grid, or parity is asked for in 2-D.
    """
    _check(P0, brain, grid, settings)
    if settings.parity:
        return _as_published(P0, key, time, grid, settings)
    if settings.scheme == 'flow_map':
        return _by_map(P0, key, time, grid, settings, brain)
    faces = flow.face_flow(key, grid, settings, confining(brain, settings))
    way = jnp.where(time < 0, -1.0, 1.0)
    faces = faces._replace(speeds=tuple(way * u for u in faces.speeds))
    faces = jax.tree.map(lambda field: field.astype(settings.storage), faces)
    return advance(P0, faces, jnp.abs(time), grid, settings)


def _check(P0: jax.Array, brain: jax.Array | None, grid: Grid, settings: FluidSettings) -> None:
    for name, field in (('P0', P0), ('brain', brain)):
        if field is not None and field.shape != grid.shape:
            raise UserError(f'{name} has shape {field.shape}, the grid {grid.shape}: resample it')
    if settings.parity and grid.ndim != 3:
        raise UserError(
            'config.fluid.parity: True needs a 3-D grid, because the published operator is 3-D; '
            'set it to False'
        )


def advance(
    P0: jax.Array, faces: FaceFlow, time: jax.Array, grid: Grid, settings: FluidSettings
) -> jax.Array:
    """P0 carried along a given flow for a time, in stable steps of `settings.scheme`."""
    dt_stable = finite_volume.stable_time_step(faces, grid, settings.scheme, settings.cfl)
    f = finite_volume.right_hand_side(faces, grid, settings.scheme)
    return _stepped(P0, f, time, dt_stable, settings.num_steps(grid), settings.integrator)


def _stepped(P0, f, time, dt_stable, max_steps: int, integrator: str) -> jax.Array:
    dt, num_steps = split_time(time, dt_stable, max_steps)
    scheme = INTEGRATORS[integrator]
    return trajectory(lambda P: scheme(f, P, dt), P0, max_steps, num_steps)


def _by_map(P0, key, time, grid: Grid, settings: FluidSettings, brain) -> jax.Array:
    D = flow.face_diffusivity(flow.flow_keys(key)[1], grid, settings, confining(brain, settings))
    splits = 1 if D is None else _DIFFUSION_SPLITS
    coarse, nodes = displacement(key, time / splits, grid, settings, brain)
    fine = flow_map.to_voxels(coarse, nodes, grid)
    if D is None:
        return flow_map.carry(P0, fine, grid)
    for _ in range(splits):
        P0 = _diffused(P0, D, 0.5 * jnp.abs(time) / splits, grid, settings)
        P0 = flow_map.carry(P0, fine, grid)
        P0 = _diffused(P0, D, 0.5 * jnp.abs(time) / splits, grid, settings)
    return P0


def _diffused(P, D, time, grid: Grid, settings: FluidSettings) -> jax.Array:
    """P after diffusion only, by stable Euler steps."""
    faces = FaceFlow(None, D)
    longest = settings.transport_time[1] / (2 * _DIFFUSION_SPLITS)
    max_steps = max(1, int(1 + longest * settings.peak_diffusion_rate(grid) / settings.cfl))
    dt_stable = finite_volume.stable_time_step(faces, grid, cfl=settings.cfl)
    dt, num_steps = split_time(time, dt_stable, max_steps)
    f = finite_volume.right_hand_side(faces, grid)
    return trajectory(lambda Q: euler(f, Q, dt), P, max_steps, num_steps)


def _as_published(P0, key, time, grid: Grid, settings: FluidSettings) -> jax.Array:
    """The published velocity and operator; stable steps, whose solution the published solver's
    equals in the interior (the outermost layer drifts, and is outside every brain)."""
    V = jnp.where(time < 0, -1.0, 1.0) * published.published_velocity(
        flow.flow_keys(key)[0], grid, settings.periods(grid.ndim), settings.velocity_scale
    )
    dt_stable = settings.cfl / jnp.maximum(published.upwind_rate(V, grid), 1e-12)
    return _stepped(
        P0,
        published.upwind_operator(V, grid),
        jnp.abs(time),
        dt_stable,
        settings.num_steps(grid),
        settings.integrator,
    )
