"""A run from its configuration: the cohort, the two stages, and the folder they live in.

Here the top floor joins what the rooms below do not know of each other: cohorts (data_pipelines),
methods, and training. `main`, `eval`, `predict`, `bench` and `sweep` all come through here.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fluidjax import cli
from fluidjax.augment import AugmentSettings
from fluidjax.config import differences, load_config, save_config, settings_from
from fluidjax.detect.anomaly_map import MapSettings
from fluidjax.errors import UserError
from fluidjax.files import write_text
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.settings import FluidSettings
from fluidjax.methods.autoencoder import AutoencoderLoss, AutoencoderMethod
from fluidjax.methods.latent_diffusion import DiffusionProcess, LatentDiffusion
from fluidjax.models.autoencoder import AutoencoderConfig
from fluidjax.models.unet import UNetConfig
from fluidjax.training import checkpoint
from fluidjax.training.loop import StageSettings, is_done, state_template, train_stage

Params = dict[str, Any]
# The ways each method of the paper is told of the scan.
METHODS = {'conddiff': ('vector', 'spatial'), 'cldm': ('concat',), 'ldm': ('none',)}
# Random numbers of a run: each purpose has a seed of its own, made from the run's.
PURPOSES = ('autoencoder', 'diffusion', 'validation lesions', 'test lesions', 'sampling')
# Volumes that the data-dependent starts (principal components, latent mean) look at.
PREPARE_VOLUMES = 64


@dataclasses.dataclass(frozen=True)
class Stages:
    """Both stages of a run and how long each is trained."""

    autoencoder: AutoencoderMethod
    autoencoder_training: StageSettings
    diffusion: LatentDiffusion
    diffusion_training: StageSettings


def build_stages(config: ConfigDict, grid: Grid) -> Stages:
    """The methods of a configuration on a grid.

    Raises:
        UserError: naming the field that does not fit.
    """
    try:
        return _build_stages(config, grid)
    except (AttributeError, KeyError) as error:  # a config.json edited by hand
        raise UserError(f'the configuration lacks a field: {error}; train again') from error


def _build_stages(config: ConfigDict, grid: Grid) -> Stages:
    if METHODS.get(config.method) is None:
        raise UserError(f"config.method: '{config.method}' is not one of {', '.join(METHODS)}")
    if config.diffusion.network.condition not in METHODS[config.method]:
        raise UserError(f'config.diffusion.network.condition: {config.method} is conditioned by '
                        f'{" or ".join(METHODS[config.method])}; choose the method after the '
                        f"config file's colon, ldm.py:method={config.method}")
    augment = settings_from(AugmentSettings, config.augment, 'augment')
    auto = config.autoencoder
    autoencoder = AutoencoderMethod(
        grid=grid,
        network=settings_from(AutoencoderConfig, auto.network, 'autoencoder.network'),
        losses=settings_from(AutoencoderLoss, auto.losses, 'autoencoder.losses'),
        augment=augment,
    )
    process = settings_from(DiffusionProcess, config.diffusion.process, 'diffusion.process')
    network = dict(config.diffusion.network)
    channels = autoencoder.network.latent_channels
    position = autoencoder.latent_shape[:3] if network.pop('position_bias') else None
    network |= {
        'in_channels': channels,
        'out_channels': channels * (2 if process.learned_variance else 1),
        'position_shape': position if network['condition'] == 'spatial' else None,
        'condition_slices': autoencoder.latent_shape[0],
    }
    diffusion = LatentDiffusion(
        autoencoder=autoencoder,
        network=settings_from(UNetConfig, network, 'diffusion.network'),
        process=process,
        fluid=settings_from(FluidSettings, config.fluid, 'fluid'),
        augment=augment,
    )
    return Stages(
        autoencoder,
        settings_from(StageSettings, auto.training, 'autoencoder.training'),
        diffusion,
        settings_from(StageSettings, config.diffusion.training, 'diffusion.training'),
    )


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
    if chosen.name == 'template':
        return input_pipeline.template_cohort(config.size, store)
    folders = (str(Path(folder).expanduser()) if folder else ''
               for folder in (chosen.data_dir, chosen.test_dir, chosen.lesion_dir))
    return input_pipeline.nifti_cohort(
        GRIDS[config.size], store, *folders, registration=chosen.registration, seed=config.seed)


def _check_cohort(config: ConfigDict) -> None:
    from data_pipelines.grids import GRIDS

    chosen, folders = config.cohort, ('data_dir', 'test_dir', 'lesion_dir')
    if config.size not in GRIDS:
        raise UserError(f"config.size: '{config.size}' is not one of {', '.join(GRIDS)}")
    if config.seed < 0:
        raise UserError(f'config.seed: {config.seed} must be 0 or more')
    if chosen.name not in ('template', 'nifti'):
        raise UserError(f"config.cohort.name: '{chosen.name}' is neither template nor nifti")
    given = [name for name in folders if chosen[name]]
    if chosen.name == 'template' and given:
        raise UserError(f'config.cohort.{given[0]} is set, but the cohort is the embedded one; for '
                        f'your own scans use --config=configs/ldm.py:{config.size},cohort=nifti')
    if chosen.name == 'nifti' and not chosen.data_dir:
        raise UserError('config.cohort.data_dir is empty: name the folder of your healthy scans, '
                        '--config.cohort.data_dir=DIR')


def grid_of(cohort: Any) -> Grid:
    """The model's grid of a cohort."""
    return Grid(tuple(cohort.grid.shape), tuple(cohort.grid.spacing))


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
    """Train both stages of a configuration; skip what is done, resume what is not.

    Writes `config.json`, `cohort.json`, `checkpoints/<stage>`, `metrics.jsonl` and TensorBoard
    events. All settings are checked before anything is written or trained.

    Raises:
        UserError: a field that does not fit, data that cannot be read, a workdir that holds
            another run, or a loss that is not finite.
    """
    _refuse_another_run(config, workdir)
    cohort = open_cohort(config)
    stages = build_stages(config, grid_of(cohort))
    settings_from(MapSettings, config.detect.map, 'detect.map')
    for method, settings in ((stages.autoencoder, stages.autoencoder_training),
                             (stages.diffusion, stages.diffusion_training)):
        state_template(method.init, method.trainable, settings)  # shapes that do not fit say so
    feeds = {stage: Feed(cohort, settings.batch_size, derived_seed(config.seed, stage))
             for stage, settings in (('autoencoder', stages.autoencoder_training),
                                     ('diffusion', stages.diffusion_training))}
    check_cohort_of(workdir, cohort)
    save_config(workdir / 'config.json', config)
    write_text(workdir / 'cohort.json', json.dumps(_identity(cohort), indent=2) + '\n')
    cli.tell(f'{config.method} on {cohort.name}: '
             + ', '.join(f'{n} {split}' for split, n in cohort.sizes.items())
             + f'; {jax.device_count()} {jax.devices()[0].platform} device(s)')
    if jax.default_backend() == 'tpu' and stages.diffusion.fluid.scheme == 'flow_map':
        cli.tell('fluid.scheme flow_map reads memory by gathers, which TPUs do slowly: '
                 '--config.fluid.scheme=koren carries the same lesions by stencils')
    if is_done(workdir / 'checkpoints' / 'diffusion', stages.diffusion_training):
        cli.tell(f'{workdir}: both stages are done')
        return
    trained = _train(stages.autoencoder, stages.autoencoder_training, feeds['autoencoder'],
                     lambda params: stages.autoencoder.prepare(params, some_volumes(cohort)),
                     config, workdir)
    _train(stages.diffusion, stages.diffusion_training, feeds['diffusion'],
           lambda params: stages.diffusion.prepare(
               {**params, 'autoencoder': trained['autoencoder']}, some_volumes(cohort)),
           config, workdir)


