"""Compiling for TPUs on a machine without one: memory and time of a program, ahead of time.

The wheel `libtpu` holds the compiler. Times are estimates: each instruction of the compiled program
carries the cycles that the scheduler assumes, and their sum is divided by the chip's clock. Copies
that overlap with computation are counted too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from fluidjax.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one TPU chip, and libtpu's name for a machine of eight.

    Attributes:
        gigabytes: memory, GB (2^30 bytes).
        teraflops: peak in bfloat16, TFLOP/s.
        gigahertz: clock at which the matrix units reach that peak.
        accelerator: libtpu's name of a machine of eight chips.
        interconnect: GB/s over all links to other chips.
    """

    gigabytes: float
    teraflops: float
    gigahertz: float
    accelerator: str
    interconnect: float


# The clock is the peak over 2 x 128^2 x 4 (v5e) or 8 (v4, v5p), 2 x 256^2 x 4 (v6e) operations.
CHIPS = {
    'v4': Chip(32.0, 275.0, 1.05, 'v4-8', 300.0),
    'v5e': Chip(16.0, 197.0, 1.5, 'v5litepod-8', 200.0),
    'v5p': Chip(95.0, 459.0, 1.75, 'v5p-8', 600.0),
    'v6e': Chip(32.0, 918.0, 1.75, 'v6e-8', 448.0),
}
COPIES = ('copy', 'pad', 'slice', 'transpose', 'reshape', 'concatenate')


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as 'v5e:2x4'.

    Raises:
        UserError: this is not a topology.
    """
    kind, _, shape = topology.partition(':')
    if kind not in CHIPS or not re.fullmatch(r'\d+x\d+(x\d+)?', shape):
        raise UserError(
            f"--aot: '{topology}' is not a TPU topology; give e.g. v5e:2x4, v5p:2x2x2 or "
            f'v6e:2x4 (chips: {", ".join(CHIPS)})'
        )
    return CHIPS[kind]


def prepare(topology: str) -> None:
    """Set the environment for libtpu and JAX; call it before JAX is used.

    Raises:
        UserError: there is no such topology, or libtpu is not installed.
    """
    chip = chip_of(topology)
    if importlib.util.find_spec('libtpu') is None:
        raise UserError('--aot: compiling for a TPU needs its compiler: pip install libtpu')
    os.environ.update(
        {
            'JAX_PLATFORMS': 'cpu',
            'TPU_SKIP_MDS_QUERY': '1',
            'TPU_WORKER_HOSTNAMES': 'localhost',
            'TPU_ACCELERATOR_TYPE': chip.accelerator,
            'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
            'TPU_MIN_LOG_LEVEL': '3',
            'TPU_STDERR_LOG_LEVEL': '3',
        }
    )
    if 'jax' in sys.modules:
        sys.modules['jax'].config.update('jax_platforms', 'cpu')


def topology_devices(topology: str) -> list[Any]:
    """The devices of a topology to compile for; call `prepare` before.

    Raises:
        UserError: libtpu does not know the topology.
    """
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform='tpu', topology_name=topology).devices)
    except Exception as error:  # libtpu's errors have no common class
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--aot: libtpu has no '{topology}' ({reason}); give e.g. v5e:2x4"
        ) from error


def estimate(compiled: Any, chip: Chip) -> dict[str, float]:
    """The compiler's estimates for one device of a compiled program.

    Returns:
        `seconds`, of which `convolution_seconds` in convolutions and matmuls and `copy_seconds` in
        moving data, NaN if the program cannot be read; `share_of_peak`, its floating-point
        operations over those that the chip could do in that time; `ideal_seconds` of XLA's cost
        model, which has no copies, NaN if it is not positive.
    """
    cost = compiled.cost_analysis() or {}
    try:
        program = compiled.as_text()
    except RuntimeError:  # v6e: JAX's XLA cannot read what libtpu compiled (seen with 0.10.2)
        program = ''
    spent = {True: 0.0, False: 0.0, 'copy': 0.0}
    for cycles, name, multiplies in _instructions(program):
        spent['copy' if name in COPIES else multiplies] += cycles / (1e9 * chip.gigahertz)
    seconds = sum(spent.values()) or math.nan
    ideal = float(cost.get('optimal_seconds', math.nan))
    return {
        'seconds': seconds,
        'convolution_seconds': spent[True],
        'copy_seconds': spent['copy'],
        'share_of_peak': float(cost.get('flops', math.nan)) / seconds / (1e12 * chip.teraflops),
        'ideal_seconds': ideal if ideal > 0 else math.nan,
    }


def _instructions(text: str) -> Iterator[tuple[float, str, bool]]:
    """Cycles, name, and whether it runs on the matrix unit, of each instruction that is run.

    The body of a loop counts as often as it runs, if the program says how often.
    """
    bodies, entry = _computations(text)
    waiting = [(entry, 1)]  # the entry of an empty program is not in `bodies`
    while waiting:
        name, times = waiting.pop()
        for line in bodies.get(name, ()):
            operation = re.search(r' = (?:\(.*?\)|\S+) ([\w\-]+)\(', line)
            operation = operation[1] if operation else ''
            cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
            if cycles:
                multiplies = 'kind=kOutput' in line or operation in ('convolution', 'dot')
                yield times * float(cycles[1]), operation, multiplies
            for inner in re.findall(r'(?:body|to_apply|calls)=%?([\w.\-]+)', line):
                if operation in ('while', 'call'):
                    count = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                    waiting.append((inner, times * int(count[1]) if count else times))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation of an HLO module, and the name of its entry."""
    bodies, name, entry = {}, '', ''
    for line in text.splitlines():
        head = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name and line.startswith('  '):
            bodies[name].append(line)
    return bodies, entry
