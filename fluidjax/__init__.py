"""fluidjax: find what is abnormal in a brain scan, trained on healthy brains alone.

Conditional latent diffusion with fluid-driven anomaly randomization (arXiv:2506.10233) in JAX.

    model = fluidjax.load()                            # or a run's folder, or a model package
    found = model.detect('scan.nii.gz')                # .mask, .anomaly_map, .healthy, .volume_ml
    model = fluidjax.train(config, 'runs/mine')
    diseased, mask = fluidjax.pseudo_pathology('scan.nii.gz', seed=1)

Importing this package is light: neither JAX nor TensorFlow is loaded before it is needed.
"""

from typing import Any

__version__ = '0.1.0'
_API = ('Detection', 'Model', 'UserError', 'load', 'pseudo_pathology', 'train')


def __getattr__(name: str) -> Any:
    """What `fluidjax.api` offers, imported when it is first asked for."""
    if name not in _API:
        raise AttributeError(f"module 'fluidjax' has no attribute '{name}'; there are "
                             f'{", ".join(_API)}')
    from fluidjax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
