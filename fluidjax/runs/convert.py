"""Make a run from published PyTorch weights.

    fluidjax convert autoencoder.ckpt unet.ckpt --out=runs/published
    fluidjax convert autoencoder.safetensors --out=runs/published --config=configs/ldm.py:cohort=nifti

Takes checkpoints of the published code: .ckpt, .pt and .pth (with the extra 'torch'), .safetensors
or .npz. The autoencoder alone is a finished first stage, from which `train` goes on; with a U-Net
(LDM, cLDM or CondDiff, recognised by its weights) `eval` and `predict` use the run as published.
Weights without their autoencoder are kept as bare parameters in `weights/<network>`.

Sizes are read off the weights. What they do not say is taken from the configuration:
--config.autoencoder.network.norm_num_groups, --config.diffusion.network.norm_num_groups (both 32)
and --config.diffusion.network.num_head_channels (256), and the grid and the cohort.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from fluidjax.base import cli
from fluidjax.base.errors import UserError
from fluidjax.base.files import new_folder
from fluidjax.base.settings import differences, field_of, save_config
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.published_names import Params
from fluidjax.runs.published_weights import Network, Untold, read_networks
from fluidjax.runs.stages import CONDITIONS, Stage, build_stages
from fluidjax.training import checkpoint
from fluidjax.training.compiling import run_once
from fluidjax.training.optimizer import make_optimizer
from fluidjax.training.state import create_state

FLAGS = flags.FlagValues()
OUT = flags.DEFINE_string('out', None, 'Folder of the run to make.', FLAGS)
CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'Configuration file; configs/ldm.py by default. Any field as --config.FIELD=VALUE.',
    FLAGS,
)
PUBLISHED_LATENT_SCALE = 0.18215  # the published latents are multiplied by it, and not centred


def convert(checkpoints: Sequence[Path], out: Path, config: ConfigDict) -> str:
    """Make a run folder of published checkpoints.

    Args:
        checkpoints: files of the published code; see `published_weights`.
        out: the folder to make.
        config: what the weights do not tell: the grid, the cohort, the training, the groups of the
            group norms and the channels of attention heads. The networks' sizes are replaced.

    Returns:
        What to do next, one line.

    Raises:
        UserError: a file that does not fit, networks that do not fit each other or the grid, or a
            folder that exists. Nothing is written then.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f'{out}: is there already; choose another --out')
    networks = _read(checkpoints, config)
    made = config_of(networks, config)
    if 'autoencoder' not in networks:
        with new_folder(out) as folder:
            _write_bare(folder, networks, made)
        return (
            f'{out}/weights: parameters alone. A run needs the autoencoder beside them: give '
            'its checkpoint in the same command'
        )
    stages = _stages(networks, made)
    states = {'autoencoder': _autoencoder_stage(networks, stages[0], made)}
    if 'unet' in networks:
        states['diffusion'] = _diffusion_stage(networks, stages[1])

    with new_folder(out) as folder:
        for stage, (state, step) in states.items():
            checkpoint.save(folder / 'checkpoints' / stage, step, state)
        save_config(folder / 'config.json', made)
    if 'unet' in networks:
        return f'next: fluidjax eval --workdir={out}'
    changed = ' '.join(
        f"--config.{name}='{field_of(made, name)}'" for name in differences(config, made)
    )
    return f'next: fluidjax train --workdir={out} with the --config of this command' + (
        f' and {changed}' if changed else ''
    )


def _read(checkpoints: Sequence[Path], config: ConfigDict) -> dict[str, Network]:
    unet = config.diffusion.network
    untold = Untold(
        config.autoencoder.network.norm_num_groups, unet.norm_num_groups, unet.num_head_channels
    )
    networks: dict[str, Network] = {}
    for path in checkpoints:
        for kind, network in read_networks(path, untold).items():
            if kind in networks:
                raise UserError(f'{path}: a second {kind}; give one of each network')
            networks[kind] = network
            cli.tell(f'{path}: {_described(network)}')
    return networks


def _described(network: Network) -> str:
    """What was found, and what was not to be seen in it."""
    count = sum(int(leaf.size) for leaf in jax.tree.leaves(network.params))
    text = f'{network.kind}, {count:,} parameters'
    if network.kind == 'discriminator':
        return text
    c = network.model.config
    text += f', channels {c.channels}; taken to have norm_num_groups {c.norm_num_groups}'
    if network.kind == 'unet':
        text += f', num_head_channels {c.num_head_channels}; condition {c.condition}'
    return text


def config_of(networks: dict[str, Network], config: ConfigDict) -> ConfigDict:
    """The configuration with the networks that were found."""
    made = ConfigDict(config.to_dict())
    if 'autoencoder' in networks:
        c = networks['autoencoder'].model.config
        made.autoencoder.network.update(
            {
                'channels': c.channels,
                'num_res_blocks': c.num_res_blocks,
                'patch': 1,
                'latent_channels': c.latent_channels,
                'norm_num_groups': c.norm_num_groups,
                'linear_path': False,
            }
        )
    if 'discriminator' in networks:
        model = networks['discriminator'].model
        made.autoencoder.losses.update(
            {'discriminator_features': model.features, 'discriminator_layers': model.num_layers}
        )
    if 'unet' in networks:
        c = networks['unet'].model.config
        made.method = next(name for name, ways in CONDITIONS.items() if c.condition in ways)
        made.diffusion.network.update(
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
        made.diffusion.process.update(
            {
                'num_steps': 1000,
                'prediction': 'eps',
                'centre_latents': False,
                'learned_variance': c.out_channels == 2 * c.in_channels,
            }
        )
    return made


def _stages(networks: dict[str, Network], config: ConfigDict) -> tuple[Stage, ...]:
    """Both stages on the run's grid, on which the networks must fit each other."""
    grid = model_grid(config)
    stages = build_stages(config, grid)
    if 'unet' in networks:
        found, latent = networks['unet'].model.config, stages[0].method.latent_shape
        if found.in_channels != latent[-1]:
            raise UserError(
                f'the U-Net is made for latents of {found.in_channels} channels, the '
                f'autoencoder has {latent[-1]}; give the ones trained together'
            )
        if found.condition == 'vector' and found.condition_slices != latent[0]:
            raise UserError(
                f"the U-Net's condition encoder is made for {found.condition_slices} "
                f'slices of the latent, on the grid {grid.shape} there are '
                f'{latent[0]}; choose the grid it was trained on, '
                '--config=configs/ldm.py:paper for the published one'
            )
    return stages


def _autoencoder_stage(
    networks: dict[str, Network], stage: Stage, config: ConfigDict
) -> tuple[Any, int]:
    """Stage one at its last step; a discriminator that was not given is drawn."""
    method = stage.method
    params = {kind: networks[kind].params for kind in method.trainable if kind in networks}
    key = jax.random.key(config.seed)
    if set(jax.eval_shape(method.init, key)) - set(params):
        params = {**run_once(method.init, key), **params}
    return _finished(params, stage)


def _diffusion_stage(networks: dict[str, Network], stage: Stage) -> tuple[Any, int]:
    """Stage two at its last step, with the published scale of the latents."""
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
