"""Use published weights: `python -m fluidjax.convert AUTOENCODER [UNET] [DISCRIMINATOR] --out=RUN`.

Makes a run of PyTorch checkpoints of the published code (.ckpt, .pt, .pth with the extra 'torch',
.safetensors with the extra 'safetensors', or .npz). The autoencoder alone is a finished first
stage, from which `main` trains the second; with a U-Net (LDM, cLDM or CondDiff, which is seen from
its weights) `eval` and `predict` use it as published.

Sizes are read off the weights. What they do not tell is the configuration's:
--config.autoencoder.network.norm_num_groups, --config.diffusion.network.norm_num_groups (both 32)
and --config.diffusion.network.num_head_channels (256). So are the grid and the cohort: for your own
scans --config=configs/ldm.py:cohort=nifti --config.cohort.data_dir=DIR. See
`fluidjax.published_weights` and `fluidjax.published_run`.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

OUT = flags.DEFINE_string('out', None, 'Folder of the run to make.')
CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, configs/ldm.py where none is named; any field as '
    '--config.FIELD=VALUE.', lock_config=True)
DEFAULT_CONFIG = Path(__file__).parents[1] / 'configs' / 'ldm.py'


def main(checkpoints: list[str]) -> None:
    """Read the flags and convert."""
    from fluidjax import published_run

    if not checkpoints or not OUT.value:
        raise cli.UserError('convert needs checkpoints and --out=RUN, e.g. python -m '
                            'fluidjax.convert autoencoder.ckpt unet.ckpt --out=runs/published')
    paths = [Path(word).expanduser() for word in checkpoints]
    print(published_run.convert(paths, Path(OUT.value).expanduser(), CONFIG.value))


if __name__ == '__main__':
    sys.argv = cli.with_config(sys.argv, DEFAULT_CONFIG)
    cli.run(main, takes_arguments=True)
