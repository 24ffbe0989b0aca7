"""What a training step of the last stage costs, here and on a TPU that need not be there.

Here: the dispatches that training makes, on as many devices as there are, and their parts apart.
For a TPU topology: the compiler's estimates (`fluidjax.bench.aot`), and what devices send each other.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base import cli
from fluidjax.bench import aot, networks
from fluidjax.bench.networks import Row
from fluidjax.bench.timer import Bench, gradient_of, split, time_part
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.runs.cohort import model_grid, open_cohort
from fluidjax.runs.feed import Feed
from fluidjax.runs.stages import Stage, build_stages
from fluidjax.training import parallel
from fluidjax.training.compiling import run_once
from fluidjax.training.optimizer import make_optimizer
from fluidjax.training.rounds import Rounds
from fluidjax.training.settings import StageSettings
from fluidjax.training.state import create_state
from fluidjax.training.steps import make_fill, make_pool_steps

# Batches that the pipeline holds ready before it is asked.
PREFETCHED = 4
RANDOMIZATION = 'randomization alone'
# Peaks of bfloat16 (dense) in TFLOP/s, by a part of the device's name.
TPU_KINDS = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p', 'TPU v6 lite': 'v6e'}
PEAKS = {
    'H200': 989.0,
    'H100': 989.0,
    'A100': 312.0,
    'L40S': 362.0,
    'L4': 121.0,
    'V100': 125.0,
    **{kind: aot.CHIPS[chip].teraflops for kind, chip in TPU_KINDS.items()},
}


def measure(config: Any, repeats: int) -> dict[str, Any]:
    """Time training on 1, 2, 4, ... of the devices that are there, and the parts of a step.

    Each device has the samples that it would have in training on all devices (weak scaling).

    Args:
        config: the configuration, whose cohort feeds the step.
        repeats: timed rounds.

    Returns:
        `devices`: a row for each number of them, with volumes per second and device, and the share
        of the bfloat16 peak where it is known (else None); `parts`: milliseconds and shares of one
        device's step.
    """
    bench = Bench(config)
    stage = bench.stages[-1]
    everything = parallel.layout_of(stage.training.batch_size, stage.training.accumulate)
    there = everything.devices
    counts = [n for n in (2**k for k in range(12)) if n <= len(there)]
    device = there[0]
    cli.tell(
        f'{stage.method.stage} on {device.platform} ({device.device_kind}), '
        f'{everything.per_device} samples a device; reuse {stage.training.reuse}, pool '
        f'{stage.training.pool}\n{"devices":>8s}{"batch":>8s}{"s a step":>12s}'
        f'{"volumes/s/device":>18s}{"efficiency":>12s}'
    )
    rows = []
    for count in counts:
        row = _time_rounds(bench, stage, there[:count], everything.per_device, repeats)
        row['efficiency'] = row['volumes_per_second_and_device'] / (
            rows[0]['volumes_per_second_and_device']
            if rows
            else row['volumes_per_second_and_device']
        )
        rows.append(row)
        cli.tell(
            f'{count:8d}{row["batch"]:8d}{row["seconds"]:12.4f}'
            f'{row["volumes_per_second_and_device"]:18.3f}{row["efficiency"]:12.0%}'
        )
    parts = _parts(bench, stage, everything.per_device, rows[0]['seconds'], repeats)
    teraflop = sum(part['teraflop'] for name, part in parts.items() if name != RANDOMIZATION)
    parts |= _host_parts(config, stage, rows[-1]['seconds'], repeats)
    peak = next((value for name, value in PEAKS.items() if name in device.device_kind), None)
    share = None if peak is None else teraflop / rows[0]['seconds'] / peak
    for name, part in parts.items():
        cli.tell(f'{name:42s}{part["milliseconds"]:12.2f} ms{part["share"]:8.1%} of a step')
    cli.tell(
        f'{teraflop:.3g} TFLOP a step and device'
        + ('' if share is None else f', {share:.1%} of {peak:.0f} TFLOP/s')
    )
    return {
        'device': f'{device.platform} {device.device_kind}',
        'jax': jax.__version__,
        'devices': rows,
        'parts': parts,
        'teraflop': teraflop,
        'share_of_peak': share,
    }


def _time_rounds(
    bench: Bench, stage: Stage, devices: tuple[Any, ...], per_device: int, repeats: int
) -> dict[str, Any]:
    """Training rounds on some devices, on random brains: the median of their seconds."""
    layout = parallel.Layout(per_device * len(devices), devices)
    settings = dataclasses.replace(stage.training, batch_size=layout.batch_size)
    method, key = stage.method, bench.key
    optimizer = make_optimizer(settings.optimizer, settings.steps, method.trainable)
    rounds = Rounds(method, optimizer, settings, layout, key)
    state = create_state(run_once(method.init, key), method.trainable, optimizer)
    state = parallel.replicate(state, layout)
    of_one = jax.device_get(bench.batch(per_device))
    batch = {name: np.stack([np.asarray(x)] * len(devices)) for name, x in of_one.items()}
    seconds, step = [], 0
    for number in range(repeats + 1):
        began = time.perf_counter()
        state, metrics = rounds(state, batch, step)
        jax.block_until_ready(metrics)
        step += settings.reuse
        if number:  # the first compiles
            seconds.append((time.perf_counter() - began) / settings.reuse)
    median = statistics.median(seconds)
    return {
        'devices': len(devices),
        'batch': layout.batch_size,
        'seconds': median,
        'volumes_per_second_and_device': per_device / median,
    }


def _parts(
    bench: Bench, stage: Stage, size: int, step_seconds: float, repeats: int
) -> dict[str, Any]:
    """A step's parts timed apart on one device: milliseconds a step, share of one, `teraflop`.

    Randomization is a part of what it is painted into; the others make up the step, but for the
    optimiser and what devices send each other.
    """
    method, key, often = stage.method, bench.key, 1.0 / stage.training.reuse
    batch = bench.batch(size)
    params = run_once(method.init, key)
    trained, frozen = split(method, params)
    parts: dict[str, Any] = {}

    def timed(name: str, share: float, function: Callable, *arguments: Any) -> None:
        made = time_part(function, *arguments, repeats=repeats)
        milliseconds = share * made['milliseconds']
        parts[name] = {
            'milliseconds': milliseconds,
            'share': milliseconds / step_seconds / 1000.0,
            'teraflop': share * made['teraflop'],
        }

    if getattr(getattr(method, 'pairs', None), 'randomization', None) is not None:
        timed(
            RANDOMIZATION,
            often,
            lambda b, k: randomize_batch(
                k, b['image'], b['brain'], bench.grid, bench.fluid, b['lesions']
            ),
            batch,
            key,
        )
    if not hasattr(method, 'examples'):
        timed('forward and backward', 1.0, gradient_of(method), trained, frozen, batch, key)
        return parts
    timed('augmentation, randomization, encoding', often, method.examples, params, batch, key)
    examples = jax.eval_shape(method.examples, params, batch, key)
    examples = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), examples)
    timed(
        'U-Net, forward and backward',
        1.0,
        lambda t, f, e, k: jax.grad(lambda p: method.example_loss({**f, **p}, e, k)[0])(t),
        trained,
        frozen,
        examples,
        key,
    )
    return parts


def _host_parts(config: Any, stage: Stage, step_seconds: float, repeats: int) -> dict[str, Any]:
    """What the host takes for a batch of the cohort, meanwhile, and what of it is waited for."""
    layout = parallel.layout_of(stage.training.batch_size, stage.training.accumulate)
    feed = Feed(open_cohort(config), layout, seed=0)(0)
    for _ in range(PREFETCHED):
        next(feed)
    began = time.perf_counter()
    for _ in range(repeats):
        next(feed)
    host = 1000.0 * (time.perf_counter() - began) / repeats / stage.training.reuse
    whole = 1000.0 * step_seconds
    return {
        name: {'milliseconds': ms, 'share': ms / whole}
        for name, ms in (
            ('a batch from disk, meanwhile', host),
            ('waiting for it', max(0.0, host - whole)),
        )
    }


def compile_for(config: Any, topology: str, only: list[str] = []) -> dict[str, Any]:
    """Compile the training steps of a configuration for a TPU topology, and print what they need.

    The step on new pairs, and where latents are reused its two dispatches: filling the pool, and a
    step from it. Sums that devices send each other carry no estimate of the compiler: they count as
    all gradients, there and back, over half the chip's links, what a corner of an open mesh has.

    Args:
        config: the configuration; its `reuse`, or 5 and a pool of 4 where it reuses nothing.
        topology: 'v5e:4x4'.
        only: rows to compile, of `step`, `fill` and `pool_step`; all where none is named.

    Returns:
        `rows` as of `model_timing.compile_for`; `plain` and `pooled`: seconds a step, of them of
        communication, and volumes per second and chip.
    """
    chip, devices = aot.chip_of(topology), len(aot.topology_devices(topology))
    stage = build_stages(config, model_grid(config))[-1]
    training = stage.training
    if not training.pooled:
        training = dataclasses.replace(training, reuse=5, pool=4)
    if training.batch_size % devices:
        raise cli.UserError(
            f'config.{stage.method.stage}.training.batch_size: '
            f'{training.batch_size} does not divide by {devices} chips'
        )
    size = training.batch_size // devices
    rows = networks.chosen_rows(_rows(stage, training, size), only)
    table = networks.compile_for(rows, topology)
    made = dict.fromkeys(('step', 'fill', 'pool_step'), math.nan)
    made |= {name: row.get('seconds', math.nan) for name, row in table['rows'].items()}
    params = jax.eval_shape(stage.method.init, jax.random.key(0))
    sent = networks.count({name: params[name] for name in stage.method.trainable})
    sent *= 2 if training.reduce_dtype == 'bfloat16' else 4
    around = 2 * (devices - 1) / devices * sent / (0.5e9 * chip.interconnect)
    seconds = {'plain': made['step'], 'pooled': made['fill'] / training.reuse + made['pool_step']}
    cli.tell(f'{size} volumes a chip and step; gradients of {sent / 1e6:.0f} MB')
    for name, own in seconds.items():
        if math.isnan(own):
            continue
        whole = own + around
        table[name] = {
            'seconds': whole,
            'communication_seconds': around,
            'volumes_per_second_and_chip': size / whole,
        }
        cli.tell(
            f'{name:8s}{1000 * whole:9.1f} ms a step, of it communication '
            f'{1000 * around:.1f} ms ({around / whole:.1%}); {size / whole:.2f} volumes a '
            'second and chip'
        )
    return table | {'reuse': training.reuse, 'pool': training.pool}


def _rows(stage: Stage, training: StageSettings, size: int) -> dict[str, Row]:
    """The training step of new pairs, and the two dispatches of a pooled one, for a device."""
    method, axis = stage.method, networks.AXIS
    params = jax.eval_shape(method.init, jax.random.key(0))
    volume = jax.ShapeDtypeStruct((size, *method.pairs.grid.shape, 1), jnp.float32)
    first = jax.ShapeDtypeStruct((1,), jnp.int32)
    brains = {'image': volume, 'brain': volume}
    frozen = {n: group for n, group in params.items() if n not in method.trainable}
    key = jax.eval_shape(lambda: jax.random.key(0))
    examples = jax.eval_shape(lambda *given: method.examples(*given), params, brains, key)
    pool = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((training.pool, *x.shape), x.dtype), examples
    )
    optimizer = make_optimizer(training.optimizer, training.steps, method.trainable)
    fill = make_fill(method.examples, training, axis)
    steps = make_pool_steps(method.example_loss, optimizer, training, axis, 1)

    def filled(state: Any, batch: Any, key: jax.Array) -> tuple[Any, None]:
        pool = fill(state['frozen'], state['pool'], batch, jnp.int32(0), key)
        return {**state, 'pool': pool}, None

    def stepped(state: Any, batch: Any, key: jax.Array) -> Any:
        return steps(state, batch['pool'], batch['first'].reshape(()), key)

    start = lambda p: create_state(p, method.trainable, optimizer)
    return {
        'step': networks.training_row(method.loss, method.trainable, params, brains, training),
        'fill': Row(
            {'frozen': frozen, 'pool': pool}, filled, {**brains, 'first': first}, donate=True
        ),
        'pool_step': Row(params, stepped, {'pool': pool, 'first': first}, start, donate=True),
    }
