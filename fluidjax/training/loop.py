"""Training one stage: restore, then step, log and save until the end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from fluidjax.base.errors import Stopped
from fluidjax.training import checkpoint, parallel
from fluidjax.training.logs import NoLog, Profile, RunLog, Tally
from fluidjax.training.rounds import Rounds
from fluidjax.training.settings import StageSettings, learning_rate_schedule, make_optimizer
from fluidjax.training.state import Params, TrainState, create_state, run_once
from fluidjax.training.stopping import StopRequest
from fluidjax.training.validation import Validation

Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Watch:
    """What a run reports beside its losses; everything is optional.

    Attributes:
        validation: returns the batches of one pass over the validation scans, always the same.
        picture: `averaged params -> (height, width, 3)` uint8.
        mirror: a run of Weights & Biases.
        profile: number of dispatches of each stage to trace, into `workdir/profile`.
        tell: prints a line to the terminal.
        saved: called after each checkpoint was written.
    """

    validation: Callable[[], Iterator[dict[str, np.ndarray]]] | None = None
    picture: Callable[[Params], np.ndarray] | None = None
    mirror: Any = None
    profile: int = 0
    tell: Callable[[str], None] = lambda line: None
    saved: Callable[[], None] = lambda: None


def is_done(directory: Path, settings: StageSettings) -> bool:
    """Whether the checkpoints in a folder include a stage's last step (or a later one).

    A stage that ended early (`StageSettings.patience`) has its last step there.
    """
    step = checkpoint.latest_step(directory)
    if step is None or step >= settings.steps:
        return step is not None
    return settings.patience > 0 and ended_early(directory, settings)


def ended_early(directory: Path, settings: StageSettings) -> bool:
    """Whether a stage ended before its last step, because its validation loss did not improve."""
    step = checkpoint.latest_step(directory)
    if step is None or step >= settings.steps:
        return False
    return checkpoint.losses_of(directory).until(step).has_ended(settings.patience)


def state_template(
    init: Callable[[jax.Array], Params], trainable: tuple[str, ...], settings: StageSettings
) -> TrainState:
    """The shapes and dtypes of a stage's state; nothing is allocated."""
    optimizer = make_optimizer(settings.optimizer, settings.steps, trainable)
    return jax.eval_shape(
        lambda key: create_state(init(key), trainable, optimizer), jax.random.key(0)
    )


def newest(
    directory: Path, template: TrainState, tell: Callable[[str], None]
) -> tuple[int, TrainState | None]:
    """Step and state of the newest checkpoint that can be read; 0 and None if there is none.

    Newer ones are set aside (`checkpoint.restore_newest`), which `tell` is told.

    Raises:
        UserError: there are checkpoints, but none of them can be read.
    """
    step, state, damaged = checkpoint.restore_newest(directory, template)
    for path in damaged:
        tell(
            f'{path}: this checkpoint was damaged, so it was renamed and training goes on from '
            f'step {step}'
        )
    return step, state


