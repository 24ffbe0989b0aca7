"""The training step of the longest stage: measured here, or estimated for a TPU topology.

Measured are whole training rounds on 1, 2, 4, ... devices, and the parts of a step by themselves.
Estimates are those of the TPU's compiler (`fluidjax.bench.aot`), and the time of communication.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base import cli
from fluidjax.bench import aot, networks
from fluidjax.bench.networks import Row
from fluidjax.bench.timer import (
    Bench,
    Table,
    gradient_of,
    median_seconds,
    split,
    this_machine,
    time_part,
)
from fluidjax.runs.cohort import model_grid, open_cohort
from fluidjax.runs.feed import Feed
from fluidjax.runs.stages import Stage, build_stages, longest_stage
from fluidjax.training import parallel
from fluidjax.training.rounds import Rounds
from fluidjax.training.settings import StageSettings, make_optimizer
from fluidjax.training.state import create_state, run_once
from fluidjax.training.steps import make_fill, make_pool_steps

# Batches that the pipeline prepares ahead.
PREFETCHED = 4
RANDOMIZATION = 'randomization only'
DEVICES = Table(
    8,
    ('batch', 'batch', '8d'),
    ('s a step', 'seconds', '12.4f'),
    ('volumes/s/device', 'volumes_per_second_and_device', '18.3f'),
    ('efficiency', 'efficiency', '12.0%'),
)
PARTS = Table(42, ('ms', 'milliseconds', '12.2f'), ('of a step', 'share', '11.1%'))
# Peaks of bfloat16 (dense) in TFLOP/s, by a part of the device's name.
TPU_KINDS = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p', 'TPU v6 lite': 'v6e'}
PEAKS = {
    'H200': 989.0,
    'H100 PCIe': 756.0,
    'H100 NVL': 835.0,
    'H100': 989.0,
    'A100': 312.0,
    'L40S': 362.0,
    'L40': 181.0,
    'L4': 121.0,
    'V100': 125.0,
    **{kind: aot.CHIPS[chip].teraflops for kind, chip in TPU_KINDS.items()},
}


def measure(config: Any, repeats: int) -> dict[str, Any]:
    """Time training on 1, 2, 4, ... of the devices of this machine, and the parts of a step.

    Each device has as many samples as in training on all devices (weak scaling).

    Args:
        config: the configuration, whose cohort is read too.
        repeats: timed rounds.

    Returns:
        `devices`: a row for each number of devices, with volumes per second and device; `parts`:
        milliseconds and shares of one device's step; `teraflop` of a step, and `share_of_peak`:
        the share of the device's peak in bfloat16, None where that is not known.
    """
    bench = Bench(config)
    stage = longest_stage(bench.stages)
    everything = parallel.layout_of(stage.training.batch_size)
    devices, machine = everything.devices, this_machine()
    counts = [n for n in (2**k for k in range(12)) if n <= len(devices)]
    cli.tell(
        f'{stage.method.stage} on {machine["device"]}, {everything.per_device} samples per device; '
        f'reuse {stage.training.reuse}, pool {stage.training.pool}'
    )
    DEVICES.print_head('devices')
    rows = []
    for count in counts:
        row = _time_rounds(bench, stage, devices[:count], everything.per_device, repeats)
        rows.append(row)
        row['efficiency'] = rows[0]['seconds'] / row['seconds']
        DEVICES.print_row(str(count), row)
    parts = _parts(bench, stage, everything.per_device, rows[0]['seconds'], repeats)
    teraflop = sum(part['teraflop'] for name, part in parts.items() if name != RANDOMIZATION)
    parts |= _host_parts(config, stage, rows[-1]['seconds'], repeats)
    kind = devices[0].device_kind
    peak = next((value for name, value in PEAKS.items() if name in kind), None)
    share = None if peak is None else teraflop / rows[0]['seconds'] / peak
    PARTS.print_head()
    for name, part in parts.items():
        PARTS.print_row(name, part)
    cli.tell(
        f'{teraflop:.3g} TFLOP per step and device'
        + ('' if share is None else f', {share:.1%} of {peak:.0f} TFLOP/s')
    )
    return {
        **machine,
        'devices': rows,
        'parts': parts,
        'teraflop': teraflop,
        'share_of_peak': share,
    }


def _time_rounds(
    bench: Bench, stage: Stage, devices: tuple[Any, ...], per_device: int, repeats: int
) -> dict[str, Any]:
    """Time training rounds of random brains on some devices."""
    layout = parallel.Layout(per_device * len(devices), devices)
    settings = dataclasses.replace(stage.training, batch_size=layout.batch_size)
    method, key = stage.method, bench.key
    optimizer = make_optimizer(settings.optimizer, settings.steps, method.trainable)
    rounds = Rounds(method, optimizer, settings, layout, key)
    state = create_state(run_once(method.init, key), method.trainable, optimizer)
    state = parallel.replicate(state, layout)
    of_one = jax.device_get(bench.batch(per_device))
    batch = {name: np.stack([np.asarray(x)] * len(devices)) for name, x in of_one.items()}
    step = 0

    def one_round() -> Any:
        nonlocal state, step
        state, metrics = rounds(state, batch, step)
        step += settings.reuse
        return metrics

    seconds = median_seconds(one_round, repeats) / settings.reuse
    return {
        'devices': len(devices),
        'batch': layout.batch_size,
        'seconds': seconds,
        'volumes_per_second_and_device': per_device / seconds,
    }


def _parts(
    bench: Bench, stage: Stage, size: int, step_seconds: float, repeats: int
) -> dict[str, Any]:
    """Time the parts of a step by themselves on one device.

    Randomization is also contained in another part. The other parts make up the step, without the
    optimizer and the communication between devices. As in training, samples are taken in
    `accumulate` parts.

    Returns:
        For each part its milliseconds per step, its share of a step, and `teraflop`.
    """
    method, key = stage.method, bench.key
    part = max(1, size // stage.training.accumulate)
    every = size / part
    often = every / stage.training.reuse
    batch = bench.batch(part)
    params = run_once(method.init, key)
    trained, frozen = split(method, params)
    parts: dict[str, Any] = {}

    def timed(name: str, share: float, function: Callable, *arguments: Any) -> None:
        timing = time_part(function, *arguments, repeats=repeats)
        milliseconds = share * timing['milliseconds']
        parts[name] = {
            'milliseconds': milliseconds,
            'share': milliseconds / step_seconds / 1000.0,
            'teraflop': share * timing['teraflop'],
        }

    if method.pairs is not None and method.pairs.randomization is not None:
        timed(RANDOMIZATION, often, bench.randomize, batch, key)
    if method.examples is None:
        timed('forward and backward', every, gradient_of(method.loss), trained, frozen, batch, key)
        return parts
    timed('augmentation, randomization, encoding', often, method.examples, params, batch, key)
    examples = jax.eval_shape(method.examples, params, batch, key)
    examples = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), examples)
    gradient = gradient_of(method.example_loss)
    timed('U-Net, forward and backward', every, gradient, trained, frozen, examples, key)
    return parts


def _host_parts(config: Any, stage: Stage, step_seconds: float, repeats: int) -> dict[str, Any]:
    """Time the host's reading of a batch of the cohort, and how long a step waits for it."""
    layout = parallel.layout_of(stage.training.batch_size)
    feed = Feed(open_cohort(config), layout, seed=0)(0)
    for _ in range(PREFETCHED):
        next(feed)
    began = time.perf_counter()
    for _ in range(repeats):
        next(feed)
    host = (time.perf_counter() - began) / repeats / stage.training.reuse
    waiting = max(0.0, host - step_seconds)
    return {
        'a batch from disk, meanwhile': _host_part(host, step_seconds),
        'waiting for it': _host_part(waiting, step_seconds),
    }


