"""A variational autoencoder of healthy scans, one of the paper's rivals.

    fluidjax train --config=configs/vae.py:demo --workdir=runs/vae
    fluidjax eval --workdir=runs/vae

The argument is that of configs/common.py. At the size of the demo it takes a few minutes on 2 CPU
cores; its scores are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs import common, sizes
from fluidjax.base.settings import parse_argument


def get_config(argument: str = '') -> ConfigDict:
    """The configuration of a size and a cohort."""
    chosen = parse_argument(argument, common.CHOICES)
    config = common.common('vae', chosen)
    config.vae = ConfigDict(
        {
            'network': {
                'channels': (16, 32, 64, 128, 256),
                'latent_size': 256,
                'norm_num_groups': 8,
                'dtype': 'bfloat16',
            },
            'losses': {'beta': 1.0, 'noise': 1.0},
            'training': common.training(100_000, 8, common.optimizer(1e-4, clip_norm=1.0)),
        }
    )
    if config.size == 'paper':
        return config
    config.vae.network.update({'channels': (16, 32, 64), 'dtype': 'float32'})
    config.vae.training = common.demo_training(1300, 1e-3)
    if config.size == 'smoke':
        config.vae.network.update({'channels': (8, 8), 'latent_size': 16})
        config.vae.training.update(common.SMOKE_TRAINING)
    sizes.adapt(config)
    return config
