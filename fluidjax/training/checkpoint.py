"""Checkpoints with orbax: whole states, named by their step.

A checkpoint is written under another name and renamed when it is complete. Batches and random
numbers are functions of seed and step, so the step is also the position in the data. Validation
losses lie beside the checkpoints (`history`).
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from fluidjax.base.errors import DiskError, UserError
from fluidjax.training import history
from fluidjax.training.history import History

KEPT = 2
METRIC = 'validation_loss'
# In errors of orbax, which keep the text of the system's error but not its number.
_OF_DISK = 'No space left|Read-only file system|quota exceeded'
# What orbax and tensorstore raise for a checkpoint that is incomplete or of another tree.
UNREADABLE = (ValueError, KeyError, TypeError, OSError, AttributeError)


class _Best(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the lowest validation loss of those that are there."""

    def __init__(self, losses: Callable[[], History]) -> None:
        self._losses = losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether to keep each of the checkpoints."""
        best = self._losses().best([each.step for each in checkpoints])
        return [each.step == best for each in checkpoints]


def _options(losses: Callable[[], History] | None = None) -> ocp.CheckpointManagerOptions:
    """Options to write, and to keep the best by the losses then known; without them to read."""
    writes = losses is not None
    # The first process reads and writes; the others get the state from it.
    alone = (
        ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix='fluidjax',
        )
        if jax.process_count() > 1
        else None
    )
    kept = [checkpoint_managers.LatestN(KEPT), _Best(losses)] if losses else []
    return ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept) if kept else None,
        # Older runs have the losses in their checkpoints; without it they are not read.
        best_fn=None if writes else lambda metrics: -metrics[METRIC],
        enable_async_checkpointing=writes,
        cleanup_tmp_directories=writes,  # of a run that was killed while it wrote
        create=False,
        read_only=not writes,
        **({'multiprocessing_options': alone} if alone else {}),
    )


def _quieten() -> None:
    """Keep orbax from printing traces of errors that it also raises."""
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:  # not that of a debugger or a test
        sys.unraisablehook = _without_echoes


def _without_echoes(problem: Any) -> None:
    """Print an error of a thread, but not those of tensorstore after orbax has given up on a file:
    one for each array, on a full disk hundreds.
    """
    if str(problem.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(problem)


def _reason(error: Exception) -> str:
    """The reason of an error: the operating system's message where tensorstore quotes it."""
    text = ' '.join(str(error).split())
    quoted = re.search(r': ([^:]+) \[os_error_code', text)
    return quoted[1] if quoted else text[:200]


@contextlib.contextmanager
def _reader(directory: Path) -> Iterator[ocp.CheckpointManager]:
    _quieten()
    with ocp.CheckpointManager(directory.absolute(), options=_options()) as manager:
        yield manager


def all_steps(directory: Path) -> list[int]:
    """The steps of the checkpoints in a folder, the oldest first."""
    if not directory.is_dir():
        return []
    with _reader(directory) as manager:
        return sorted(manager.all_steps())


def latest_step(directory: Path) -> int | None:
    """The step of the newest complete checkpoint in a folder, or None."""
    return max(all_steps(directory), default=None)


def losses_of(directory: Path) -> History:
    """The validation losses of the stage whose checkpoints a folder has.

    Raises:
        UserError: their file is damaged.
    """
    known = history.read(directory)
    if not directory.is_dir():
        return known
    with _reader(directory) as manager:
        measured = {step: manager.metrics(step) or {} for step in manager.all_steps()}
    older = {step: each[METRIC] for step, each in measured.items() if METRIC in each}
    return History({**older, **known.losses}, known.since)


def best_step(directory: Path) -> int | None:
    """The step of the checkpoint with the lowest validation loss; None if none was measured."""
    return losses_of(directory).best(all_steps(directory))


def let_go_on(directory: Path, step: int) -> None:
    """Let a stage that ended early go on: only validations after a step count for `patience`."""
    history.write(directory, History(losses_of(directory).losses, since=step))


