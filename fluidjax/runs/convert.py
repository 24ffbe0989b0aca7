"""Make a run from published PyTorch weights.

    fluidjax convert autoencoder.ckpt unet.ckpt --out=runs/published
    fluidjax convert autoencoder.npz --out=runs/published --config=configs/ldm.py:cohort=nifti

Takes checkpoints of the published code: .ckpt, .pt and .pth (with the extra 'torch'), .safetensors
or .npz. An autoencoder is a finished first stage, from which `train` goes on. With a U-Net (LDM,
cLDM or CondDiff, recognised by its weights) `eval` and `predict` use the run as published. Weights
without their autoencoder are stored as bare parameters in `weights/<network>`.

The sizes of the networks are derived from the weights. The rest is taken from the configuration:
--config.autoencoder.network.norm_num_groups, --config.diffusion.network.norm_num_groups (both 32)
and --config.diffusion.network.num_head_channels (256), the grid and the cohort.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fluidjax.base import cli
from fluidjax.base.disk import check_output
from fluidjax.base.errors import UserError
from fluidjax.base.partial import new_folder
from fluidjax.base.settings import differences, field_of, save_config
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.published_names import Params
from fluidjax.runs.published_weights import Assumed, Network, read_networks
from fluidjax.runs.stages import CONDITIONS, Stage, build_stages
from fluidjax.training import checkpoint
from fluidjax.training.settings import make_optimizer
from fluidjax.training.state import create_state, run_once

FLAGS = cli.Flags()
OUT = FLAGS.add_text('out', None, 'Folder of the new run.')
CONFIG = FLAGS.add_config(
    'Configuration file; configs/ldm.py by default. Any field as --config.FIELD=VALUE.'
)
PUBLISHED_LATENT_SCALE = 0.18215  # factor of the published latents, which are not centred


def convert(checkpoints: Sequence[Path], out: Path, config: ConfigDict) -> str:
    """Make a run folder of published checkpoints.

    Args:
        checkpoints: files of the published code; see `published_weights`.
        out: the folder to create.
        config: settings that the weights do not contain: the grid, the cohort, the training, the
            groups of the group norms and the channels of attention heads. The sizes of the networks
            are replaced.

    Returns:
        One line that says what to do next.

    Raises:
        UserError: a file that does not fit, networks that do not fit each other or the grid, or a
            folder that exists. Nothing is written then.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f'{out}: is there already; choose another --out')
    check_output(out, '--out')
    networks = _read(checkpoints, config)
    run_config = config_of(networks, config)
    if 'autoencoder' not in networks:
        with new_folder(out) as folder:
            _write_bare(folder, networks, run_config)
        return (
            f'{out}/weights: parameters only. A run needs the autoencoder too: give its checkpoint '
            'in the same command'
        )
    stages = _stages(networks, run_config)
    states = {'autoencoder': _autoencoder_stage(networks, stages[0], run_config)}
    if 'unet' in networks:
        states['diffusion'] = _diffusion_stage(networks, stages[1])

    with new_folder(out) as folder:
        for stage, (state, step) in states.items():
            checkpoint.save(folder / 'checkpoints' / stage, step, state)
        save_config(folder / 'config.json', run_config)
    if 'unet' in networks:
        return f'next: fluidjax eval --workdir={out}'
    changed = ' '.join(
        f"--config.{name}='{field_of(run_config, name)}'"
        for name in differences(config, run_config)
    )
    return f'next: fluidjax train --workdir={out} with the --config of this command' + (
        f' and {changed}' if changed else ''
    )


def _read(checkpoints: Sequence[Path], config: ConfigDict) -> dict[str, Network]:
    unet = config.diffusion.network
    assumed = Assumed(
        config.autoencoder.network.norm_num_groups, unet.norm_num_groups, unet.num_head_channels
    )
    networks: dict[str, Network] = {}
    for path in checkpoints:
        for kind, network in read_networks(path, assumed).items():
            if kind in networks:
                raise UserError(f'{path}: a second {kind}; give one of each network')
            networks[kind] = network
            cli.tell(f'{path}: {_described(network)}')
    return networks


def _described(network: Network) -> str:
    """A line on a network, and the settings that were taken from the configuration."""
    count = sum(int(leaf.size) for leaf in jax.tree.leaves(network.params))
    text = f'{network.kind}, {count:,} parameters'
    if network.kind == 'discriminator':
        return text
    c = network.model.config
    text += f', channels {c.channels}; assumed norm_num_groups {c.norm_num_groups}'
    if network.kind == 'unet':
        text += f', num_head_channels {c.num_head_channels}; condition {c.condition}'
    return text