def _host_part(seconds: float, step_seconds: float) -> dict[str, float]:
    return {'milliseconds': 1000.0 * seconds, 'share': seconds / step_seconds}


def compile_for(config: Any, topology: str, only: Sequence[str] = ()) -> dict[str, Any]:
    """Compile the training steps of a configuration for a TPU topology, and print estimates.

    Compiled are the step on new pairs, and the two dispatches of training on reused latents:
    filling the pool, and a step from it. The compiler does not estimate the sums over devices.
    Their time is that of all gradients sent there and back over half the chip's links, as at the
    corner of an open mesh.

    Args:
        config: the configuration; without reuse of latents, `reuse` 5 and a pool of 4 are taken.
        topology: 'v5e:4x4'.
        only: rows to compile, of `step`, `fill` and `pool_step`; all of them if empty.

    Returns:
        `rows` as from `networks.compile_for`; `plain` and `pooled`: seconds per step, seconds of
        communication, and volumes per second and chip.
    """
    chip, devices = aot.chip_of(topology), len(aot.topology_devices(topology))
    stage = longest_stage(build_stages(config, model_grid(config)))
    training = stage.training
    if stage.method.examples is None:
        raise cli.UserError(
            f'config: {config.method} has no latents that could be used for several steps; '
            'fluidjax bench models --aot compiles its networks'
        )
    if not training.pooled:
        training = dataclasses.replace(training, reuse=5, pool=4)
    if training.batch_size % devices:
        raise cli.UserError(
            f'config.{stage.method.stage}.training.batch_size: '
            f'{training.batch_size} does not divide by {devices} chips'
        )
    size = training.batch_size // devices
    rows = networks.chosen_rows(step_rows(stage, training, size), only)
    table = networks.compile_for(rows, topology, size)
    estimates = dict.fromkeys(('step', 'fill', 'pool_step'), math.nan)
    estimates |= {name: row.get('seconds', math.nan) for name, row in table['rows'].items()}
    params = jax.eval_shape(stage.method.init, jax.random.key(0))
    sent = networks.count({name: params[name] for name in stage.method.trainable})
    sent *= 2 if training.reduce_dtype == 'bfloat16' else 4
    around = 2 * (devices - 1) / devices * sent / (0.5e9 * chip.interconnect)
    pooled = estimates['fill'] / training.reuse + estimates['pool_step']
    seconds = {'plain': estimates['step'], 'pooled': pooled}
    cli.tell(f'{size} volumes per chip and step; gradients of {sent / 1e6:.0f} MB')
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
            f'{name:8s}{1000 * whole:9.1f} ms per step, communication {1000 * around:.1f} ms '
            f'({around / whole:.1%}) of it; {size / whole:.2f} volumes per second and chip'
        )
    return table | {'reuse': training.reuse, 'pool': training.pool}


