"""The configuration of any method by its name, for loops over all methods."""

from ml_collections import ConfigDict

from configs import inpainting, ldm, regression, severity, vae

OWN_FILES = {'vae': vae, 'regression': regression, 'severity': severity, 'inpainting': inpainting}


def config_of(method: str, argument: str = '') -> ConfigDict:
    """The configuration of a method; the argument is that of configs/common.py."""
    if method in OWN_FILES:
        return OWN_FILES[method].get_config(argument)
    return ldm.get_config(','.join(filter(None, (argument, f'method={method}'))))
