"""Every method of the comparison with its configuration, for loops over all of them."""

from ml_collections import ConfigDict

from configs import inpainting, ldm, regression, vae

OWN_FILES = {'vae': vae, 'regression': regression, 'inpainting': inpainting}


def config_of(method: str, argument: str = '') -> ConfigDict:
    """The configuration of a method; the argument is a size and a cohort, as after the colon."""
    if method in OWN_FILES:
        return OWN_FILES[method].get_config(argument)
    return ldm.get_config(','.join(filter(None, (argument, f'method={method}'))))
