"""Settings of simulated lesions in scans of your own.

    fluidjax randomize SCAN.nii.gz --out=pairs --config.strength='(0.3,1.0)'

The fields are those of `fluidjax.fluid.FluidSettings`, whose docstring explains them, with their
defaults, except that every pair has a lesion. Any can be overridden. `section` is also the section
`fluid` of the configurations of training.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The settings of a fluid randomization."""
    return section(diseased_probability=1.0)


def section(**changes: Any) -> ConfigDict:
    """Every field of `FluidSettings`, with its default where it is not changed."""
    from fluidjax.fluid.settings import FluidSettings  # imports JAX

    settings = dataclasses.asdict(FluidSettings(**changes))
    # A field that holds None could be set to a value of any type.
    max_steps = config_dict.FieldReference(settings['max_steps'], field_type=int)
    return ConfigDict(settings | {'max_steps': max_steps})
