"""Pseudo-pathology for scans of your own: what `fluidjax randomize` draws.

Every field of `fluidjax.fluid.FluidSettings` (its docstring says what each means), as it stands but
for one: every pair is diseased. Override any: --config.threshold=0.5 --config.strength='(0.3,1.0)'.
"""

import dataclasses

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The settings of a fluid randomization."""
    from fluidjax.fluid.settings import FluidSettings

    settings = dataclasses.asdict(FluidSettings(diseased_probability=1.0))
    return ConfigDict(settings | {'max_steps': config_dict.placeholder(int)})
