"""What carrying a lesion costs and how far it errs, scheme by scheme, beside a copy of memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fluidjax.base import cli
from fluidjax.bench.timer import time_part
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


def settings_of(row: tuple[str, str, str, float], time: float) -> FluidSettings:
    """The settings of a row, every lesion carried for the same time."""
    scheme, integrator, storage, border = row
    return FluidSettings(
        scheme=scheme,
        integrator=integrator,
        storage=storage,
        border_mm=border,
        transport_time=(time, time),
    )


def least_bytes(settings: FluidSettings, grid: Grid) -> float:
    """The array traffic a scheme cannot avoid for one volume, every array read or written once.

    A stage of a step reads P and the speeds and writes P; the stages of SSP-RK3 after the first
    read the step's start as well. The map reads P0, writes P, and writes and reads the
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
    """What every scheme carries: seeds (batch, x, y (, z)), the keys of their flows, the brain."""

    P0: jax.Array
    keys: jax.Array
    brain: jax.Array


def seeded(grid: Grid, batch: int) -> Lesions:
    """Perlin seeds in an ellipsoid that fills most of the volume."""
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
    """One row: what velocity and transport cost, and the error of going there and back.

    The error is the mass misplaced after a lesion was carried for the time and then back along the
    same flow, over twice its mass: 0 is exact.
    """
    settings = settings_of(row, time)

    def carry(P0: jax.Array, keys: jax.Array, brain: jax.Array) -> jax.Array:
        one = lambda P, key: transport(P, key, time, grid, settings, brain)
        return jax.vmap(one)(P0, keys)

    timed = time_part(carry, *lesions, repeats=repeats)
    moved = least_bytes(settings, grid)
    milliseconds = timed['milliseconds'] / len(lesions.keys)
    stages = (
        STAGES['rk4'] * settings.map_steps(grid)
        if settings.scheme == 'flow_map'
        else settings.num_stages(grid)
    )
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
    """Of the first lesion. A stepping scheme goes back with the velocity's sign changed."""
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
    """Whole pairs as training draws them: seed, flow, transport, painting."""
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
    """Every scheme on one grid, printed as it comes.

    Args:
        grid: geometry.
        batch: volumes a call.
        time: transport time, the paper's unit.
        repeats: timed calls.
        quick: only the first three schemes.
    """
    bandwidth = copy_bandwidth(grid, batch, repeats)
    device = jax.devices()[0]
    shape = ' x '.join(map(str, grid.shape))
    cli.tell(
        f'{shape} voxels, batch {batch}, {device.platform} ({device.device_kind}), carried '
        f'for {time} with V x 500, velocity included; copy {bandwidth / 1e9:.1f} GB/s\n'
        f'{"scheme":34s}{"ms/volume":>10s}{"RHS":>6s}{"MB moved":>10s}{"of copy":>9s}'
        f'{"error":>8s}'
    )
    lesions, schemes = seeded(grid, batch), []
    for row in QUICK_ROWS if quick else ROWS:
        made = time_scheme(row, grid, lesions, time, repeats, bandwidth)
        schemes.append(made)
        border = 'open' if row[3] == 0 else f'confined, {row[3]:g} mm'
        name = f'{row[0]} {row[1] if row[0] != "flow_map" else ""} {border}' + (
            '' if row[2] == 'float32' else ' bf16'
        )
        cli.tell(
            f'{" ".join(name.split()):34s}{made["milliseconds_per_volume"]:10.1f}'
            f'{made["right_hand_sides"]:6d}{made["megabytes_moved"]:10.0f}'
            f'{made["share_of_copy_bandwidth"]:9.1%}{made["there_and_back_error"]:8.3f}'
        )
    pairs = time_pairs(lesions, grid, repeats)
    cli.tell(f'{"whole pair (seed, flow, painting)":34s}{pairs["milliseconds_per_volume"]:10.1f}')
    return {
        'shape': grid.shape,
        'spacing': grid.spacing,
        'batch': batch,
        'time': time,
        'device': f'{device.platform} {device.device_kind}',
        'jax': jax.__version__,
        'copy_gigabytes_per_second': bandwidth / 1e9,
        'schemes': schemes,
        'pair': pairs,
    }
