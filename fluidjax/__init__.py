"""fluidjax: find what is abnormal in a brain scan, trained on healthy brains only.

Conditional latent diffusion with fluid-driven anomaly randomization (arXiv:2506.10233) in JAX.

    model = fluidjax.load()                            # or a run's folder, or a model package
    found = model.detect('scan.nii.gz')                # .mask, .anomaly_map, .healthy, .volume_ml
    model = fluidjax.train(config, 'runs/mine')
    diseased, mask = fluidjax.pseudo_pathology('scan.nii.gz', seed=1)

Importing this package is light: neither JAX nor TensorFlow is loaded before it is needed.
"""

import importlib
from typing import Any

from fluidjax.base import __version__ as __version__
from fluidjax.base.environment import avoid_wrong_sums

avoid_wrong_sums()

# Where each public name lives.
_API = {
    'Detection': 'predict.api',
    'Model': 'predict.api',
    'load': 'predict.api',
    'train': 'predict.api',
    'pseudo_pathology': 'randomize.pairs',
    'UserError': 'base.errors',
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for."""
    if name not in _API:
        raise AttributeError(
            f"module 'fluidjax' has no attribute '{name}'; there are {', '.join(_API)}"
        )
    return getattr(importlib.import_module(f'fluidjax.{_API[name]}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
