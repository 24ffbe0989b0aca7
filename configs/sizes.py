"""The sizes between the demo (4 mm) and the paper's, as changes of the demo's settings.

    2mm       80x96x80      hours on a CPU, or any GPU
    1.5mm     112x128x112   for a GPU
    1mm       160x192x160   the whole brain at 1 mm, for a GPU of 24 GB

They keep what made the demo efficient: an autoencoder of patches (one latent for 4^3 voxels),
latents that are used for several steps, and counterparts in one step. `fluidjax bench memory` says
what a size needs; the times are in docs/performance.md.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

FINER = ('2mm', '1.5mm', '1mm')
NAMES = ('paper', *reversed(FINER), '4mm', 'demo', 'smoke')


def adapt(config: ConfigDict) -> None:
    """Change the settings of the demo to those of a finer size, in the sections that there are."""
    changes = CHANGES.get(config.size, {})
    there = {name: value for name, value in changes.items() if name.partition('.')[0] in config}
    config.update_from_flattened_dict(there)


def _training(stage: str, steps: int, batch: int, rate: float, **others: Any) -> dict[str, Any]:
    fields = {
        'steps': steps,
        'batch_size': batch,
        'checkpoint_every': 500,
        'validate_every': 500,
        'optimizer.learning_rate': rate,
        'optimizer.warmup_steps': 100,
        **others,
    }
    return {f'{stage}.training.{name}': value for name, value in fields.items()}


def _networks(section: str, **fields: Any) -> dict[str, Any]:
    return {f'{section}.network.{name}': value for name, value in fields.items()}


def _size(
    *,
    code: dict[str, Any],
    unet: dict[str, Any],
    image: dict[str, Any],
    head: dict[str, Any],
    vae: dict[str, Any],
    steps: tuple[int, int, int, int],
    batch: int,
    rate: float,
    smoothing_mm: float,
    search: bool,
) -> Mapping[str, Any]:
    """The changes of a size.

    Args:
        code, unet, image, head, vae: fields of the networks; `image` for methods on images.
        steps: of the autoencoder, the latent stage, the head, and the methods on images.
        batch: of every stage.
        rate: learning rate of the latent stages.
        smoothing_mm: of the anomaly map.
        search: whether an evaluation chooses the map's recipe.
    """
    first, latent, second_look, images = steps
    # Encoding is most of a step of a latent stage, so latents are used five times.
    pooled = {'reuse': 5, 'pool': 16, 'ema_decay': 0.995}
    return {
        **_networks('autoencoder', **code),
        **_training('autoencoder', first, batch, 3e-4),
        **_networks('bridge', **unet),
        **_training('bridge', latent, batch, rate, **pooled),
        **_networks('diffusion', **unet),
        **_training('diffusion', latent, batch, rate, **pooled),
        **_networks('head', **head),
        **_training('head', second_look, batch, rate),
        **_networks('restoration', **image),
        **_training('restoration', images, batch, rate / 2),
        **_networks('vae', **vae),
        **_training('vae', images, batch, rate / 2),
        'detect.map.smoothing_mm': smoothing_mm,
        'detect.search': search,
        'detect.batch_size': 1,
    }


CHANGES: Mapping[str, Mapping[str, Any]] = {
    '2mm': _size(
        code={'channels': (48,)},
        unet={'channels': (32, 64, 128), 'attention_levels': (False, False, True)},
        image={'channels': (16, 32, 64, 128)},
        head={'channels': (16, 32, 64)},
        vae={'channels': (16, 32, 64, 128)},
        steps=(500, 3000, 1000, 3000),
        batch=4,
        rate=1.5e-3,
        smoothing_mm=5.0,
        search=True,
    ),
    '1.5mm': _size(
        code={'channels': (64,), 'dtype': 'bfloat16'},
        unet={
            'channels': (64, 128, 128),
            'attention_levels': (False, False, True),
            'num_head_channels': 64,
            'dtype': 'bfloat16',
        },
        image={'channels': (16, 32, 64, 128), 'dtype': 'bfloat16', 'remat': True},
        head={'channels': (16, 32, 64), 'dtype': 'bfloat16', 'remat': True},
        vae={'channels': (16, 32, 64, 128), 'dtype': 'bfloat16'},
        steps=(1000, 10_000, 3000, 10_000),
        batch=8,
        rate=1e-3,
        smoothing_mm=4.0,
        search=True,
    ),
    '1mm': _size(
        code={'channels': (64,), 'dtype': 'bfloat16', 'remat': True},
        unet={
            'channels': (64, 128, 256, 256),
            'attention_levels': (False, False, False, True),
            'num_head_channels': 64,
            'dtype': 'bfloat16',
        },
        image={'channels': (32, 64, 128, 256), 'dtype': 'bfloat16', 'remat': True},
        head={'channels': (16, 32, 64), 'dtype': 'bfloat16', 'remat': True},
        vae={'channels': (16, 32, 64, 128, 256), 'dtype': 'bfloat16'},
        steps=(3000, 50_000, 10_000, 50_000),
        batch=8,
        rate=5e-4,
        smoothing_mm=3.0,
        # A map of a scan has five million voxels here; the recipe is that of the configuration.
        search=False,
    ),
}
