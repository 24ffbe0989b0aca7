"""Shared by regression, severity and inpainting: a U-Net on images, trained on the same pairs."""

from ml_collections import ConfigDict

from configs import common, sizes
from fluidjax.base.settings import parse_argument


def restoration(method: str, argument: str) -> ConfigDict:
    """The configuration of a method that restores images, for a size and a cohort."""
    chosen = parse_argument(argument, common.CHOICES)
    config = common.common(method, chosen)
    config.restoration = section(method, config.size)
    if method in ('regression', 'severity'):
        config.head = common.head(config.size)
    sizes.adapt(config)
    if 'head' in config:
        config.head.training.steps = 0  # no head, as published
    return config


def section(method: str, size: str) -> ConfigDict:
    """The section of a method that restores images: network, losses and training."""
    made = ConfigDict(
        {
            'network': {
                'channels': (32, 64, 128, 256),
                'num_res_blocks': 1,
                'norm_num_groups': 8,
                'patch': 1,
                'dtype': 'bfloat16',
                'remat': True,
            },
            'losses': {'gradient': 0.5},
            'training': common.training(100_000, 8, common.optimizer(1e-4, clip_norm=1.0)),
        }
    )
    if method != 'inpainting':  # which is trained only where there is a lesion
        made.losses.lesion_weight = 0.0 if size == 'paper' else 12.0
        # Whether the network predicts a correction of the scan instead of the healthy image.
        made.identity = False
    if method == 'severity':
        made.process = ConfigDict({'steps': 2 if size == 'smoke' else 5})
    if size != 'paper':
        # A step costs about as much as one of the latent methods.
        made.network.update(
            {'channels': (16, 32, 64), 'patch': 2, 'dtype': 'float32', 'remat': False}
        )
        made.training = common.demo_training(1300, 1e-3)
    if size == 'smoke':
        made.network.channels = (8, 16)
        made.training.update(common.SMOKE_TRAINING)
    return made
