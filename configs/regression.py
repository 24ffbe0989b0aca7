"""Direct regression (as in UNA): `--config=configs/regression.py:demo`.

Arguments as in common.py.
"""

from ml_collections import ConfigDict

from configs.restoration import restoration


def get_config(argument: str = '') -> ConfigDict:
    """The configuration of a size and a cohort."""
    return restoration('regression', argument)
