"""What a run reports while it trains.

RunLog:   metrics.jsonl, TensorBoard, a progress bar, and Weights & Biases where it is asked for
Tally:    metrics and seconds of the steps since the last line of the log
Profile:  a trace of some dispatches
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX
from ml_collections import ConfigDict
from tqdm import tqdm

from fluidjax.base.errors import UserError
from fluidjax.base.files import write_text
from fluidjax.training import parallel

# Rounds that may be queued on the devices: enough to keep them busy, and few enough for the memory
# that their batches take.
AHEAD = 2
# Dispatches before a trace begins: the first ones compile, and would hide everything else.
SKIPPED = 2


class RunLog:
    """Writes one stage's metrics; use it as a context manager.

    Args:
        workdir: the run's folder.
        stage: name of the stage, the prefix of its curves.
        start_step: the step resumed from; later lines of an interrupted run are dropped.
        total_steps: number of steps, from which the progress bar estimates the time left.
        mirror: a run of Weights & Biases that gets the same metrics, or None.
    """

    def __init__(
        self, workdir: Path, stage: str, start_step: int, total_steps: int, mirror: Any = None
    ) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / 'metrics.jsonl'
        _drop_later_lines(path, stage, start_step)
        self._stage, self._mirror = stage, mirror
        self._lines = path.open('a', buffering=1)
        if threading.excepthook is threading.__excepthook__:  # not that of a debugger or a test
            threading.excepthook = _without_events
        self._events = tensorboardX.SummaryWriter(
            str(workdir / 'tensorboard' / stage), purge_step=start_step + 1
        )
        quiet = not sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc=stage,
            unit='step',
            dynamic_ncols=not quiet,
            mininterval=20.0 if quiet else 0.5,
            smoothing=0.05,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        writers = list((self._events.all_writers or {}).values())
        try:
            self._events.close()
        except OSError:  # reported by the other files; it would be tried again at exit
            for writer in writers:
                writer.event_writer.close = lambda: None
        self._lines.close()

    def advance(self, steps: int) -> None:
        """Move the progress bar on."""
        self._bar.update(steps)

    def write(
        self, step: int, metrics: Mapping[str, float], samples: Mapping[str, np.ndarray] = {}
    ) -> None:
        """Record the metrics of a step everywhere.

        Args:
            step: the step.
            metrics: numbers, by name.
            samples: numbers per sample, by name, drawn as histograms; empty arrays are left out.
        """
        record = {'step': step} | {name: float(value) for name, value in metrics.items()}
        self._lines.write(json.dumps({'stage': self._stage, **record}) + '\n')
        for name, value in metrics.items():
            self._events.add_scalar(f'{self._stage}/{name}', float(value), step)
        for name, values in samples.items():
            if len(values):
                self._events.add_histogram(f'{self._stage}/{name}', values, step)
        if self._mirror is not None:
            self._mirror.log({f'{self._stage}/{name}': value for name, value in record.items()})
        if 'loss' in metrics:
            self._bar.set_postfix_str(f'loss {metrics["loss"]:.4g}', refresh=False)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture `(height, width, 3)` of uint8 in TensorBoard."""
        self._events.add_image(f'{self._stage}/{name}', image, step, dataformats='HWC')


def _without_events(problem: Any) -> None:
    """Print an error of a thread, but not of the one that writes TensorBoard's file: a disk that it
    cannot write to is reported by the other files of the run.
    """
    if not type(problem.thread).__module__.startswith('tensorboardX'):
        threading.__excepthook__(problem)


class NoLog:
    """Replaces `RunLog` in the processes that do not write."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, steps: int) -> None:
        """Does nothing."""

    def write(self, *_: object) -> None:
        """Does nothing."""

    def picture(self, *_: object) -> None:
        """Does nothing."""


def _drop_later_lines(path: Path, stage: str, step: int) -> None:
    """Remove the lines of a stage after `step`, which a resumed run writes again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text('utf-8').splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed while writing it
            continue
        if record.get('stage') != stage or record.get('step', 0) <= step:
            kept.append(line)
    write_text(path, ''.join(line + '\n' for line in kept))


