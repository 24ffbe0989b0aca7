"""Settings of simulated lesions in scans of your own.

    fluidjax randomize SCAN.nii.gz --out=pairs --config.strength='(0.3,1.0)'

The fields are those of `fluidjax.fluid.FluidSettings`, whose docstring explains them, with their
defaults, except that every pair has a lesion. Any can be overridden.
"""

import dataclasses

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The settings of a fluid randomization."""
    from fluidjax.fluid.settings import FluidSettings

    settings = dataclasses.asdict(FluidSettings(diseased_probability=1.0))
    return ConfigDict(settings | {'max_steps': config_dict.placeholder(int)})