def step_rows(stage: Stage, training: StageSettings, size: int) -> dict[str, Row]:
    """The training step on new pairs, and the two dispatches of a pooled step, for one device."""
    method, axis = stage.method, networks.AXIS
    params = jax.eval_shape(method.init, networks.key_spec())
    first = networks.spec(1, dtype=jnp.int32)
    brains = networks.scans_spec(method, size)
    _, frozen = split(method, params)
    examples = jax.eval_shape(method.examples, params, brains, networks.key_spec())
    pool = jax.tree.map(lambda x: networks.spec(training.pool, *x.shape, dtype=x.dtype), examples)
    optimizer = make_optimizer(training.optimizer, training.steps, method.trainable)
    fill = make_fill(method.examples, training, axis)
    steps = make_pool_steps(method.example_loss, optimizer, training, axis, 1)

    def filled(state: Any, batch: Any, key: jax.Array) -> tuple[Any, None]:
        samples, first = batch['samples'], batch['first'].reshape(())
        pool = fill(state['frozen'], state['pool'], samples, first, jnp.int32(0), key)
        return {**state, 'pool': pool}, None

    def stepped(state: Any, batch: Any, key: jax.Array) -> Any:
        return steps(state, batch['pool'], batch['first'].reshape(()), key)

    start = lambda p: create_state(p, method.trainable, optimizer)
    return {
        'step': networks.training_row(method.loss, method.trainable, params, brains, training),
        'fill': Row(
            {'frozen': frozen, 'pool': pool},
            filled,
            {'samples': brains, 'first': first},
            donate=True,
        ),
        'pool_step': Row(params, stepped, {'pool': pool, 'first': first}, start, donate=True),
    }
