"""A run from its configuration: the cohort, the stages, and the folder they live in.

Here the top floor joins what the rooms below do not know of each other: cohorts (data_pipelines),
methods, and training. `main`, `eval`, `predict`, `bench` and `sweep` all come through here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fluidjax import cli, package_file, run_files, run_lock
from fluidjax.config import (
    differences,
    load_config,
    parse_config,
    save_config,
    settings_from,
)
from fluidjax.detect.anomaly_map import MapSettings
from fluidjax.errors import UserError
from fluidjax.feed import Feed, some_volumes
from fluidjax.files import write_text
from fluidjax.fluid.grid import Grid
from fluidjax.progress_picture import painter
from fluidjax.stages import Stage, build_stages, fluid_settings
from fluidjax.training import checkpoint, parallel
from fluidjax.training.loop import Watch, is_done, state_template, train_stage
from fluidjax.training.stopping import StopRequest
from fluidjax.wandb_mirror import mirrored

Params = dict[str, Any]
# Random numbers of a run: each purpose has a seed of its own, made from the run's.
PURPOSES = ('first stage', 'second stage', 'validation lesions', 'test lesions', 'sampling')


def open_cohort(config: ConfigDict) -> Any:
    """The cohort of a configuration, built when it is not there yet (`data_pipelines`).

    Cohorts are kept in `config.cohort.store`, else in $FLUIDJAX_STORE, else in
    ~/.cache/fluidjax/cohorts, and shared by all runs.
    """
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need
    from data_pipelines.grids import GRIDS

    chosen = config.cohort
    _check_cohort(config)
    home = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    store = Path(chosen.store or os.environ.get('FLUIDJAX_STORE', home / 'fluidjax' / 'cohorts'))
    folders = [str(Path(folder).expanduser()) if folder else ''
               for folder in (chosen.data_dir, chosen.test_dir, chosen.lesion_dir)]
    if chosen.name == 'template':
        return input_pipeline.template_cohort(config.size, store, folders[-1])
    return input_pipeline.nifti_cohort(
        GRIDS[config.size], store, *folders, registration=chosen.registration, seed=config.seed,
        embedded=chosen.get('embedded', 0))  # older runs know no such field


def _check_cohort(config: ConfigDict) -> None:
    chosen = config.cohort
    if config.seed < 0:
        raise UserError(f'config.seed: {config.seed} must be 0 or more')
    if chosen.name not in ('template', 'nifti'):
        raise UserError(f"config.cohort.name: '{chosen.name}' is neither template nor nifti")
    given = [name for name in ('data_dir', 'test_dir', 'embedded') if chosen.get(name)]
    if chosen.name == 'template' and given:
        raise UserError(f'config.cohort.{given[0]} is set, but the cohort is the embedded one; for '
                        f'your own scans use --config=configs/ldm.py:{config.size},cohort=nifti')
    if chosen.get('embedded', 0) < 0:
        raise UserError(f'config.cohort.embedded: {chosen.embedded} must be 0 or more')
    if chosen.name == 'nifti' and not chosen.data_dir:
        raise UserError('config.cohort.data_dir is empty: name the folder of your healthy scans, '
                        '--config.cohort.data_dir=DIR')


def model_grid(config: ConfigDict) -> Grid:
    """The grid of a configuration's size.

    Raises:
        UserError: there is no such size.
    """
    from data_pipelines.grids import GRIDS

    if config.get('size') not in GRIDS:
        raise UserError(f"config.size: '{config.get('size')}' is not one of {', '.join(GRIDS)}")
    grid = GRIDS[config.size]
    return Grid(tuple(grid.shape), tuple(grid.spacing))


def derived_seed(seed: int, purpose: str) -> int:
    """The seed of one purpose of a run; runs with different seeds share none."""
    return len(PURPOSES) * seed + PURPOSES.index(purpose)


def train(
    config: ConfigDict, workdir: Path, wandb_project: str = '', profile: int = 0,
    saved: Callable[[], None] = lambda: None,
) -> None:
    """Train the stages of a configuration; skip what is done, resume what is not.

    Writes `config.json`, `cohort.json`, `checkpoints/<stage>`, `metrics.jsonl` and TensorBoard
    events. All settings are checked before anything is written or trained. Of several processes the
    first one writes; the others need no access to its `workdir`.

    Args:
        config: the configuration.
        workdir: the run's folder.
        wandb_project: of Weights & Biases, which is told the metrics too; empty: none.
        profile: dispatches of each stage to trace; 0: none.
        saved: called after each checkpoint was written.

    Raises:
        UserError: a field that does not fit, data that cannot be read, a workdir that holds
            another run or is being trained in, or a loss that is not finite.
        Stopped: a signal asked for it; the run is saved.
    """
    with contextlib.ExitStack() as opened:
        stop = opened.enter_context(StopRequest())
        with parallel.together():
            run = _open_run(config, workdir)
            if parallel.is_first():
                opened.enter_context(run_lock.held(
                    workdir / '.lock', 'another command trains in this folder; wait for it or '
                    'choose another --workdir'))
                _write_what_it_is(config, run[-1], workdir)
            _tell_what_it_is(config, run)
            mirror = opened.enter_context(mirrored(
                wandb_project, workdir, config, [stage.method.stage for stage in run[0]]))
        watch = Watch(mirror=mirror, profile=profile, tell=_tell, saved=saved)
        _train_stages(*run, config, workdir, stop, watch)


def _tell(line: str) -> None:
    if parallel.is_first():
        cli.tell(line)


def _open_run(config: ConfigDict, workdir: Path) -> tuple[tuple[Stage, ...], list[Feed], Any]:
    """Stages, feeds and cohort of a configuration, all checked; nothing is written."""
    grid = model_grid(config)
    stages = build_stages(config, grid)
    if parallel.is_first():
        _refuse_another_run(config, workdir, grid)
    settings_from(MapSettings, config.detect.map, 'detect.map')
    for stage in stages:  # shapes that do not fit say so
        state_template(stage.method.init, stage.method.trainable, stage.training)
    layouts = [parallel.layout_of(stage.training.batch_size, stage.training.accumulate)
               for stage in stages]
    cohort = open_cohort(config)
    feeds = [Feed(cohort, layout, derived_seed(config.seed, purpose))
             for layout, purpose in zip(layouts, PURPOSES)]
    return stages, feeds, cohort


def _write_what_it_is(config: ConfigDict, cohort: Any, workdir: Path) -> None:
    check_cohort_of(workdir, cohort)
    save_config(workdir / 'config.json', config)
    write_text(workdir / 'cohort.json', json.dumps(_identity(cohort), indent=2) + '\n')


def _tell_what_it_is(config: ConfigDict, run: tuple) -> None:
    _, feeds, cohort = run
    _tell(f'{config.method} on {cohort.name}: '
          + ', '.join(f'{n} {split}' for split, n in cohort.sizes.items()) + '; '
          + _devices(feeds[-1].layout))
    if jax.default_backend() == 'tpu' and fluid_settings(config).scheme == 'flow_map':
        _tell('fluid.scheme flow_map reads memory by gathers, which TPUs do slowly: '
              '--config.fluid.scheme=koren carries the same lesions by stencils')


def _devices(layout: parallel.Layout) -> str:
    """What a run trains on, in words."""
    kind, there = jax.devices()[0].platform, jax.device_count()
    used = len(layout.devices) * layout.processes
    if there == 1:
        return f'1 {kind} device'
    words = f'{used} {kind} devices, {layout.per_device} of {layout.batch_size} samples on each'
    if layout.processes > 1:
        words += f', {layout.processes} processes'
    if used < there:
        words += (f' ({there - used} stay idle: a batch of {layout.batch_size} does not divide by '
                  f'{there})')
    return words


def _train_stages(
    stages: tuple[Stage, ...], feeds: list[Feed], cohort: Any, config: ConfigDict, workdir: Path,
    stop: StopRequest, watch: Watch,
) -> None:
    last = stages[-1]
    done = parallel.is_first() and is_done(
        workdir / 'checkpoints' / last.method.stage, last.training)
    if parallel.from_first(done):
        _tell(f'{workdir}: all stages are done')
        return
    trained: Params = {}
    for stage, feed, purpose in zip(stages, feeds, PURPOSES):
        method = stage.method

        def prepare(params: Params) -> Params:
            shared = {name: group for name, group in trained.items() if name in params}
            return method.prepare({**params, **shared}, some_volumes(cohort))

        shown = dataclasses.replace(
            watch, validation=feed.validation, picture=_picture(stage, config, cohort))
        trained |= train_stage(
            method, prepare, feed, stage.training, workdir, derived_seed(config.seed, purpose),
            feed.layout, stop, shown)


def _picture(stage: Stage, config: ConfigDict, cohort: Any) -> Any:
    """How a stage shows a validation scan now and then, if it is to, in the first process."""
    from data_pipelines import input_pipeline

    if not stage.training.picture_every or not parallel.is_first():
        return None
    scan = next(input_pipeline.subjects(cohort, 'validation'))
    return painter(stage.method, model_grid(config), fluid_settings(config), scan.image, scan.brain)


def _identity(cohort: Any) -> dict[str, Any]:
    """What tells one cohort from another: its folder's name holds a hash of the user's files."""
    return {'cohort': '/'.join(cohort.directory.parts[-3:]), 'sizes': cohort.sizes}


def check_cohort_of(workdir: Path, cohort: Any) -> None:
    """See that a run's cohort is still the one it was trained on.

    Raises:
        UserError: scans were added, changed or removed since: the split into training and
            validation would be another one.
    """
    text = run_files.read_text(workdir, 'cohort.json')
    if text is not None and json.loads(text) != _identity(cohort):
        raise UserError(f'{workdir / "cohort.json"}: the scans are not those this run was trained '
                        'on (files added, changed or removed); restore them, or train in another '
                        '--workdir')


def _refuse_another_run(config: ConfigDict, workdir: Path, grid: Grid) -> None:
    """A workdir with checkpoints belongs to its configuration; only `detect` may change.

    Fields that an older fluidjax did not know are taken at their defaults.
    """
    path = workdir / 'config.json'
    if not path.is_file() or not (workdir / 'checkpoints').is_dir():
        return
    old, new = load_config(path), ConfigDict(config.to_dict())
    changed = [name for name in differences(old, new) if not name.startswith('detect.')]
    outside = [name for name in changed if name.partition('.')[0] in ('seed', 'size', 'cohort')]
    if changed and (outside or not _same_stages(old, new, grid)):
        raise UserError(f'{workdir} holds a run with another configuration (it differs in '
                        f'{", ".join(changed[:4])}); choose another --workdir')


def _same_stages(old: ConfigDict, new: ConfigDict, grid: Grid) -> bool:
    """Whether two configurations come to the same methods, trained alike."""
    try:
        return build_stages(old, grid) == build_stages(new, grid)
    except UserError:
        return False


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
    if run_files.is_package(workdir):
        return _load_package(workdir, changes or {})
    config = load_config(workdir / 'config.json')
    config.update_from_flattened_dict(changes or {})
    grid = model_grid(config)
    stage = build_stages(config, grid)[-1]
    method = stage.method
    folder = workdir / 'checkpoints' / method.stage
    step = _chosen_step(config, folder)
    if step is None:
        raise UserError(f'{workdir}: no checkpoint of the {method.stage} stage yet; train it with '
                        'the command it was started with (python -m fluidjax.main), it goes on '
                        'from where it stopped')
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
        raise UserError(f'config.detect.checkpoint: {folder} holds no checkpoint with a validation '
                        'loss; train with training.validate_every, or set it to last')
    return step


def _load_package(path: Path, changes: Mapping[str, Any]) -> Run:
    from data_pipelines.nifti_source import PREPROCESSING_VERSION

    package = package_file.open_package(path)
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
        cli.tell(f'{path}: was trained on scans preprocessed by version {prepared}, which is '
                 f'{PREPROCESSING_VERSION} here: its maps may differ; install fluidjax '
                 f'{package.manifest["fluidjax"]} for those it was scored with')
    return Run(config, grid, method, jax.device_put(params), package.manifest['step'])
