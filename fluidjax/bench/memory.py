"""The memory that training needs, before it is used: what each stage keeps, and how it fits a card.

Programs are traced for GPUs at two batch sizes, from which the need of every other one follows, as
it grows by the same for each volume. Nothing is allocated and, without `compiled`, not compiled.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fluidjax.base import cli
from fluidjax.base.share import WHOLE
from fluidjax.bench import aot, networks
from fluidjax.bench.liveness import kept_bytes, peak_bytes
from fluidjax.bench.timer import Table, split
from fluidjax.bench.training import step_rows
from fluidjax.models.conv import target_backend
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import Stage, build_stages
from fluidjax.training.settings import make_optimizer
from fluidjax.training.state import create_state

GIB = 2**30
CARDS = (24, 40, 80)
# JAX takes this share of a card, if XLA_PYTHON_CLIENT_MEM_FRACTION does not say otherwise.
USABLE = 0.75
# What is computed is counted this many times, for work space and what the compiler does not fuse.
ALLOWANCE = 1.5
NEEDS = Table(
    14,
    ('parameters', 'parameters', '12,d'),
    ('state', 'state', '8.2f'),
    ('batch', 'batch', '7d'),
    ('kept', 'kept', '8.2f'),
    ('step', 'step', '8.2f'),
    ('encoding', 'encoding', '10.2f'),
)
FITS = Table(
    14,
    ('card', 'card', '6d'),
    ('accumulate', 'accumulate', '12d'),
    ('at once', 'part', '9d'),
    ('needs', 'gibibytes', '8.1f'),
    ('usable', 'usable', '8.1f'),
)
COMPILED = Table(
    26, ('arguments', 'arguments', '11.2f'), ('temporary', 'temporary', '11.2f'), ('s', 's', '8.0f')
)


@dataclasses.dataclass(frozen=True)
class Line:
    """Bytes that grow with the number of volumes."""

    fixed: float
    per_volume: float

    def at(self, volumes: int) -> float:
        """The bytes for some volumes."""
        return self.fixed + self.per_volume * volumes


NOTHING = Line(0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a stage needs on a device.

    Attributes:
        parameters: number of values, all groups.
        trained: bytes of the parameters in training.
        state: bytes of parameters, their moving average and the optimiser's state.
        kept: bytes that the backward pass of the loss keeps from the forward pass of one volume.
        samples: bytes of a batch on the device, and of the pool where there is one.
        step: the most that loss and gradient have in memory at a time.
        encoding: the same for the latents of new pairs, of stages that pool them.

    The loss on validation scans goes through the same parts and needs no more than the larger one.
    """

    parameters: int
    trained: int
    state: int
    kept: int
    samples: Line
    step: Line
    encoding: Line

    def needed(self, batch: int, accumulate: int) -> float:
        """The bytes that training needs on a device, with `ALLOWANCE`.

        Args:
            batch: samples on the device.
            accumulate: parts in which it goes through them.
        """
        part = batch // accumulate
        sums = self.trained if accumulate > 1 else 0  # of the gradients of the parts
        computed = max(self.step.at(part) + sums, self.encoding.at(part))
        return self.state + self.samples.at(batch) + ALLOWANCE * computed


@target_backend('gpu')
def footprint(stage: Stage) -> Footprint:
    """Trace the programs of a stage, for GPUs."""
    method, training, key = stage.method, stage.training, networks.key_spec()
    params = jax.eval_shape(method.init, key)
    trained, frozen = split(method, params)
    optimizer = make_optimizer(training.optimizer, training.steps, method.trainable)
    state = jax.eval_shape(lambda p: create_state(p, method.trainable, optimizer), params)
    brains, samples, encoding = {n: networks.scans_spec(method, n) for n in (1, 2)}, {}, NOTHING
    loss = method.loss
    if training.pooled:
        loss = method.example_loss
        make = lambda params, batch, key: method.examples(params, batch, key, WHOLE)
        samples = {n: jax.eval_shape(make, params, batch, key) for n, batch in brains.items()}
        encoding = _line(lambda n: peak_bytes(make, params, brains[n], key))

    def scalar(trained: Any, frozen: Any, samples: Any, key: jax.Array) -> jax.Array:
        return loss({**frozen, **trained}, samples, key, WHOLE)[0]

    def arguments(n: int) -> tuple:
        return trained, frozen, (samples or brains)[n], key

    return Footprint(
        parameters=networks.count(params),
        trained=_size(trained),
        state=_size(state),
        kept=kept_bytes(scalar, *arguments(1)),
        samples=_line(lambda n: _size(brains[n]) + training.pool * _size(samples.get(n, ()))),
        step=_line(lambda n: peak_bytes(jax.value_and_grad(scalar), *arguments(n))),
        encoding=encoding,
    )


def _line(bytes_of: Callable[[int], int]) -> Line:
    one, two = bytes_of(1), bytes_of(2)
    return Line(2 * one - two, two - one)


