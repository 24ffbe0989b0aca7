"""A trained run, or a model package, ready for use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fluidjax.base import cli
from fluidjax.base.errors import UserError
from fluidjax.base.settings import load_config, parse_config
from fluidjax.fluid.grid import Grid
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.package import is_package, open_package
from fluidjax.runs.stages import build_stages
from fluidjax.training import checkpoint
from fluidjax.training.loop import state_template

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, ready to reconstruct.

    Attributes:
        config: what it was trained with.
        grid: the model's grid.
        method: its last stage.
        params: its averaged parameters.
        step: the step of the checkpoint they come from.
    """

    config: ConfigDict
    grid: Grid
    method: Any
    params: Params
    step: int

    @property
    def name(self) -> str:
        """The method's, as tables show it; one that is told the answer is marked."""
        return f'{self.config.method}{" (mask given)" if self.method.needs_mask else ""}'


def load_run(workdir: Path, changes: Mapping[str, Any] | None = None) -> Run:
    """A run's last stage, newest checkpoint (or `config.detect.checkpoint`), or a package's.

    Args:
        workdir: a run's folder, or a package made of it (`fluidjax.export`).
        changes: fields to replace, `{'diffusion.process.sampler_steps': 5}`; of those that the
            parameters do not depend on.

    Raises:
        UserError: no such run, or no checkpoint of it; a package that cannot be used.
    """
    if is_package(workdir):
        return _load_package(workdir, changes or {})
    config = load_config(workdir / 'config.json')
    config.update_from_flattened_dict(changes or {})
    grid = model_grid(config)
    stage = build_stages(config, grid)[-1]
    method = stage.method
    folder = workdir / 'checkpoints' / method.stage
    step = _chosen_step(config, folder)
    if step is None:
        raise UserError(
            f'{workdir}: no checkpoint of the {method.stage} stage yet; train it with '
            'the command it was started with, which goes on from where it '
            'stopped'
        )
    if step < stage.training.steps and checkpoint.latest_step(folder) == step:
        cli.tell(f'{workdir}: not trained to its end (step {step} of {stage.training.steps})')
    template = state_template(method.init, method.trainable, stage.training)
    state = checkpoint.restore(folder, template, step)
    return Run(config, grid, method, jax.device_put(state.averaged()), step)


def _chosen_step(config: ConfigDict, folder: Path) -> int | None:
    """The checkpoint that `config.detect.checkpoint` names; None where there is none at all."""
    which = config.detect.get('checkpoint', 'last')
    if which not in ('last', 'best'):
        raise UserError(f"config.detect.checkpoint: '{which}' is neither last nor best")
    if which == 'last':
        return checkpoint.latest_step(folder)
    step = checkpoint.best_step(folder)
    if step is None and checkpoint.latest_step(folder) is not None:
        raise UserError(
            f'config.detect.checkpoint: {folder} holds no checkpoint with a validation '
            'loss; train with training.validate_every, or set it to last'
        )
    return step


def _load_package(path: Path, changes: Mapping[str, Any]) -> Run:
    from data_pipelines.nifti_source import PREPROCESSING_VERSION

    package = open_package(path)
    config = parse_config(package.texts['config.json'], f'{path}: config.json')
    config.update_from_flattened_dict(changes)
    try:
        grid = model_grid(config)
        method = build_stages(config, grid)[-1].method
    except (TypeError, ValueError) as error:  # a UserError too: it is the package's, not a field
        raise UserError(f'{path}: config.json: {error}') from error
    params = package.params(jax.eval_shape(method.init, jax.random.key(0)))
    prepared = package.manifest['preprocessing'].get('version')
    if prepared != PREPROCESSING_VERSION:
        cli.tell(
            f'{path}: was trained on scans preprocessed by version {prepared}, which is '
            f'{PREPROCESSING_VERSION} here: its maps may differ; install fluidjax '
            f'{package.manifest["fluidjax"]} for those it was scored with'
        )
    return Run(config, grid, method, jax.device_put(params), package.manifest['step'])
