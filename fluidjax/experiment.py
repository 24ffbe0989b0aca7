"""A run from its configuration: the cohort, the two stages, and the folder they live in.

Here the top floor joins what the rooms below do not know of each other: cohorts (data_pipelines),
methods, and training. `main`, `eval`, `predict`, `bench` and `sweep` all come through here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fluidjax import cli
from fluidjax.augment import AugmentSettings
from fluidjax.config import differences, load_config, save_config, settings_from
from fluidjax.errors import UserError
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.settings import FluidSettings
from fluidjax.methods.autoencoder import AutoencoderLoss, AutoencoderMethod
from fluidjax.methods.latent_diffusion import DiffusionProcess, LatentDiffusion
from fluidjax.models.autoencoder import AutoencoderConfig
from fluidjax.models.unet import UNetConfig
from fluidjax.training import checkpoint
from fluidjax.training.loop import StageSettings, is_done, state_template, train_stage

Params = dict[str, Any]
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
    home = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    store = Path(chosen.store or os.environ.get('FLUIDJAX_STORE', home / 'fluidjax' / 'cohorts'))
    if chosen.name == 'template':
        return input_pipeline.template_cohort(config.size, store)
    if not chosen.data_dir:
        raise UserError('config.cohort.data_dir is empty: name the folder of your healthy scans, '
                        '--config.cohort.data_dir=DIR')
    return input_pipeline.nifti_cohort(
        GRIDS[config.size], store, chosen.data_dir, test_dir=chosen.test_dir,
        lesion_dir=chosen.lesion_dir, registration=chosen.registration, seed=config.seed)


def grid_of(cohort: Any) -> Grid:
    """The model's grid of a cohort."""
    return Grid(tuple(cohort.grid.shape), tuple(cohort.grid.spacing))


class _Feed:
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


def train(config: ConfigDict, workdir: Path) -> None:
    """Train both stages of a configuration; skip what is done, resume what is not.

    Writes `config.json`, `checkpoints/<stage>`, `metrics.jsonl` and TensorBoard events.

    Raises:
        UserError: a field that does not fit, data that cannot be read, a workdir that holds
            another run, or a loss that is not finite.
    """
    _claim(config, workdir)
    cohort = open_cohort(config)
    stages = build_stages(config, grid_of(cohort))
    cli.tell(f'{config.method} on {cohort.name}: '
             + ', '.join(f'{n} {split}' for split, n in cohort.sizes.items())
             + f'; {jax.device_count()} {jax.devices()[0].platform} device(s)')
    if is_done(workdir / 'checkpoints' / 'diffusion', stages.diffusion_training):
        cli.tell(f'{workdir}: both stages are done')
        return
    trained = _train_autoencoder(config, stages, cohort, workdir)
    volumes = _some_volumes(cohort)

    def prepare(params: Params) -> Params:
        return stages.diffusion.prepare({**params, 'autoencoder': trained['autoencoder']}, volumes)

    train_stage('diffusion', stages.diffusion.loss, stages.diffusion.trainable,
                stages.diffusion.init, prepare,
                _Feed(cohort, stages.diffusion_training.batch_size, config.seed + 1),
                stages.diffusion_training, workdir, config.seed + 1)


def _train_autoencoder(
    config: ConfigDict, stages: Stages, cohort: Any, workdir: Path
) -> Params:
    method, settings = stages.autoencoder, stages.autoencoder_training
    return train_stage(
        'autoencoder', method.loss, method.trainable, method.init,
        lambda params: method.prepare(params, _some_volumes(cohort)),
        _Feed(cohort, settings.batch_size, config.seed), settings, workdir, config.seed)


def _some_volumes(cohort: Any) -> np.ndarray:
    """Up to 64 training scans `(n, x, y, z, 1)`."""
    from data_pipelines import input_pipeline

    return input_pipeline.load_images(cohort, 'train')[0][:PREPARE_VOLUMES]


def _claim(config: ConfigDict, workdir: Path) -> None:
    """Make the workdir this configuration's, or see that it already is."""
    path = workdir / 'config.json'
    if path.is_file():
        changed = differences(load_config(path), ConfigDict(config.to_dict()))
        if changed:
            raise UserError(f'{workdir} holds a run with another configuration (it differs in '
                            f'{", ".join(changed[:4])}); choose another --workdir')
        return
    save_config(path, config)


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


def load_run(workdir: Path, grid: Grid | None = None) -> Run:
    """The newest checkpoint of a run's diffusion stage.

    Raises:
        UserError: no such run, or no checkpoint of it.
    """
    from data_pipelines.grids import GRIDS

    config = load_config(workdir / 'config.json')
    grid = grid or Grid(GRIDS[config.size].shape, GRIDS[config.size].spacing)
    stages = build_stages(config, grid)
    folder = workdir / 'checkpoints' / 'diffusion'
    step = checkpoint.latest_step(folder)
    if step is None:
        raise UserError(f'{workdir}: no checkpoint of the diffusion stage; train it first, or let '
                        f'its training go on: python -m fluidjax.main --workdir={workdir} '
                        f'--config=configs/ldm.py:{config.size}')
    method = stages.diffusion
    template = state_template(method.init, method.trainable, stages.diffusion_training)
    state = checkpoint.restore(folder, template, step)
    return Run(config, grid, method, jax.device_put(state.averaged()), step)
