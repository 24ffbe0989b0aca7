"""A search with Optuna, which chooses each trial by the earlier ones (pip install optuna).

    fluidjax sweep --config=configs/sweeps/search.py:demo --workdir=runs/search

Twenty trials, each as long as a demo.
"""

from ml_collections import ConfigDict

from fluidjax.base.trials import Between, OneOf, sweep


def get_config(argument: str = 'demo') -> ConfigDict:
    """Twenty trials at a size."""
    stage = 'bridge.training'
    return sweep(
        f'configs/ldm.py:{argument},method=fluidjax',
        search={
            f'{stage}.optimizer.learning_rate': Between(3e-4, 6e-3, log=True),
            'bridge.process.lesion_weight': Between(3.0, 30.0, log=True),
            f'{stage}.ema_decay': OneOf((0.95, 0.99, 0.995)),
        },
        count=20,
    )
