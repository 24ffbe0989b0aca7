"""The rows of `fluidjax bench gpu`: what is measured, in a process of its own.

Rows of `COMPARED` exist in JAX, with either arrangement of the convolution, and in PyTorch; the
others in JAX only. Those of `ONCE` contain few convolutions, or none, and have one arrangement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fluidjax.base.settings import settings_from
from fluidjax.bench import networks, training
from fluidjax.bench.case import Networks, forward_row, networks_of, pytorch, step_row
from fluidjax.bench.networks import Row
from fluidjax.bench.timer import this_machine
from fluidjax.detect.anomaly_map import MapSettings, residual_maps
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.models.conv import arranged
from fluidjax.models.discriminator import Discriminator
from fluidjax.runs.stages import fluid_settings

STEP = ' step'
COMPARED = (
    'unet',
    'unet step',
    'encode',
    'decode',
    'autoencoder step',
    'image unet',
    'image unet step',
)
PARTS = ('fill', 'pool step', 'new pairs step')
JUDGED = ('discriminator', 'adversarial step')
ONCE = ('randomization', 'scan to map', 'map')


def measure(
    config: Any,
    shape: tuple[int, ...] | None,
    batch: int,
    repeats: int,
    dtype: str,
    how: str,
    name: str,
) -> dict[str, float]:
    """Measure a row.

    Args:
        config, shape, batch: as in `case.networks_of`.
        repeats: timed calls, of which the median is taken.
        dtype: of the computation, 'bfloat16' or 'float32'.
        how: 'direct' or 'taps', or 'auto' for the arrangement of the device; or 'pytorch'.
        name: of the row.

    Returns:
        `milliseconds` per call, `compile_seconds`, and `gigabytes`: arguments, results and
        temporaries of the compiled program; in PyTorch the most that was allocated at once, only
        on a GPU. In JAX also `parameters` and `teraflop`.
    """
    arrangement = 'auto' if how == 'pytorch' else how
    made = networks_of(config, shape, batch, dtype=dtype, convolution=arrangement)
    if how == 'pytorch':
        from fluidjax.bench import pytorch as beside

        return beside.measure(made.cases[name.removesuffix(STEP)], name.endswith(STEP), repeats)
    jax.clear_caches()  # what was traced in another arrangement
    with arranged(arrangement):
        row = row_of(made, batch, name)
        began = time.perf_counter()
        compiled = networks.compile_row(row, jax.devices()[:1])
    compile_seconds = time.perf_counter() - began
    return networks.needs(row, compiled) | {
        'compile_seconds': compile_seconds,
        'milliseconds': 1000.0 * networks.time_row(row, compiled, repeats),
    }


def device() -> dict[str, Any]:
    """The device, its peak in bfloat16 in TFLOP/s (None: not known), and the versions."""
    kind = jax.devices()[0].device_kind
    peak = next((value for name, value in training.PEAKS.items() if name in kind), None)
    return {**this_machine(), 'peak': peak, 'pytorch': pytorch()}


def row_of(made: Networks, batch: int, name: str) -> Row:
    """A row of JAX, by its name."""
    if name in COMPARED:
        case = made.cases[name.removesuffix(STEP)]
        return step_row(case) if name.endswith(STEP) else forward_row(case)
    if name in PARTS:
        stage = made.latent
        rows = training.step_rows(stage, stage.training, batch)
        return rows[{'pool step': 'pool_step', 'new pairs step': 'step'}.get(name, name)]
    return OTHERS[name](made, networks.spec(batch, *made.grid.shape, 1))


def _discriminator(made: Networks, volume: Any) -> Row:
    method = made.autoencoder.method
    model = Discriminator(
        method.losses.discriminator_features,
        method.losses.discriminator_layers,
        method.network.dtype,
    )
    params = jax.eval_shape(model.init, networks.key_spec(), volume)['params']
    return Row(params, lambda p, x, key: (p, model.apply({'params': p}, x)), volume)


def _adversarial_step(made: Networks, volume: Any) -> Row:
    method = made.autoencoder.method
    params = jax.eval_shape(method.init, networks.key_spec())
    scans = networks.scans_spec(method, volume.shape[0])
    return networks.training_row(
        method.loss, method.trainable, params, scans, made.autoencoder.training
    )


def _randomization(made: Networks, volume: Any) -> Row:
    settings = fluid_settings(made.config)

    def randomize(params: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        return params, randomize_batch(key, batch, jnp.ones_like(batch), made.grid, settings)

    return Row({}, randomize, volume)


def _map(made: Networks, volume: Any) -> Row:
    def to_map(params: Any, scans: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return params, _maps(made, scans, scans[:, ::-1])

    return Row({}, to_map, volume)


def _scan_to_map(made: Networks, volume: Any) -> Row:
    method = made.latent.method

    def to_map(params: Any, scans: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return params, _maps(made, scans, method.reconstruct(params, scans, key))

    return Row(jax.eval_shape(method.init, networks.key_spec()), to_map, volume)


def _maps(made: Networks, scans: jax.Array, counterparts: jax.Array) -> jax.Array:
    settings = settings_from(MapSettings, made.config.detect.map, 'detect.map')
    scans, counterparts = scans[..., 0], counterparts[..., 0]
    return residual_maps(scans, counterparts, scans > 0, made.grid.spacing, settings)


OTHERS: dict[str, Callable[[Networks, Any], Row]] = {
    'discriminator': _discriminator,
    'adversarial step': _adversarial_step,
    'randomization': _randomization,
    'map': _map,
    'scan to map': _scan_to_map,
}