@contextlib.contextmanager
def mirrored(project: str, workdir: Path, config: ConfigDict, stages: list[str]) -> Iterator[Any]:
    """A run of Weights & Biases; None without a project, and in all processes but the first.

    Its id is derived from the run's folder, so that a resumed run continues the same curves.

    Raises:
        UserError: wandb is not installed, or cannot start a run.
    """
    if not project or not parallel.is_first():
        yield None
        return
    try:
        import wandb
    except ImportError as error:
        raise UserError('--wandb: the package is not installed; pip install wandb') from error
    folder = str(workdir.expanduser().resolve())
    try:
        run = wandb.init(
            project=project,
            name=workdir.name,
            dir=folder,
            resume='allow',
            config=config.to_dict(),
            id=hashlib.sha256(folder.encode()).hexdigest()[:16],
        )
    except Exception as error:  # no key, no network: wandb raises many types
        raise UserError(f'--wandb={project}: {" ".join(str(error).split())[:200]}') from error
    for stage in stages:
        run.define_metric(f'{stage}/*', step_metric=f'{stage}/step')
    try:
        yield run
    finally:
        run.finish()


class Tally:
    """Metrics and seconds of a stage's steps since the last line of the log.

    Args:
        stage: its name, for messages.
        start: the step to go on from.
        last_good: the newest checkpoint, for messages.
    """

    def __init__(self, stage: str, start: int, last_good: str) -> None:
        self.last_good = last_good
        self._stage, self._next = stage, start + 1
        self._history: list[dict[str, Any]] = []
        self._under_way: deque[Any] = deque()
        self._began, self._waited = time.perf_counter(), 0.0
        self._spans: list[tuple[int, float, float]] = []  # steps, seconds, seconds of waiting

    def next_of(self, feed: Iterator[Any]) -> Any:
        """The next batch.

        Time counts as waiting for data only where the devices had nothing else to do.
        """
        began = time.perf_counter()
        batch = next(feed)
        if not self._under_way or self._under_way[-1].is_ready():
            self._waited += time.perf_counter() - began
        return batch

    def add(self, metrics: list[dict[str, Any]]) -> None:
        """Take a round's metrics, which are on the devices; waits for the round before the last."""
        self._history += metrics
        self._under_way.append(metrics[-1]['loss'])
        if len(self._under_way) > AHEAD:
            jax.block_until_ready(self._under_way.popleft())

    def settle(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Mean metrics of the steps since the last call, and the values of those given per sample.

        A loss or a gradient that is not finite ends the run. The gradient counts too: after a
        finite loss the parameters can still become infinite, and a checkpoint of them would be the
        newest one.

        Raises:
            UserError: names the step and the last good checkpoint.
        """
        parts = [parallel.unreplicate(metrics) for metrics in self._history]
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        steps = len(values['loss'])
        for name in ('loss', 'grad_norm'):
            bad = np.flatnonzero(~np.isfinite(values[name]))
            if len(bad):
                self._give_up(name, values[name][bad[0]], self._next + int(bad[0]))
        seconds = time.perf_counter() - self._began
        self._spans.append((steps, seconds, self._waited))
        means = {name: float(np.mean(value)) for name, value in values.items()} | {
            'seconds_per_step': seconds / steps,
            'seconds_waiting_for_data': self._waited / steps,
        }
        samples = {name: value[value > 0] for name, value in values.items() if value.ndim > 1}
        self._next += steps
        self._history.clear()
        return means, samples

    def restart(self) -> None:
        """Restart the clock after a line of the log: what was written since is no step's time."""
        if not self._history:
            self._began, self._waited = time.perf_counter(), 0.0

    def summary(self) -> str:
        """A line on the speed of the stage, without the steps up to the first line of the log."""
        spans = self._spans[1:] or self._spans
        if not spans:
            return f'{self._stage}: no step was left'
        steps, seconds, waited = (sum(column) for column in zip(*spans, strict=True))
        return (
            f'{self._stage}: {seconds / steps:.3g} s per step, '
            f'{waited / seconds:.1%} of it waiting for data'
        )

    def _give_up(self, name: str, value: float, step: int) -> None:
        raise UserError(
            f"stage '{self._stage}': {name} is {value} at step {step}; the last good checkpoint is "
            f'{self.last_good}. Start again with a lower learning rate '
            f'(--config.{self._stage}.training.optimizer.learning_rate) in another --workdir'
        )


class Profile:
    """A trace of some dispatches of a stage, for TensorBoard or Perfetto; a context manager.

    Args:
        folder: where the trace is written.
        dispatches: how many are traced, after the first two; 0: none.
    """

    def __init__(self, folder: Path, dispatches: int) -> None:
        self._folder, self._dispatches = folder, dispatches
        self._seen, self._open = 0, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before_dispatch(self) -> None:
        """Start or stop the trace; call it before each dispatch."""
        if self._dispatches and self._seen == SKIPPED:
            jax.profiler.start_trace(str(self._folder))
            self._open = True
        if self._seen == SKIPPED + self._dispatches:
            self._stop()
        self._seen += 1

    def _stop(self) -> None:
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
