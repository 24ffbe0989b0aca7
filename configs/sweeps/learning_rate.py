"""A grid of four learning rates of the diffusion U-Net and two seeds.

    fluidjax sweep --config=configs/sweeps/learning_rate.py:demo --workdir=runs/rates

The argument after the colon is that of configs/ldm.py. Eight trials, each as long as a demo.
"""

from ml_collections import ConfigDict

from fluidjax.base.trials import grid, sweep


def get_config(argument: str = 'demo') -> ConfigDict:
    """The sweep at a size."""
    return sweep(
        f'configs/ldm.py:{argument}',
        grid(
            {'diffusion.training.optimizer.learning_rate': (5e-4, 1e-3, 2e-3, 4e-3), 'seed': (0, 1)}
        ),
    )
