"""Direct regression of the healthy scan, as in UNA (arXiv:2501.13370).

    fluidjax train --config=configs/regression.py:demo --workdir=runs/regression
    fluidjax eval --workdir=runs/regression

The argument is that of configs/common.py. At the size of the demo it takes some minutes on 2 CPU
cores; its scores are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.restoration import restoration


def get_config(argument: str = '') -> ConfigDict:
    """The configuration of a size and a cohort."""
    return restoration('regression', argument)
