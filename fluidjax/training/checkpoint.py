"""Checkpoints with orbax: whole states, written beside and renamed, found again by their step."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fluidjax.errors import UserError

KEPT = 2


@contextlib.contextmanager
def _manager(directory: Path, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    logging.getLogger('absl').setLevel(logging.ERROR)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else KEPT,
        enable_async_checkpointing=False,
        create=not read_only,
        read_only=read_only,
    )
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        yield manager


def latest_step(directory: Path) -> int | None:
    """Step of the newest whole checkpoint in a folder, or None."""
    if not directory.is_dir():
        return None
    with _manager(directory, read_only=True) as manager:
        return manager.latest_step()


def save(directory: Path, step: int, state: Any) -> Path:
    """Write a state (a tree of host arrays) as the checkpoint of a step and drop older ones.

    A checkpoint appears under its name when it is whole, not before.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _manager(directory) as manager:
            manager.save(step, args=ocp.args.StandardSave(state))
    except OSError as error:
        raise UserError(f'{directory}: cannot write the checkpoint ({error.strerror}); free space '
                        'or choose another --workdir, then start again to resume') from error
    return directory / str(step)


def restore(directory: Path, template: Any, step: int | None = None) -> Any:
    """Read a state back into the structure, shapes and dtypes of `template`.

    Args:
        directory: the folder `save` wrote to.
        template: a tree of arrays or `jax.ShapeDtypeStruct`.
        step: which checkpoint; the newest by default.

    Raises:
        UserError: there is none, or it belongs to another configuration.
    """
    step = latest_step(directory) if step is None else step
    if step is None:
        raise UserError(f'{directory}: no checkpoint here; train first (python -m fluidjax.main)')
    on_host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
    try:
        with _manager(directory, read_only=True) as manager:
            return manager.restore(step, args=ocp.args.StandardRestore(on_host))
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{directory / str(step)}: this checkpoint does not fit the configuration '
                        f'({reason}); use the configuration it was trained with, or another '
                        '--workdir') from error