def config_of(networks: dict[str, Network], config: ConfigDict) -> ConfigDict:
    """The configuration with the sizes of the networks, and their stages as finished.

    A finished stage has its number of steps, whatever its epochs would become with other scans.
    """
    config = ConfigDict(config.to_dict())
    if 'autoencoder' in networks:
        c = networks['autoencoder'].model.config
        config.autoencoder.network.update(
            {
                'channels': c.channels,
                'num_res_blocks': c.num_res_blocks,
                'patch': 1,
                'latent_channels': c.latent_channels,
                'norm_num_groups': c.norm_num_groups,
                'linear_path': False,
            }
        )
        config.autoencoder.training.epochs = 0
    if 'discriminator' in networks:
        model = networks['discriminator'].model
        config.autoencoder.losses.update(
            {'discriminator_features': model.features, 'discriminator_layers': model.num_layers}
        )
    if 'unet' in networks:
        c = networks['unet'].model.config
        config.method = next(name for name, ways in CONDITIONS.items() if c.condition in ways)
        config.diffusion.network.update(
            {
                'channels': c.channels,
                'num_res_blocks': c.num_res_blocks,
                'attention_levels': c.attention_levels,
                'num_head_channels': c.num_head_channels,
                'norm_num_groups': c.norm_num_groups,
                'condition': c.condition,
                'position_bias': False,
            }
        )
        config.diffusion.training.epochs = 0
        config.diffusion.process.update(
            {
                'num_steps': 1000,
                'prediction': 'eps',
                'centre_latents': False,
                'learned_variance': c.out_channels == 2 * c.in_channels,
            }
        )
    return config


def _stages(networks: dict[str, Network], config: ConfigDict) -> tuple[Stage, ...]:
    """The stages on the run's grid, where the networks must fit each other."""
    grid = model_grid(config)
    stages = build_stages(config, grid)
    if 'unet' in networks:
        unet, latent = networks['unet'].model.config, stages[0].method.latent_shape
        if unet.in_channels != latent[-1]:
            raise UserError(
                f'the U-Net is for latents of {unet.in_channels} channels, the autoencoder has '
                f'{latent[-1]}; give two that were trained together'
            )
        if unet.condition == 'vector' and unet.condition_slices != latent[0]:
            raise UserError(
                f"the U-Net's condition encoder is for {unet.condition_slices} latent slices, "
                f'on the grid {grid.shape} there are {latent[0]}; choose the grid that it was '
                'trained on, --config=configs/ldm.py:paper for the published one'
            )
    return stages


def _autoencoder_stage(
    networks: dict[str, Network], stage: Stage, config: ConfigDict
) -> tuple[Any, int]:
    """The finished first stage; a discriminator that is missing is initialised at random."""
    method = stage.method
    params = {kind: networks[kind].params for kind in method.trainable if kind in networks}
    key = jax.random.key(config.seed)
    if set(jax.eval_shape(method.init, key)) - set(params):
        params = {**run_once(method.init, key), **params}
    return _finished(params, stage)


def _diffusion_stage(networks: dict[str, Network], stage: Stage) -> tuple[Any, int]:
    """The finished second stage, with the published scale of the latents."""
    latent = jax.eval_shape(stage.method.init, jax.random.key(0))['latent']
    params = {
        'unet': networks['unet'].params,
        'autoencoder': networks['autoencoder'].params,
        'latent': {
            'mean': np.zeros(latent['mean'].shape, np.float32),
            'scale': np.full(latent['scale'].shape, PUBLISHED_LATENT_SCALE, np.float32),
        },
    }
    return _finished(params, stage)


def _finished(params: Params, stage: Stage) -> tuple[Any, int]:
    """The state after the last step, and that step."""
    trainable, settings = stage.method.trainable, stage.training
    optimizer = make_optimizer(settings.optimizer, settings.steps, trainable)
    state = create_state(jax.tree.map(jnp.asarray, params), trainable, optimizer)
    return state.replace(step=jnp.int32(settings.steps)), settings.steps


def _write_bare(folder: Path, networks: dict[str, Network], config: ConfigDict) -> None:
    for kind, network in networks.items():
        checkpoint.save(folder / 'weights' / kind, 0, network.params)
    save_config(folder / 'weights' / 'config.json', config)


def main(checkpoints: list[str]) -> None:
    """Read the flags and convert."""
    if not checkpoints or not OUT.value:
        raise UserError(
            'convert needs checkpoints and --out=RUN, e.g. fluidjax convert '
            'autoencoder.ckpt unet.ckpt --out=runs/published'
        )
    paths = [Path(word).expanduser() for word in checkpoints]
    print(convert(paths, Path(OUT.value).expanduser(), CONFIG.value))


def command() -> None:
    """`fluidjax convert`."""
    cli.run(main, FLAGS, takes_arguments=True, default_config='configs/ldm.py')