def _train(
    method: Any, settings: StageSettings, feed: Feed, prepare: Callable[[Params], Params],
    config: ConfigDict, workdir: Path,
) -> Params:
    return train_stage(method.stage, method.loss, method.trainable, method.init, prepare, feed,
                       settings, workdir, derived_seed(config.seed, method.stage))


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
    path = workdir / 'cohort.json'
    if path.is_file() and json.loads(path.read_text()) != _identity(cohort):
        raise UserError(f'{path}: the scans are not those this run was trained on (files added, '
                        'changed or removed); restore them, or train in another --workdir')


def _refuse_another_run(config: ConfigDict, workdir: Path) -> None:
    """A workdir with checkpoints belongs to its configuration; only `detect` may change."""
    path = workdir / 'config.json'
    if not path.is_file() or not (workdir / 'checkpoints').is_dir():
        return
    changed = [name for name in differences(load_config(path), ConfigDict(config.to_dict()))
               if not name.startswith('detect.')]
    if changed:
        raise UserError(f'{workdir} holds a run with another configuration (it differs in '
                        f'{", ".join(changed[:4])}); choose another --workdir')


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, ready to reconstruct.

    Attributes:
        config: what it was trained with.
        grid: the model's grid.
        method: the diffusion stage.
        params: its averaged parameters.
        step: the step of the checkpoint they come from.
    """

    config: ConfigDict
    grid: Grid
    method: LatentDiffusion
    params: Params
    step: int


def load_run(workdir: Path) -> Run:
    """The newest checkpoint of a run's diffusion stage.

    Raises:
        UserError: no such run, or no checkpoint of it.
    """
    from data_pipelines.grids import GRIDS

    config = load_config(workdir / 'config.json')
    if config.get('size') not in GRIDS:
        raise UserError(f'{workdir}/config.json: no usable field size; train again')
    grid = Grid(GRIDS[config.size].shape, GRIDS[config.size].spacing)
    stages = build_stages(config, grid)
    folder = workdir / 'checkpoints' / 'diffusion'
    step = checkpoint.latest_step(folder)
    if step is None:
        raise UserError(f'{workdir}: no checkpoint of the diffusion stage yet; train it with the '
                        'command it was started with (python -m fluidjax.main), it goes on from '
                        'where it stopped')
    if step < stages.diffusion_training.steps:
        cli.tell(f'{workdir}: not trained to its end (step {step} of '
                 f'{stages.diffusion_training.steps})')
    method = stages.diffusion
    template = state_template(method.init, method.trainable, stages.diffusion_training)
    state = checkpoint.restore(folder, template, step)
    return Run(config, grid, method, jax.device_put(state.averaged()), step)
