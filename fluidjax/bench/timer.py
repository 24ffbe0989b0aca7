"""How long the parts of a configuration take on the backend that is there."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fluidjax.base import cli
from fluidjax.detect.anomaly_map import PUBLISHED, closest_shift, median_filter, residual_map
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import build_stages, fluid_settings
from fluidjax.training.compiling import run_once


def time_part(function: Callable, *arguments: Any, repeats: int) -> dict[str, float]:
    """Compile a function, then the median of its timed calls; XLA's count of its operations."""
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(1000.0 * (time.perf_counter() - began))
    flops = (compiled.cost_analysis() or {}).get('flops', math.nan)
    return {
        'milliseconds': statistics.median(times),
        'compile_seconds': compile_seconds,
        'teraflop': float(flops) / 1e12,
    }


class Bench:
    """The stages of a configuration with random parameters and brains, ready to be timed."""

    def __init__(self, config: Any) -> None:
        self.grid = model_grid(config)
        self.stages = build_stages(config, self.grid)
        self.fluid = fluid_settings(config)
        self.key = jax.random.key(0)

    def batch(self, size: int) -> dict[str, jax.Array]:
        """Random brains that fill the volume, and as many lesion masks."""
        shape = (size, *self.grid.shape)
        image = jax.random.uniform(self.key, (*shape, 1), minval=0.3, maxval=0.9)
        part = tuple(slice(n // 4, n // 2) for n in self.grid.shape)
        lesions = jnp.zeros(shape, jnp.uint8).at[(slice(None), *part)].set(1)
        return {'image': image, 'brain': jnp.ones_like(image), 'lesions': lesions}


def gradient_of(method: Any) -> Callable:
    """The gradient of a method's loss by what it trains: (trained, frozen, batch, key)."""

    def gradient(trained: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        return jax.grad(lambda p: method.loss({**frozen, **p}, batch, key)[0])(trained)

    return gradient


def split(method: Any, params: Any) -> tuple[Any, Any]:
    """Parameters a method trains, and the others."""
    trained = {name: params[name] for name in method.trainable}
    return trained, {n: group for n, group in params.items() if n not in method.trainable}


def time_all(config: Any, repeats: int) -> dict[str, dict[str, float]]:
    """Every part of all stages on random brains of the configuration's grid."""
    bench = Bench(config)
    key, parts = bench.key, {}
    for stage in bench.stages:
        method, batch = stage.method, bench.batch(stage.training.batch_size)
        size, params = len(batch['image']), run_once(method.init, key)
        if hasattr(method, 'pairs'):
            parts[f'draw {size} pairs'] = (method.pairs, batch, key)
        parts[f'{method.stage} gradient, batch {size}'] = (
            gradient_of(method),
            *split(method, params),
            batch,
            key,
        )
    if hasattr(method, 'autoencoder'):
        parts[f'encode {size}'] = (method.autoencoder.encode, params, batch['image'])
    one = batch['image'][:1]
    told = [one] if method.needs_mask else []
    parts['reconstruct 1'] = (method.reconstruct, params, one, key, *told)
    return _time_parts(parts, repeats)


def time_step_shares(config: Any, repeats: int) -> dict[str, Any]:
    """A training step of the last stage with and without fluid randomization.

    Without, the pairs are healthy; all else is the same: augmentation, encoding of both images,
    U-Net, gradient. The share is what the step with it takes longer; where that drowns in the
    timer's scatter, the randomization timed alone is the better number, and both are given.
    """
    bench = Bench(config)
    method, training = bench.stages[-1].method, bench.stages[-1].training
    pairs = getattr(method, 'pairs', None)
    if pairs is None or pairs.randomization is None:
        raise cli.UserError(f'config.method: {config.method} is trained without randomization')
    plain = dataclasses.replace(method, pairs=dataclasses.replace(pairs, randomization=None))
    batch = bench.batch(training.batch_size)
    groups = split(method, run_once(method.init, bench.key))
    size = len(batch['image'])

    def alone(batch: dict[str, jax.Array], key: jax.Array) -> Any:
        return randomize_batch(
            key, batch['image'], batch['brain'], bench.grid, bench.fluid, batch['lesions']
        )

    table = _time_parts(
        {
            f'randomization alone, batch {size}': (alone, batch, bench.key),
            f'step without, batch {size}': (gradient_of(plain), *groups, batch, bench.key),
            f'step with, batch {size}': (gradient_of(method), *groups, batch, bench.key),
        },
        repeats,
    )
    only, without, with_it = (row['milliseconds'] for row in table.values())
    shares = {'share_by_difference': (with_it - without) / with_it, 'share_alone': only / with_it}
    cli.tell(
        f'share of the step: {shares["share_by_difference"]:.2%} by difference, '
        f'{shares["share_alone"]:.2%} timed alone'
    )
    return table | shares


def time_map(shape: tuple[int, int, int], spacing: tuple[float, ...], repeats: int) -> dict:
    """From a scan and its counterpart, both on the device, to the anomaly map: the published steps.

    Also the largest part of them apart, and the memory beside arguments and result, in MB.
    """
    keys = jax.random.split(jax.random.key(0))
    scan, counterpart = (jax.random.uniform(key, shape) for key in keys)
    brain = jnp.ones(shape, bool)
    steps = {
        'best of 125 shifts': (lambda s, c, b: closest_shift(s, c, 2)),
        'median of 5^3': (lambda s, c, b: median_filter(s, 5)),
        'anomaly map, as published': (lambda s, c, b: residual_map(s, c, b, spacing, PUBLISHED)),
    }
    table = _time_parts(
        {name: (function, scan, counterpart, brain) for name, function in steps.items()}, repeats
    )
    memory = (
        jax.jit(steps['anomaly map, as published'])
        .lower(scan, counterpart, brain)
        .compile()
        .memory_analysis()
    )
    table['temporary_megabytes'] = memory.temp_size_in_bytes / 1e6
    cli.tell(f'temporary memory of the map: {table["temporary_megabytes"]:.0f} MB')
    return table


def _time_parts(parts: dict[str, tuple], repeats: int) -> dict[str, dict[str, float]]:
    table = {}
    for name, (function, *arguments) in parts.items():
        table[name] = time_part(function, *arguments, repeats=repeats)
        cli.tell(
            f'{name:34s}{table[name]["milliseconds"]:12.1f} ms'
            f'{table[name]["compile_seconds"]:10.1f} s to compile'
        )
    return table
