"""A random search over the appearance of the lesions in training.

    fluidjax sweep --config=configs/sweeps/lesions.py:demo --workdir=runs/lesions

Twelve trials, each as long as a demo.
"""

from ml_collections import ConfigDict

from fluidjax.base.trials import Between, OneOf, random_search, sweep


def get_config(argument: str = 'demo') -> ConfigDict:
    """Twelve trials at a size."""
    return sweep(
        f'configs/ldm.py:{argument},method=fluidjax',
        random_search(
            {
                'fluid.mass_effect': Between(0.0, 0.5),
                'fluid.texture_mm': Between(0.0, 6.0),
                'bridge.process.lesion_weight': Between(3.0, 30.0, log=True),
                'fluid.seed_percentiles': OneOf(((96.0, 99.9), (90.0, 99.6))),
            },
            count=12,
        ),
    )
