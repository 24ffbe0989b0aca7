"""Weights & Biases beside TensorBoard, where it is installed and asked for."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fluidjax.base.errors import UserError
from fluidjax.training import parallel


@contextlib.contextmanager
def mirrored(project: str, workdir: Path, config: ConfigDict, stages: list[str]) -> Iterator[Any]:
    """A run of a project, or None: for no project, and in other processes than the first.

    A resumed run goes on in the same curves: its name there is made from its folder.

    Raises:
        UserError: wandb is not installed, or refuses.
    """
    if not project or not parallel.is_first():
        yield None
        return
    try:
        import wandb
    except ImportError as error:
        raise UserError('--wandb: the package is not installed; pip install wandb') from error
    place = str(workdir.expanduser().resolve())
    try:
        run = wandb.init(
            project=project,
            name=workdir.name,
            dir=place,
            resume='allow',
            config=config.to_dict(),
            id=hashlib.sha256(place.encode()).hexdigest()[:16],
        )
    except Exception as error:  # no key, no network: wandb has many ways to say so
        raise UserError(f'--wandb={project}: {" ".join(str(error).split())[:200]}') from error
    for stage in stages:
        run.define_metric(f'{stage}/*', step_metric=f'{stage}/step')
    try:
        yield run
    finally:
        run.finish()
