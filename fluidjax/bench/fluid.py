"""Time, memory traffic and error of each scheme that transports a lesion."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fluidjax.base import cli
from fluidjax.bench.timer import Table, this_machine, time_part
from fluidjax.fluid import flow
from fluidjax.fluid.draws import draw_pair
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.integrate import STAGES
from fluidjax.fluid.randomize import randomize_batch, seed_map
from fluidjax.fluid.settings import FluidSettings
from fluidjax.fluid.transport import NODE_SPACING, advance, confining, transport

_WORD = 4  # bytes of a float32
# Scheme, integrator, storage, border_mm (0: the published, open flow).
ROWS = (
    ('flow_map', 'rk4', 'float32', 0.0),
    ('flow_map', 'rk4', 'float32', 16.0),
    ('upwind', 'euler', 'float32', 0.0),
    ('upwind', 'euler', 'bfloat16', 0.0),
    ('upwind', 'ssp_rk3', 'float32', 0.0),
    ('koren', 'ssp_rk3', 'float32', 0.0),
    ('koren', 'ssp_rk3', 'float32', 16.0),
)
QUICK_ROWS = ROWS[:3]
TABLE = Table(
    34,
    ('ms/volume', 'milliseconds_per_volume', '10.1f'),
    ('RHS', 'right_hand_sides', '6d'),
    ('MB moved', 'megabytes_moved', '10.0f'),
    ('of copy', 'share_of_copy_bandwidth', '9.1%'),
    ('error', 'there_and_back_error', '8.3f'),
)


def settings_of(row: tuple[str, str, str, float], time: float) -> FluidSettings:
    """The settings of a row, with one transport time for all lesions."""
    scheme, integrator, storage, border = row
    return FluidSettings(
        scheme=scheme,
        integrator=integrator,
        storage=storage,
        border_mm=border,
        transport_time=(time, time),
    )


def least_bytes(settings: FluidSettings, grid: Grid) -> float:
    """The bytes that a scheme must move for one volume, if each array is read or written once.

    A stage of a step reads P and the speeds and writes P; the stages of SSP-RK3 after the first
    also read the step's start. The flow map reads P0, writes P, and writes and reads the
    displacement; tracing moves position and speed of each node.
    """
    voxels, d = math.prod(grid.shape), grid.ndim
    if settings.scheme == 'flow_map':
        nodes = math.prod(
            flow.coarse_grid(grid, NODE_SPACING * settings.mesh_spacing_mm(grid)).shape
        )
        traced = nodes * 3 * d * STAGES['rk4'] * settings.map_steps(grid)
        return _WORD * (voxels * (2 + 2 * d) + traced)
    speed = d * (0.5 if settings.storage == 'bfloat16' else 1.0)
    stage = 2 + speed
    extra = {'euler': 0, 'ssp_rk3': 2, 'rk4': 3}[settings.integrator]
    steps, stages = settings.num_steps(grid), STAGES[settings.integrator]
    return _WORD * voxels * (steps * (stages * stage + extra) + 3 * d)


def copy_bandwidth(grid: Grid, batch: int, repeats: int) -> float:
    """Bytes per second of writing x + 1 for a batch of volumes x."""
    x = jnp.ones((batch, *grid.shape), jnp.float32)
    timed = time_part(lambda x: x + 1.0, x, repeats=max(5, repeats))
    return 2 * _WORD * x.size / (timed['milliseconds'] / 1000.0)


class Lesions(NamedTuple):
    """The lesions to transport: seeds (batch, x, y (, z)), the keys of their flows, the brain."""

    P0: jax.Array
    keys: jax.Array
    brain: jax.Array


def seeded(grid: Grid, batch: int) -> Lesions:
    """Perlin seeds in an ellipsoidal brain that fills most of the volume."""
    axes = jnp.meshgrid(*(jnp.linspace(-1, 1, n) for n in grid.shape), indexing='ij')
    brain = sum(x**2 for x in axes) < 0.9
    settings = FluidSettings()

    def seed(key: jax.Array) -> jax.Array:
        draw = draw_pair(key, settings)
        return jnp.where(brain, seed_map(draw.seeds, draw.count, brain, grid, settings), 0.0)

    keys = jax.random.split(jax.random.key(0), batch)
    return Lesions(jax.jit(jax.vmap(seed))(keys), keys, brain)


def time_scheme(
    row: tuple[str, str, str, float],
    grid: Grid,
    lesions: Lesions,
    time: float,
    repeats: int,
    bandwidth: float,
) -> dict[str, Any]:
    """Measure one scheme: the time of velocity and transport, and the error of a way and back.

    The error is the mass that is misplaced after a lesion was transported along a flow and back
    again, over twice its mass: 0 is exact.
    """
    settings = settings_of(row, time)

    def carry(P0: jax.Array, keys: jax.Array, brain: jax.Array) -> jax.Array:
        one = lambda P, key: transport(P, key, time, grid, settings, brain)
        return jax.vmap(one)(P0, keys)

    timed = time_part(carry, *lesions, repeats=repeats)
    moved = least_bytes(settings, grid)
    milliseconds = timed['milliseconds'] / len(lesions.keys)
    by_map = settings.scheme == 'flow_map'
    stages = STAGES['rk4'] * settings.map_steps(grid) if by_map else settings.num_stages(grid)
    return {
        'scheme': settings.scheme,
        'integrator': settings.integrator,
        'storage': settings.storage,
        'border_mm': settings.border_mm,
        'milliseconds_per_volume': milliseconds,
        'right_hand_sides': stages,
        'megabytes_moved': moved / 1e6,
        'share_of_copy_bandwidth': moved / (milliseconds / 1000.0) / bandwidth,
        'there_and_back_error': _there_and_back(lesions, grid, settings, time),
        'compile_seconds': timed['compile_seconds'],
    }


def _there_and_back(lesions: Lesions, grid: Grid, settings: FluidSettings, time: float) -> float:
    """The error of the first lesion. A stepping scheme goes back by the negative velocity."""
    key, P0 = lesions.keys[0], lesions.P0[0]

    @jax.jit
    def run(P0: jax.Array, brain: jax.Array, sign: jax.Array) -> jax.Array:
        if settings.scheme == 'flow_map':
            return transport(P0, key, sign * time, grid, settings, brain)
        faces = flow.face_flow(key, grid, settings, confining(brain, settings))
        speeds = tuple((sign * u).astype(settings.storage) for u in faces.speeds)
        return advance(P0, flow.FaceFlow(speeds), time, grid, settings)

    there = run(P0, lesions.brain, jnp.float32(1.0))
    again = run(there, lesions.brain, jnp.float32(-1.0))
    return float(jnp.abs(again - P0).sum() / (2.0 * P0.sum()))


def time_pairs(lesions: Lesions, grid: Grid, repeats: int) -> dict[str, float]:
    """Time whole pairs as training draws them: seed, flow, transport, painting."""
    batch = len(lesions.keys)
    images = jnp.broadcast_to((0.7 * lesions.brain)[None, ..., None], (batch, *grid.shape, 1))

    def pairs(key: jax.Array, images: jax.Array) -> Any:
        return randomize_batch(key, images, None, grid)

    timed = time_part(pairs, jax.random.key(0), images, repeats=repeats)
    return {
        'milliseconds_per_volume': timed['milliseconds'] / batch,
        'compile_seconds': timed['compile_seconds'],
    }


def time_fluid(
    grid: Grid, batch: int, time: float, repeats: int, quick: bool = False
) -> dict[str, Any]:
    """Measure every scheme on one grid, and print a table.

    Args:
        grid: geometry.
        batch: volumes per call.
        time: transport time, in the unit of arXiv:2506.10233.
        repeats: timed calls.
        quick: only the first three schemes.
    """
    bandwidth, machine = copy_bandwidth(grid, batch, repeats), this_machine()
    shape = ' x '.join(map(str, grid.shape))
    cli.tell(
        f'{shape} voxels, batch {batch}, {machine["device"]}, transported for {time} with V x 500, '
        f'velocity included; copying memory: {bandwidth / 1e9:.1f} GB/s'
    )
    TABLE.print_head('scheme')
    lesions, schemes = seeded(grid, batch), []
    for row in QUICK_ROWS if quick else ROWS:
        schemes.append(time_scheme(row, grid, lesions, time, repeats, bandwidth))
        TABLE.print_row(_name_of(row), schemes[-1])
    pairs = time_pairs(lesions, grid, repeats)
    TABLE.print_row('whole pair (seed, flow, painting)', pairs)
    return {
        'shape': grid.shape,
        'spacing': grid.spacing,
        'batch': batch,
        'time': time,
        **machine,
        'copy_gigabytes_per_second': bandwidth / 1e9,
        'schemes': schemes,
        'pair': pairs,
    }


def _name_of(row: tuple[str, str, str, float]) -> str:
    scheme, integrator, storage, border = row
    words = [scheme] if scheme == 'flow_map' else [scheme, integrator]
    words.append('open' if border == 0 else f'confined, {border:g} mm')
    return ' '.join([*words, 'bf16'] if storage == 'bfloat16' else words)