def train_stage(
    method: Any,
    prepare: Callable[[Params], Params],
    batches: Batches,
    settings: StageSettings,
    workdir: Path,
    seed: int,
    layout: parallel.Layout,
    stop: StopRequest,
    watch: Watch = Watch(),
) -> Params:
    """Train one stage to its end, from its newest checkpoint if there is one.

    Args:
        method: see `fluidjax.methods`; its checkpoints go to `workdir/checkpoints/<stage>`.
        prepare: turns initial parameters into data-dependent ones; only called for a new run.
        batches: takes the number of a batch and returns an iterator of numpy batches from that one
            on, `(device, sample, ...)` of the devices of this process.
        settings: length, batch and optimiser.
        workdir: the run's folder; that of the first process is used.
        seed: the run's seed.
        layout: the devices.
        stop: asked after every dispatch.
        watch: what is reported.

    Returns:
        The averaged parameters, all groups, on the host.

    Raises:
        UserError: the loss is not finite (names the step and the last good checkpoint), or a
            checkpoint cannot be written or read.
        Stopped: `stop` asked to; the state is saved.
    """
    folder = workdir / 'checkpoints' / method.stage
    optimizer = make_optimizer(settings.optimizer, settings.steps, method.trainable)
    rate = learning_rate_schedule(settings.optimizer, settings.steps)
    key = jax.random.key(seed)
    start, state, done = _start(method, optimizer, prepare, settings, folder, key, watch)
    state = parallel.replicate(state, layout)
    if done:
        return parallel.unreplicate(state).averaged()

    rounds = Rounds(method, optimizer, settings, layout, key)
    feed = batches(rounds.first_batch(start))
    rounds.resume(state, start, feed)
    tally = Tally(
        method.stage,
        start,
        str(folder / str(start)) if start else 'the start of the run (none was written yet)',
    )
    with contextlib.ExitStack() as opened:
        opened.enter_context(stop.deferred())
        with parallel.together():
            writer, log, profile = (
                opened.enter_context(each)
                for each in _records(workdir, method.stage, start, settings, watch)
            )
        validation = Validation(
            method, settings, layout, key, watch.validation, writer, log, watch.tell
        )
        step, status, ended = start, None, validation.catch_up(start, state)
        tally.restart()
        while not (status or ended) and step < settings.steps:
            batch = tally.next_of(feed)
            profile.before_dispatch()
            state, metrics = rounds(state, batch, step)
            step += settings.reuse
            tally.add(metrics)
            log.advance(settings.reuse)
            status = stop.after_dispatch()
            validated, last = validation.is_due(step), step == settings.steps
            save = status or last or validated or step % settings.checkpoint_every == 0
            if save or step % settings.log_every == 0:
                means, samples = tally.settle()
                with parallel.together():
                    log.write(step, means | {'learning_rate': float(rate(step - 1))}, samples)
            if save:  # before the validation, which needs more memory and may fail
                with parallel.together():
                    tally.last_good = str(writer.save(step, parallel.unreplicate(state)))
            if validated:
                ended = validation.measure(step, state)
            if watch.picture is not None and _due(step, settings.picture_every):
                picture = watch.picture(parallel.unreplicate(state).averaged())
                log.picture(step, 'validation', picture)
            if writer.newly_written():
                watch.saved()
            tally.restart()
        with parallel.together():
            writer.wait()
    watch.saved()
    watch.tell(tally.summary())
    status = status or stop.status
    if status:
        raise Stopped(
            f'stopped after step {step} of the {method.stage} stage, which is saved; the '
            'same command goes on from there',
            status,
        )
    return parallel.unreplicate(state).averaged()


def _start(
    method: Any,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[Params], Params],
    settings: StageSettings,
    folder: Path,
    key: jax.Array,
    watch: Watch,
) -> tuple[int, TrainState, bool]:
    """The step and the state to go on from, on the host, and whether the stage is done.

    Only the first process reads checkpoints. The others return zeros, which it replaces later.
    """
    template = state_template(method.init, method.trainable, settings)
    start, state, done = 0, None, False
    with parallel.together():
        if parallel.is_first():
            start, state = newest(folder, template, watch.tell)
            done = is_done(folder, settings)
    start, done = parallel.from_first(start), bool(parallel.from_first(int(done)))
    if start and state is None:
        state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
    elif state is None:
        state = create_state(prepare(run_once(method.init, key)), method.trainable, optimizer)
    return start, state, done


def _records(
    workdir: Path, stage: str, start: int, settings: StageSettings, watch: Watch
) -> tuple[Any, Any, Profile]:
    """Checkpoints, log and trace of a stage; only the first process writes them."""
    if not parallel.is_first():
        return checkpoint.NoWriter(), NoLog(), Profile(workdir, 0)
    folder = workdir / 'checkpoints' / stage
    return (
        checkpoint.Writer(folder, checkpoint.losses_of(folder).until(start)),
        RunLog(workdir, stage, start, settings.steps, watch.mirror),
        Profile(workdir / 'profile', watch.profile),
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
