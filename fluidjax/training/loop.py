"""The loop, to be read from top to bottom: restore, step, log, save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fluidjax.compiling import run_once
from fluidjax.errors import UserError
from fluidjax.training import checkpoint, parallel
from fluidjax.training.logs import RunLog
from fluidjax.training.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from fluidjax.training.state import Params, TrainState, create_state
from fluidjax.training.steps import LossFn, make_train_step

Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """How long and how one stage is trained.

    Attributes:
        steps: number of optimiser steps.
        batch_size: samples of one step, over all devices.
        optimizer: see `OptimizerSettings`.
        ema_decay: decay of the parameters' moving average.
        log_every: steps between two lines of metrics (each the mean of the steps between).
        checkpoint_every: steps between two checkpoints; there is always one at the end.
    """

    steps: int
    batch_size: int
    optimizer: OptimizerSettings
    ema_decay: float = 0.9999
    log_every: int = 50
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for field in ('steps', 'batch_size', 'log_every', 'checkpoint_every'):
            if getattr(self, field) < 1:
                raise UserError(f'training.{field} is {getattr(self, field)}: it must be 1 or more')


def is_done(directory: Path, settings: StageSettings) -> bool:
    """Whether a stage's folder of checkpoints holds its last step (or a later one)."""
    step = checkpoint.latest_step(directory)
    return step is not None and step >= settings.steps


def state_template(
    init: Callable[[jax.Array], Params], trainable: tuple[str, ...], settings: StageSettings
) -> TrainState:
    """Shapes and dtypes of a stage's state, computed without allocating anything."""
    optimizer = make_optimizer(settings.optimizer, settings.steps, trainable)
    return jax.eval_shape(
        lambda key: create_state(init(key), trainable, optimizer), jax.random.key(0)
    )


def _mean_of(history: list[dict[str, Any]], first_step: int, stage: str, last_good: str) -> dict:
    """Mean metrics of some steps; a loss or gradient that is not finite ends the run.

    The gradient counts too: a finite loss can leave parameters that are not, and a checkpoint of
    them would be the last good one.
    """
    host = [{name: float(np.ravel(value)[0]) for name, value in m.items()}
            for m in jax.device_get(history)]
    for offset, metrics in enumerate(host):
        for name in ('loss', 'grad_norm'):
            if not np.isfinite(metrics[name]):
                raise UserError(
                    f"stage '{stage}': {name} is {metrics[name]} at step {first_step + offset}; "
                    f'the last good checkpoint is {last_good}. Start again with a lower learning '
                    f'rate (--config.{stage}.training.optimizer.learning_rate) in another '
                    '--workdir')
    return {name: float(np.mean([m[name] for m in host])) for name in host[0]}


def train_stage(
    stage: str,
    loss_fn: LossFn,
    trainable: tuple[str, ...],
    init: Callable[[jax.Array], Params],
    prepare: Callable[[Params], Params],
    batches: Batches,
    settings: StageSettings,
    workdir: Path,
    seed: int,
) -> Params:
    """Train one stage to its end, from its newest checkpoint if there is one.

    Args:
        stage: its name; checkpoints go to `workdir/checkpoints/<stage>`.
        loss_fn: `(params, batch, key) -> (loss, metrics)`.
        trainable: parameter groups to train; the others are frozen.
        init: `key -> params`, all groups.
        prepare: replaces initial parameters by data-dependent ones; only called for a new run.
        batches: `start_step -> iterator` of numpy batches with a leading device axis.
        settings: length, batch and optimiser.
        workdir: the run's folder.
        seed: the run's seed.

    Returns:
        The averaged parameters, all groups, on the host.

    Raises:
        UserError: the loss is not finite: names the step and the last good checkpoint.
    """
    folder = workdir / 'checkpoints' / stage
    optimizer = make_optimizer(settings.optimizer, settings.steps, trainable)
    template = state_template(init, trainable, settings)
    start = checkpoint.latest_step(folder)
    key = jax.random.key(seed)
    if start is not None:
        state = checkpoint.restore(folder, template, start)
    else:
        state = create_state(prepare(run_once(init, key)), trainable, optimizer)
        start = 0
    if start >= settings.steps:
        return state.averaged()

    step_fn = parallel.data_parallel(
        make_train_step(loss_fn, optimizer, settings.ema_decay, parallel.AXIS_NAME))
    rate = learning_rate_schedule(settings.optimizer, settings.steps)
    state = parallel.replicate(state)
    last_good = str(folder / str(start)) if start else 'the start of the run (none was written yet)'
    history, began = [], time.perf_counter()
    feed = batches(start)
    with RunLog(workdir, stage, start, settings.steps) as log:
        for step in range(start + 1, settings.steps + 1):
            state, metrics = step_fn(state, next(feed), key)
            history.append(metrics)
            log.advance()
            last = step == settings.steps
            save = last or step % settings.checkpoint_every == 0
            if save or step % settings.log_every == 0:
                mean = _mean_of(history, step - len(history) + 1, stage, last_good)
                mean['seconds_per_step'] = (time.perf_counter() - began) / len(history)
                mean['learning_rate'] = rate(step - 1)
                log.write(step, mean)
                history = []
            if save:
                last_good = str(checkpoint.save(folder, step, parallel.unreplicate(state)))
            if not history:
                began = time.perf_counter()
    return parallel.unreplicate(state).averaged()
