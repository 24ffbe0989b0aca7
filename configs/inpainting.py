"""Inpainting of the lesion, whose mask is given: an upper bound, not a detector.

    fluidjax train --config=configs/inpainting.py:demo --workdir=runs/inpainting
    fluidjax eval --workdir=runs/inpainting

The argument is that of configs/common.py. At the size of the demo it takes some minutes on 2 CPU
cores; its scores are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.restoration import restoration


def get_config(argument: str = '') -> ConfigDict:
    """The configuration of a size and a cohort."""
    return restoration('inpainting', argument)
