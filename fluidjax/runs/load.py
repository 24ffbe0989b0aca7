"""Trained runs and model packages, loaded for use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from fluidjax.base import cli
from fluidjax.base.errors import UserError
from fluidjax.base.settings import check, load_config, parse_config
from fluidjax.fluid.grid import Grid
from fluidjax.runs.cohort import model_grid, trained_contrasts
from fluidjax.runs.package import Package, check_not_unpacked, is_package, open_package
from fluidjax.runs.stages import Stage, build_stages
from fluidjax.training import checkpoint
from fluidjax.training.loop import is_done, state_template

Params = dict[str, Any]
Model = TypeVar('Model')


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, ready to reconstruct.

    Attributes:
        config: the configuration that it was trained with.
        grid: the model's grid.
        method: its last stage.
        params: its averaged parameters.
        step: the step of their checkpoint.
        path: the run's folder, or its model package.
        package: the opened package, if `path` is one.
    """

    config: ConfigDict
    grid: Grid
    method: Any
    params: Params
    step: int
    path: Path = Path()
    package: Package | None = None

    @property
    def name(self) -> str:
        """The name of the method in tables, marked if it is given the lesion's mask."""
        return f'{self.config.method}{" (mask given)" if self.method.needs_mask else ""}'

    def text(self, name: str) -> str | None:
        """A text file of the run, such as 'calibration.json'; None if there is none.

        A package was read when it was opened; a file in a folder is read now.
        """
        if self.package is not None:
            return self.package.texts.get(name)
        file = self.path / name
        return file.read_text('utf-8') if file.is_file() else None


def load_run(workdir: Path, changes: Mapping[str, Any] | None = None) -> Run:
    """Load the last stage of a run, or a model package.

    Args:
        workdir: a run's folder, of which the newest checkpoint is taken (or the one that
            `config.detect.checkpoint` names), or a package (`fluidjax export`).
        changes: fields of the configuration to replace, `{'diffusion.process.sampler_steps': 5}`;
            not those that the parameters depend on.

    Raises:
        UserError: there is no such run, it has no checkpoint, or the package cannot be used.
    """
    if is_package(workdir):
        return _load_package(workdir, changes or {})
    run, stage = _without_params(workdir, changes or {})
    method, folder = run.method, workdir / 'checkpoints' / run.method.stage
    if checkpoint.latest_step(folder) == run.step and not is_done(folder, stage.training):
        cli.tell(f'{workdir}: not trained to its end (step {run.step} of {stage.training.steps})')
    template = state_template(method.init, method.trainable, stage.training)
    state = checkpoint.restore(folder, template, run.step)
    return dataclasses.replace(run, params=jax.device_put(state.averaged()))


def described(workdir: Path) -> Run:
    """The run of a folder without its parameters, which take long to read.

    Raises:
        UserError: as for `load_run`, except for a damaged checkpoint.
    """
    return _without_params(workdir, {})[0]


def _without_params(workdir: Path, changes: Mapping[str, Any]) -> tuple[Run, Stage]:
    """A run without its parameters, and its last stage."""
    check_not_unpacked(workdir)
    config = load_config(workdir / 'config.json')
    config.update_from_flattened_dict(changes)
    grid = model_grid(config)
    stage = build_stages(config, grid)[-1]
    step = _chosen_step(config, workdir / 'checkpoints' / stage.method.stage)
    if step is None:
        raise UserError(
            f'{workdir}: has no checkpoint of the {stage.method.stage} stage yet; go on with its '
            'training: fluidjax train with the same --config and --workdir'
        )
    return Run(config, grid, stage.method, {}, step, workdir), stage


def _chosen_step(config: ConfigDict, folder: Path) -> int | None:
    """The checkpoint that `config.detect.checkpoint` names; None if there are no checkpoints."""
    which = config.detect.get('checkpoint', 'last')  # older runs do not have the field
    check(which in ('last', 'best'), 'detect.checkpoint', which, 'is neither last nor best')
    if which == 'last':
        return checkpoint.latest_step(folder)
    step = checkpoint.best_step(folder)
    if step is None and checkpoint.latest_step(folder) is not None:
        raise UserError(
            f'config.detect.checkpoint: {folder} has no checkpoint with a validation loss; '
            'train with training.validate_every, or set it to last'
        )
    return step


def models_of(run: Run) -> dict[str, Run]:
    """The run for each contrast that a run or package is for: itself, or the one in its package.

    Those that are trained on scans without any order of the tissues are also for 'other'.

    Raises:
        UserError: the package in the package cannot be used.
    """
    models = dict.fromkeys(_known_to(run.config), run)
    if run.package is None or run.package.other is None:
        return models
    other = _load_package(run.path, {}, run.package.other)
    others = [name for name in _known_to(other.config) if name not in models]
    return models | dict.fromkeys(others, other)


def _known_to(config: ConfigDict) -> tuple[str, ...]:
    synthesised = config.synthesis.contrasts if 'synthesis' in config else ()
    return trained_contrasts(config) + (('other',) if 'random' in synthesised else ())


def model_for(contrast: str, models: Mapping[str, Model]) -> Model:
    """The model for a scan of a contrast; for one without a model the first.

    T1w scans after contrast agent are taken for T1w, so a model for them is one for T1w where there
    is no other.
    """
    if contrast == 't1w' and 't1w' not in models:
        contrast = 't1ce'
    return models.get(contrast) or next(iter(models.values()))


def _load_package(path: Path, changes: Mapping[str, Any], content: bytes | None = None) -> Run:
    from data_pipelines.nifti_source import PREPROCESSING_VERSION

    package = open_package(path, content)
    config = parse_config(package.texts['config.json'], f'{path}: config.json')
    config.update_from_flattened_dict(changes)
    try:
        grid = model_grid(config)
        method = build_stages(config, grid)[-1].method
    except (TypeError, ValueError) as error:  # and UserError: the package is wrong, not a flag
        raise UserError(f'{path}: config.json: {error}') from error
    params = package.params(jax.eval_shape(method.init, jax.random.key(0)))
    prepared = package.manifest['preprocessing'].get('version')
    if prepared != PREPROCESSING_VERSION:
        cli.tell(
            f'{path}: was trained on scans preprocessed by version {prepared}; this is version '
            f'{PREPROCESSING_VERSION}, so its maps may differ: install fluidjax '
            f'{package.manifest["fluidjax"]} for the maps that it was scored on'
        )
    step = package.manifest['step']
    return Run(config, grid, method, jax.device_put(params), step, path, package)
