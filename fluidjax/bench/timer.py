"""Timing on the devices of this machine, and the parts of a configuration timed one by one."""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fluidjax.base import cli
from fluidjax.base.subject import TISSUES
from fluidjax.detect.anomaly_map import PUBLISHED, closest_shift, median_filter, residual_map
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import build_stages, fluid_settings, longest_stage, synthesis_settings
from fluidjax.synthesis.generate import synthesise_batch
from fluidjax.training.state import run_once


class Table:
    """A table on the terminal, printed row by row as the numbers come.

    Args:
        width: of the column of names.
        columns: heading, key and format of each number, `('ms', 'milliseconds', '10.1f')`.
    """

    def __init__(self, width: int, *columns: tuple[str, str, str]) -> None:
        self._width = width
        self._columns = [(*column, int(re.match(r'\d+', column[2])[0])) for column in columns]

    def print_head(self, name: str = '') -> None:
        """Print the headings."""
        cells = [f'{heading:>{width}s}' for heading, _, _, width in self._columns]
        cli.tell(f'{name:{self._width}s}' + ''.join(cells))

    def print_row(self, name: str, values: Mapping[str, float]) -> None:
        """Print a row; numbers that are NaN are shown as '-', missing ones not at all."""
        cells = []
        for _, key, spec, width in self._columns:
            value = values.get(key)
            known = value is not None and not math.isnan(value)
            text = f'{value:{spec}}' if known else '' if value is None else '-'
            cells.append(f'{text:>{width}s}')
        cli.tell((f'{name:{self._width}s}' + ''.join(cells)).rstrip())


def this_machine() -> dict[str, str]:
    """The device that is timed, and the version of JAX."""
    device = jax.devices()[0]
    return {'device': f'{device.platform} ({device.device_kind})', 'jax': jax.__version__}


def peak_gb(who: int = resource.RUSAGE_SELF) -> float:
    """The most memory that this process had so far, or one of its children, in GB."""
    unit = 1.0 if sys.platform == 'darwin' else 1024.0
    return resource.getrusage(who).ru_maxrss * unit / 1e9


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call until its arrays are ready, after one call that does not count."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def time_part(function: Callable, *arguments: Any, repeats: int) -> dict[str, float]:
    """Time a function's calls and its compilation; also XLA's operations and temporary memory."""
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    flops = (compiled.cost_analysis() or {}).get('flops', math.nan)
    return {
        'milliseconds': 1000.0 * median_seconds(lambda: compiled(*arguments), repeats),
        'compile_seconds': compile_seconds,
        'teraflop': float(flops) / 1e12,
        'temporary_megabytes': compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }


