"""The loop, to be read from top to bottom: restore, step, log, save."""

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
from fluidjax.training.compiling import run_once
from fluidjax.training.logs import NoLog, RunLog
from fluidjax.training.optimizer import learning_rate_schedule, make_optimizer
from fluidjax.training.profiling import Profile
from fluidjax.training.rounds import Rounds
from fluidjax.training.settings import StageSettings
from fluidjax.training.state import Params, TrainState, create_state
from fluidjax.training.steps import make_validation
from fluidjax.training.stopping import StopRequest
from fluidjax.training.tally import Tally

Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]
VALIDATION_PURPOSE = 2**31 - 1  # a step that no run reaches, folded into the key


@dataclasses.dataclass(frozen=True)
class Watch:
    """What a run shows beside its losses; each may be left out.

    Attributes:
        validation: the batches of one pass over the validation scans, each time the same.
        picture: `averaged params -> (height, width, 3)` uint8.
        mirror: a run of Weights & Biases.
        profile: dispatches of each stage of which a trace is written to `workdir/profile`.
        tell: writes a line to the person at the terminal.
        saved: called after each checkpoint was written.
    """

    validation: Callable[[], Iterator[dict[str, np.ndarray]]] | None = None
    picture: Callable[[Params], np.ndarray] | None = None
    mirror: Any = None
    profile: int = 0
    tell: Callable[[str], None] = lambda line: None
    saved: Callable[[], None] = lambda: None


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
        method: offers `stage` (its name; checkpoints go to `workdir/checkpoints/<stage>`),
            `trainable` (the parameter groups to train), `init(key) -> params` and
            `loss(params, samples, key, share) -> (loss, metrics)`.
        prepare: replaces initial parameters by data-dependent ones; only called for a new run.
        batches: `number -> iterator` of numpy batches with a leading axis of this process's
            devices, from that batch on.
        settings: length, batch and optimiser.
        workdir: the run's folder; the first process's is used.
        seed: the run's seed.
        layout: the devices.
        stop: asked after every dispatch.
        watch: what is shown.

    Returns:
        The averaged parameters, all groups, on the host.

    Raises:
        UserError: the loss is not finite (names the step and the last good checkpoint), or a
            checkpoint cannot be written or read.
        Stopped: `stop` asked for it; the state is saved.
    """
    folder = workdir / 'checkpoints' / method.stage
    optimizer = make_optimizer(settings.optimizer, settings.steps, method.trainable)
    rate = learning_rate_schedule(settings.optimizer, settings.steps)
    key = jax.random.key(seed)
    start, state = _start(method, optimizer, prepare, settings, folder, key, watch)
    state = parallel.replicate(state, layout)
    if start >= settings.steps:
        return parallel.unreplicate(state).averaged()

    rounds = Rounds(method, optimizer, settings, layout, key)
    feed = batches(rounds.first_batch(start))
    rounds.resume(state, start, feed)
    validate = _validation(method, layout, key, watch) if settings.validate_every else None
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
        for step in range(start + settings.reuse, settings.steps + 1, settings.reuse):
            batch = tally.next_of(feed)
            profile.before_dispatch()
            state, metrics = rounds(state, batch, step - settings.reuse)
            tally.add(metrics)
            log.advance(settings.reuse)
            status = stop.after_dispatch()
            save = status or step == settings.steps or step % settings.checkpoint_every == 0
            if save or step % settings.log_every == 0:
                means, samples = tally.settle()
                with parallel.together():
                    log.write(step, means | {'learning_rate': float(rate(step - 1))}, samples)
            loss = None
            if validate is not None and _due(step, settings.validate_every):
                loss = validate(state)
                log.write(step, {checkpoint.METRIC: loss})
            if watch.picture is not None and _due(step, settings.picture_every):
                log.picture(
                    step, 'validation', watch.picture(parallel.unreplicate(state).averaged())
                )
            if save:
                with parallel.together():
                    tally.last_good = str(writer.save(step, parallel.unreplicate(state), loss))
            if writer.newly_written():
                watch.saved()
            if status:
                break
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
) -> tuple[int, TrainState]:
    """Step and state to go on from, on the host; in other processes than the first, a place."""
    template = state_template(method.init, method.trainable, settings)
    start, state = 0, None
    with parallel.together():
        if parallel.is_first():
            start, state, damaged = checkpoint.restore_newest(folder, template)
            for path in damaged:
                watch.tell(
                    f'{path}: this checkpoint is damaged, so it was set aside and training '
                    f'goes on from step {start}'
                )
    start = parallel.from_first(start)
    if start and state is None:
        state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
    elif state is None:
        state = create_state(prepare(run_once(method.init, key)), method.trainable, optimizer)
    return start, state


def _records(
    workdir: Path, stage: str, start: int, settings: StageSettings, watch: Watch
) -> tuple[Any, Any, Profile]:
    """What is written during a stage: by the first process alone."""
    if not parallel.is_first():
        return checkpoint.NoWriter(), NoLog(), Profile(workdir, 0)
    return (
        checkpoint.Writer(workdir / 'checkpoints' / stage),
        RunLog(workdir, stage, start, settings.steps, watch.mirror),
        Profile(workdir / 'profile', watch.profile),
    )


def _validation(
    method: Any, layout: parallel.Layout, key: jax.Array, watch: Watch
) -> Callable[[TrainState], float]:
    """The mean loss of averaged parameters on the validation scans, with the same draws always."""
    loss_of = parallel.data_parallel(
        make_validation(method.loss, parallel.AXIS_NAME), layout, (True, True, True, False)
    )
    first = parallel.to_devices(layout.first, layout)

    def validate(state: TrainState) -> float:
        losses = []
        for number, batch in enumerate(watch.validation()):
            placed = parallel.to_devices(batch, layout) | {'first': first}
            draw = jax.random.fold_in(jax.random.fold_in(key, VALIDATION_PURPOSE), number)
            losses.append(loss_of(state.ema, state.frozen, placed, draw))
        return float(np.mean([parallel.unreplicate(loss) for loss in losses]))

    return validate


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