class Writer:
    """Writes the checkpoints of a stage in the background; use it as a context manager.

    It keeps the newest two, and the one with the lowest validation loss where it is measured.

    Args:
        directory: the stage's folder, created as needed.
        losses: the validation losses so far.

    Attributes:
        losses: the validation losses so far.
    """

    def __init__(self, directory: Path, losses: History = History()) -> None:
        self._directory, self._writing, self.losses = directory, False, losses
        _quieten()
        with self._in_one_line():
            directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                directory.absolute(), options=_options(lambda: self.losses)
            )

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        with self._in_one_line() if kind is None else contextlib.suppress(Exception):
            self.wait()
        with contextlib.suppress(Exception):
            self._manager.close()

    def save(self, step: int, state: Any) -> Path:
        """Begin to write the checkpoint of a step; it gets its name when it is complete.

        Args:
            step: the step.
            state: a tree of host arrays, which must not change afterwards.

        Returns:
            The folder that it will be.

        Raises:
            UserError: it, or the one before it, cannot be written.
        """
        with self._in_one_line():
            self._manager.save(step, args=ocp.args.StandardSave(state))
        self._writing = True
        return self._directory / str(step)

    def record(self, step: int, loss: float) -> None:
        """Write the validation loss of a step, whose checkpoint may still be on its way.

        Raises:
            UserError: it cannot be written.
        """
        self.losses = self.losses.with_loss(step, loss)
        with self._in_one_line():
            history.write(self._directory, self.losses)

    def newly_written(self) -> bool:
        """Whether the last checkpoint has been completed since the last call."""
        done = self._writing and not self._manager.is_saving_in_progress()
        self._writing = self._writing and not done
        return done

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            UserError: it cannot be written.
        """
        with self._in_one_line():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # errors of the file system come as many types
            reason = getattr(error, 'strerror', None) or _reason(error)
            raise (DiskError if re.search(_OF_DISK, reason) else UserError)(
                f'{self._directory}: cannot write the checkpoint ({reason}); free space or choose '
                'another --workdir, then start again to resume'
            ) from error


class NoWriter:
    """Replaces `Writer` in the processes that do not write."""

    losses = History()

    def __enter__(self) -> NoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def save(self, *_: object) -> str:
        """Does nothing; the first process writes."""
        return 'that of the first process'

    def record(self, *_: object) -> None:
        """Does nothing."""

    def newly_written(self) -> bool:
        """Always False."""
        return False

    def wait(self) -> None:
        """Does nothing."""


def save(directory: Path, step: int, state: Any) -> Path:
    """Write a state as the checkpoint of a step, and wait until it is complete; see `Writer`."""
    with Writer(directory) as writer:
        return writer.save(step, state)


def restore(directory: Path, template: Any, step: int | None = None) -> Any:
    """Read a state with the structure, shapes and dtypes of `template`.

    Args:
        directory: the folder that `save` wrote to.
        template: a tree of arrays or `jax.ShapeDtypeStruct`.
        step: which checkpoint; the newest by default.

    Raises:
        UserError: there is no checkpoint, or it is damaged or of another configuration.
    """
    step = latest_step(directory) if step is None else step
    if step is None:
        raise UserError(f'{directory}: no checkpoint here; train first (fluidjax train)')
    on_host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
    try:
        with _reader(directory) as manager:
            return manager.restore(step, args=ocp.args.StandardRestore(on_host))
    except UNREADABLE as error:
        raise UserError(
            f'{directory / str(step)}: this checkpoint is damaged or does not fit the '
            f'configuration ({_reason(error)}); use the configuration it was trained '
            'with, or another --workdir'
        ) from error


def restore_newest(directory: Path, template: Any) -> tuple[int, Any, list[Path]]:
    """The newest checkpoint that can be read.

    Newer ones that cannot be read are renamed to `damaged-STEP`: training writes them again.

    Returns:
        The step and the state, 0 and None if there is no checkpoint; and the renamed folders.

    Raises:
        UserError: there are checkpoints, but none of them can be read.
    """
    steps, problems = all_steps(directory)[::-1], []
    for step in steps:
        try:
            state = restore(directory, template, step)
        except UserError as error:
            problems.append((step, error))
            continue
        return step, state, [_set_aside(directory / str(bad)) for bad, _ in problems]
    if problems:
        raise problems[0][1]
    return 0, None, []


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f'damaged-{path.name}')
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f'damaged-{path.name}-{number}')
    return path.rename(aside)