class Bench:
    """The stages of a configuration with random brains and parameters to time them with."""

    def __init__(self, config: Any) -> None:
        self.grid = model_grid(config)
        self.stages = build_stages(config, self.grid)
        self.fluid, self.synthesis = fluid_settings(config), synthesis_settings(config)
        self.has_bank = bool(config.cohort.lesion_dir)
        self.key = jax.random.key(0)

    def batch(self, size: int) -> dict[str, jax.Array]:
        """Random brains that fill the volume; as many lesion masks, and tissue, if there are in
        training.
        """
        shape = (size, *self.grid.shape)
        image = jax.random.uniform(self.key, (*shape, 1), minval=0.3, maxval=0.9)
        part = tuple(slice(n // 4, n // 2) for n in self.grid.shape)
        batch = {'image': image, 'brain': jnp.ones_like(image)}
        if self.has_bank:
            batch['lesions'] = jnp.zeros(shape, jnp.uint8).at[(slice(None), *part)].set(1)
        if self.synthesis is not None:
            tissue = jax.random.randint(self.key, (*shape, len(TISSUES)), 0, 42)
            batch['tissue'] = tissue.astype(jnp.uint8)
        return batch

    def synthesise(self, batch: dict[str, jax.Array], key: jax.Array) -> Any:
        """Scans of a batch's tissue."""
        tissue, brain = batch['tissue'], batch['brain']
        return synthesise_batch(key, tissue, brain, self.grid.spacing, self.synthesis)

    def randomize(self, batch: dict[str, jax.Array], key: jax.Array) -> Any:
        """The fluid randomization of a batch."""
        return randomize_batch(
            key, batch['image'], batch['brain'], self.grid, self.fluid, batch.get('lesions')
        )


def gradient_of(loss: Callable) -> Callable:
    """The gradient of a method's loss, a function of (trained, frozen, batch, key)."""

    def gradient(trained: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        return jax.grad(lambda p: loss({**frozen, **p}, batch, key)[0])(trained)

    return gradient


def split(method: Any, params: Any) -> tuple[Any, Any]:
    """The parameters that a method trains, and the others."""
    trained = {name: params[name] for name in method.trainable}
    return trained, {n: group for n, group in params.items() if n not in method.trainable}


def time_all(config: Any, repeats: int) -> dict[str, dict[str, float]]:
    """Time the parts of all stages on random brains of the configuration's grid."""
    bench = Bench(config)
    key, parts = bench.key, {}
    for stage in bench.stages:
        # What is computed at once.
        part = max(1, stage.training.batch_size // stage.training.accumulate)
        method, batch = stage.method, bench.batch(part)
        size, params = len(batch['image']), run_once(method.init, key)
        if bench.synthesis is not None:
            parts[f'synthesise {size}'] = (bench.synthesise, batch, key)
        if method.pairs is not None:
            name = f'draw {size} pairs'
            name += f', {method.stage}' if name in parts else ''
            parts[name] = (method.pairs, batch, key)
        parts[f'{method.stage} gradient, batch {size}'] = (
            gradient_of(method.loss),
            *split(method, params),
            batch,
            key,
        )
    if method.autoencoder is not None:
        parts[f'encode {size}'] = (method.autoencoder.encode, params, batch['image'])
    one = batch['image'][:1]
    mask = [one] if method.needs_mask else []
    parts['reconstruct 1'] = (method.reconstruct, params, one, key, *mask)
    return _time_parts(parts, repeats)


def time_step_shares(config: Any, repeats: int) -> dict[str, Any]:
    """Time a training step of the longest stage with and without fluid randomization.

    Without it the pairs are healthy, and all else is the same: augmentation, encoding of both
    images, U-Net, gradient. The difference is one measure of the share of randomization. If it is
    smaller than the timer's scatter, the randomization timed by itself is the better one.
    """
    bench = Bench(config)
    stage = longest_stage(bench.stages)
    method, training = stage.method, stage.training
    pairs = method.pairs
    if pairs is None or pairs.randomization is None:
        raise cli.UserError(f'config.method: {config.method} is trained without randomization')
    plain = dataclasses.replace(method, pairs=dataclasses.replace(pairs, randomization=None))
    batch = bench.batch(max(1, training.batch_size // training.accumulate))
    groups = split(method, run_once(method.init, bench.key))
    size = len(batch['image'])
    table = _time_parts(
        {
            f'randomization only, batch {size}': (bench.randomize, batch, bench.key),
            f'step without, batch {size}': (gradient_of(plain.loss), *groups, batch, bench.key),
            f'step with, batch {size}': (gradient_of(method.loss), *groups, batch, bench.key),
        },
        repeats,
    )
    only, without, with_it = (row['milliseconds'] for row in table.values())
    shares = {'share_by_difference': (with_it - without) / with_it, 'share_alone': only / with_it}
    cli.tell(
        f'share of the step: {shares["share_by_difference"]:.2%} by difference, '
        f'{shares["share_alone"]:.2%} timed by itself'
    )
    return table | shares


def time_map(shape: tuple[int, int, int], spacing: tuple[float, ...], repeats: int) -> dict:
    """Time the published steps from a scan and its counterpart to the anomaly map.

    Also times the two largest steps by themselves, and measures the temporary memory in MB.
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
    megabytes = table['anomaly map, as published']['temporary_megabytes']
    cli.tell(f'temporary memory of the map: {megabytes:.0f} MB')
    return table | {'temporary_megabytes': megabytes}


def _time_parts(parts: dict[str, tuple], repeats: int) -> dict[str, dict[str, float]]:
    shown = Table(34, ('ms', 'milliseconds', '12.1f'), ('compile s', 'compile_seconds', '12.1f'))
    shown.print_head()
    table = {}
    for name, (function, *arguments) in parts.items():
        table[name] = time_part(function, *arguments, repeats=repeats)
        shown.print_row(name, table[name])
    return table