def _size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def choose_accumulate(need: Footprint, batch: int, card: int) -> dict[str, float] | None:
    """The smallest `accumulate` with which a stage fits a card; None if it does not.

    Args:
        need: of the stage.
        batch: samples on the card.
        card: its memory, in units of 2^30 bytes.

    Returns:
        `card`; `accumulate`, which divides the batch; `part`: volumes at once;
        `gibibytes` needed and `usable`.
    """
    usable = USABLE * card
    for accumulate in (number for number in range(1, batch + 1) if batch % number == 0):
        needed = need.needed(batch, accumulate) / GIB
        if needed <= usable:
            return {
                'card': card,
                'accumulate': accumulate,
                'part': batch // accumulate,
                'gibibytes': needed,
                'usable': usable,
            }
    return None


def measure(
    config: Any, batch: int | None, cards: Sequence[int], topology: str | None, compiled: bool
) -> dict[str, Any]:
    """Print the memory of the stages of a configuration.

    Args:
        config: the configuration.
        batch: samples on the device; None: the batch of each stage, on one device.
        cards: memories to fit, in units of 2^30 bytes.
        topology: also compile the steps for this TPU topology, 'v5e:2x4'.
        compiled: also compile them for the CPU of this machine.

    Returns:
        For each stage its `parameters`, and in GiB `state`, and of one volume `kept`, `step` and
        `encoding`; `cards`: see `choose_accumulate`;
        `compiled`: see `_compile`.
    """
    grid = model_grid(config)
    stages = {stage.method.stage: stage for stage in build_stages(config, grid)}
    sides = 'x'.join(map(str, grid.shape))
    cli.tell(
        f'{config.method}, {sides} voxels, traced for GPUs; GiB a device; state: parameters, '
        'average, optimizer; kept: by the backward pass, the others: at most, all of one volume'
    )
    NEEDS.print_head('stage')
    table: dict[str, Any] = {}
    needs = {}
    for name, stage in stages.items():
        size = batch or stage.training.batch_size
        needs[name] = need = footprint(stage)
        table[name] = _in_gibibytes(need, size)
        NEEDS.print_row(name, table[name])
    cli.tell(
        f'fits, with {ALLOWANCE} times what is computed in {USABLE:.0%} of a card, which is what '
        'JAX takes (XLA_PYTHON_CLIENT_MEM_FRACTION):'
    )
    FITS.print_head('stage')
    for name in stages:
        table[name]['cards'] = _print_fits(name, needs[name], table[name]['batch'], cards)
    if topology or compiled:
        _print_compiled(stages, table, topology)
    return {'method': config.method, 'shape': list(grid.shape), 'stages': table}


def _in_gibibytes(need: Footprint, batch: int) -> dict[str, Any]:
    return {
        'parameters': need.parameters,
        'batch': batch,
        'state': need.state / GIB,
        'kept': need.kept / GIB,
        'step': need.step.at(1) / GIB,
        'encoding': need.encoding.at(1) / GIB,
    }


def _print_fits(name: str, need: Footprint, batch: int, cards: Sequence[int]) -> dict[str, Any]:
    fits = {}
    for card in cards:
        fits[str(card)] = row = choose_accumulate(need, batch, card)
        if row is None:
            cli.tell(f'{name:14s}{card:6d}  does not fit, not even one volume at a time')
        else:
            FITS.print_row(name, row)
    return fits


def _print_compiled(stages: dict[str, Stage], table: dict[str, Any], topology: str | None) -> None:
    """Compile the steps of all stages at one volume per device, and print what they need."""
    if topology:
        devices, backend = aot.topology_devices(topology), 'tpu'
        cli.tell(f'compiled for {topology}, one volume on each chip, GiB:')
    else:
        devices, backend = jax.devices('cpu')[:1], 'cpu'
        cli.tell(
            'compiled for this CPU, one volume, GiB; XLA computes bfloat16 as float32 on CPUs '
            'and fuses less, so a GPU needs far less:'
        )
    COMPILED.print_head('program')
    for name, stage in stages.items():
        table[name]['compiled'] = {}
        for program, row in _programs(stage).items():
            began = time.perf_counter()
            try:
                with target_backend(backend):
                    memory = networks.compile_row(row, devices).memory_analysis()
            except jax.errors.JaxRuntimeError as error:
                reason = str(error).strip().splitlines()[0][:150]
                cli.tell(f'{name} {program}: does not compile: {reason}')
                continue
            table[name]['compiled'][program] = numbers = {
                'arguments': memory.argument_size_in_bytes / GIB,
                'temporary': memory.temp_size_in_bytes / GIB,
                's': time.perf_counter() - began,
            }
            COMPILED.print_row(f'{name} {program}', numbers)


def _programs(stage: Stage) -> dict[str, networks.Row]:
    """The programs that training of a stage dispatches, for one volume per device."""
    training, method = dataclasses.replace(stage.training, accumulate=1), stage.method
    if training.pooled:
        rows = step_rows(dataclasses.replace(stage, training=training), training, 1)
        return {name: rows[name] for name in ('fill', 'pool_step')}
    params = jax.eval_shape(method.init, networks.key_spec())
    scans = networks.scans_spec(method, 1)
    row = networks.training_row(method.loss, method.trainable, params, scans, training)
    return {'step': row}
