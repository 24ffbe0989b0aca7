"""Restoration by severity, after DISYRE (arXiv:2311.15453, arXiv:2407.06635).

    fluidjax train --config=configs/severity.py:demo --workdir=runs/severity
    fluidjax eval --workdir=runs/severity

The argument is that of configs/common.py.
"""

from ml_collections import ConfigDict

from configs.restoration import restoration


def get_config(argument: str = '') -> ConfigDict:
    """The configuration of a size and a cohort."""
    return restoration('severity', argument)
