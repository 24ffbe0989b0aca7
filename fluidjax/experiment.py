"""A run from its configuration: the cohort, the stages, and the folder they live in.

Here the top floor joins what the rooms below do not know of each other: cohorts (data_pipelines),
methods, and training. `main`, `eval`, `predict`, `bench` and `sweep` all come through here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fluidjax import cli, package_file, run_files
from fluidjax.config import (
    differences,
    load_config,
    parse_config,
    save_config,
    settings_from,
)
from fluidjax.detect.anomaly_map import MapSettings
from fluidjax.errors import UserError
from fluidjax.files import write_text
from fluidjax.fluid.grid import Grid
from fluidjax.stages import Stage, build_stages, fluid_settings
from fluidjax.training import checkpoint
from fluidjax.training.loop import is_done, state_template, train_stage

Params = dict[str, Any]
# Random numbers of a run: each purpose has a seed of its own, made from the run's.
PURPOSES = ('first stage', 'second stage', 'validation lesions', 'test lesions', 'sampling')
# Volumes that the data-dependent starts (principal components, latent mean) look at.
PREPARE_VOLUMES = 64


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


class Feed:
    """Batches of a stage from any step on, with lesion masks from the bank beside the images."""

    def __init__(self, cohort: Any, batch_size: int, seed: int) -> None:
        from data_pipelines import input_pipeline

        self._pipeline = input_pipeline
        self._cohort, self._seed = cohort, seed
        self._bank = input_pipeline.lesion_bank(cohort)
        if batch_size % jax.device_count():
            raise UserError(f'batch_size {batch_size} does not divide by {jax.device_count()} '
                            'devices; choose a multiple')
        self._local = batch_size // jax.process_count()

    def __call__(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        batches = self._pipeline.batches(
            self._cohort, 'train', self._local, self._seed, start_step, jax.local_device_count(),
            jax.process_index(), jax.process_count())
        for step, batch in enumerate(batches, start_step):
            yield batch if self._bank is None else {**batch, 'lesions': self._draw(step, batch)}

    def _draw(self, step: int, batch: dict[str, np.ndarray]) -> np.ndarray:
        """As many masks as images, `(device, batch, x, y, z)` uint8, from seed and step alone."""
        rng = np.random.default_rng((self._seed, step, jax.process_index()))
        return self._bank[rng.integers(len(self._bank), size=batch['image'].shape[:2])]


def derived_seed(seed: int, purpose: str) -> int:
    """The seed of one purpose of a run; runs with different seeds share none."""
    return len(PURPOSES) * seed + PURPOSES.index(purpose)


def train(config: ConfigDict, workdir: Path) -> None:
    """Train the stages of a configuration; skip what is done, resume what is not.

    Writes `config.json`, `cohort.json`, `checkpoints/<stage>`, `metrics.jsonl` and TensorBoard
    events. All settings are checked before anything is written or trained.

    Raises:
        UserError: a field that does not fit, data that cannot be read, a workdir that holds
            another run, or a loss that is not finite.
    """
    grid = model_grid(config)
    stages = build_stages(config, grid)
    _refuse_another_run(config, workdir, grid)
    cohort = open_cohort(config)
    settings_from(MapSettings, config.detect.map, 'detect.map')
    fluid = fluid_settings(config)
    for stage in stages:  # shapes that do not fit say so
        state_template(stage.method.init, stage.method.trainable, stage.training)
    seeds = [derived_seed(config.seed, purpose) for purpose in PURPOSES[:len(stages)]]
    feeds = [Feed(cohort, stage.training.batch_size, seed) for stage, seed in zip(stages, seeds)]
    check_cohort_of(workdir, cohort)
    save_config(workdir / 'config.json', config)
    write_text(workdir / 'cohort.json', json.dumps(_identity(cohort), indent=2) + '\n')
    cli.tell(f'{config.method} on {cohort.name}: '
             + ', '.join(f'{n} {split}' for split, n in cohort.sizes.items())
             + f'; {jax.device_count()} {jax.devices()[0].platform} device(s)')
    if jax.default_backend() == 'tpu' and fluid.scheme == 'flow_map':
        cli.tell('fluid.scheme flow_map reads memory by gathers, which TPUs do slowly: '
                 '--config.fluid.scheme=koren carries the same lesions by stencils')
    if is_done(workdir / 'checkpoints' / stages[-1].method.stage, stages[-1].training):
        cli.tell(f'{workdir}: all stages are done')
        return
    trained: Params = {}
    for stage, feed, seed in zip(stages, feeds, seeds):
        trained |= _train(stage, feed, seed, trained, cohort, workdir)


def _train(
    stage: Stage, feed: Feed, seed: int, trained: Params, cohort: Any, workdir: Path
) -> Params:
    """Train one stage, which starts from the parameter groups it shares with those before it."""
    method = stage.method

    def prepare(params: Params) -> Params:
        shared = {name: group for name, group in trained.items() if name in params}
        return method.prepare({**params, **shared}, some_volumes(cohort))

    return train_stage(method.stage, method.loss, method.trainable, method.init, prepare, feed,
                       stage.training, workdir, seed)


def some_volumes(cohort: Any) -> np.ndarray:
    """Up to 64 training scans `(n, x, y, z, 1)`."""
    from data_pipelines import input_pipeline

    subjects = itertools.islice(input_pipeline.subjects(cohort, 'train'), PREPARE_VOLUMES)
    return np.stack([subject.image for subject in subjects])[..., None]


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
    """The newest checkpoint of a run's last stage, or the weights of a model package.

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
    step = checkpoint.latest_step(folder)
    if step is None:
        raise UserError(f'{workdir}: no checkpoint of the {method.stage} stage yet; train it with '
                        'the command it was started with (python -m fluidjax.main), it goes on '
                        'from where it stopped')
    if step < stage.training.steps:
        cli.tell(f'{workdir}: not trained to its end (step {step} of {stage.training.steps})')
    template = state_template(method.init, method.trainable, stage.training)
    state = checkpoint.restore(folder, template, step)
    return Run(config, grid, method, jax.device_put(state.averaged()), step)


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
