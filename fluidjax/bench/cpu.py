"""Our networks on the cores of this machine, beside the same networks in PyTorch.

Both are called by turns in one process, so that other load falls on both. JAX shares the batch over
the cores as devices, as in training; PyTorch shares the work of each operation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fluidjax.base import cli
from fluidjax.bench import networks
from fluidjax.bench.case import Case, forward_row, networks_of, pytorch, step_row
from fluidjax.bench.timer import Table, this_machine

ROWS = ('autoencoder', 'unet', 'image unet')
TABLE = Table(
    22,
    ('parameters', 'parameters', '12,d'),
    ('JAX ms', 'milliseconds', '10.1f'),
    ('PyTorch ms', 'pytorch_milliseconds', '12.1f'),
    ('ratio', 'ratio', '8.2f'),
)


def measure(
    config: Any, shape: tuple[int, ...] | None, batch: int, repeats: int, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Time forward pass and training step of each network, and print a table.

    Args:
        config: of `configs/ldm.py`; float32 is computed, whatever it says.
        shape: of the volumes; None for the configuration's.
        batch: volumes per call; as many cores as divide it are used by JAX.
        repeats: timed calls of each.
        only: names of rows, all of them if empty.

    Returns:
        `rows`: milliseconds per call of both and, where there is PyTorch, their ratio (above 1:
        PyTorch is faster); `shape`, `batch`, `cores`, and the versions.

    Raises:
        UserError: an unknown row, or a PyTorch that is too old.
    """
    cases = networks_of(config, shape, batch, dtype='float32').cases
    steps = {f'{name}{step}': (cases[name], bool(step)) for name in ROWS for step in ('', ' step')}
    for name in only:
        if name not in steps:
            raise cli.UserError(f"--only: no '{name}'; there are {', '.join(steps)}")
    devices, version = _devices(batch), pytorch()
    cores = len(jax.devices())
    cli.tell(
        f'{this_machine()["device"]}, batch {batch}: JAX on {len(devices)} of {cores} devices; '
        + (f'PyTorch {version}' if version else "no PyTorch: pip install 'torch>=2.4' to compare")
    )
    TABLE.print_head()
    rows = {}
    for name, (case, step) in steps.items():
        if not only or name in only:
            rows[name] = _measure_row(case, step, devices, repeats, version is not None)
            TABLE.print_row(name, rows[name])
    return {
        **this_machine(),
        'pytorch': version,
        'cores': cores,
        'shape': list(cases['autoencoder'].shape[:3]),
        'batch': batch,
        'rows': rows,
    }


def _devices(batch: int) -> list[Any]:
    """As many devices as share the batch evenly."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if batch % n == 0)
    return devices[:count]


def _measure_row(
    case: Case, step: bool, devices: list[Any], repeats: int, compare: bool
) -> dict[str, float]:
    share = case.with_batch(case.batch // len(devices))
    row = (step_row if step else forward_row)(share)
    compiled = networks.compile_row(row, devices)
    calls = {'jax': networks.caller(row, compiled, len(devices))}
    if compare:
        from fluidjax.bench import pytorch as beside

        beside.use_cores(len(jax.devices()))
        timed = beside.Timed(case, 'cpu', compiled=False)
        calls['pytorch'] = timed.trainer() if step else timed.forward
    medians = by_turns(calls, repeats)
    measured = {'parameters': networks.count(row.params), 'milliseconds': 1000.0 * medians['jax']}
    if compare:
        measured['pytorch_milliseconds'] = 1000.0 * medians['pytorch']
        measured['ratio'] = medians['jax'] / medians['pytorch']
    return measured


def by_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of several calls that are made one after another, again and again.

    The first call of each does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
