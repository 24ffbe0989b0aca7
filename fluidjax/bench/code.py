"""How well an autoencoder keeps scans: trained alone, it reconstructs the validation scans."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fluidjax.base.errors import UserError
from fluidjax.bench.timer import Table
from fluidjax.detect import metrics
from fluidjax.runs.cases import batches, healthy_of
from fluidjax.runs.cohort import derived_seed, model_grid, open_cohort
from fluidjax.runs.feed import Feed, some_volumes
from fluidjax.runs.stages import build_stages
from fluidjax.training import parallel
from fluidjax.training.loop import Watch, train_stage
from fluidjax.training.stopping import StopRequest

SCORES = ('psnr', 'ssim', 'sharpness')
TABLE = Table(
    14, ('PSNR dB', 'psnr', '10.2f'), ('SSIM', 'ssim', '9.4f'), ('sharpness', 'sharpness', '11.3f')
)


def measure(config: ConfigDict) -> dict[str, Any]:
    """Train the autoencoder of a configuration, score its reconstructions, and print them.

    Args:
        config: of `configs/ldm.py`; the validation scans of its cohort are scored, healthy ones
            that are not trained on.

    Returns:
        The means of `psnr`, `ssim` and `sharpness` over the scans, in the brain.

    Raises:
        UserError: the method has no autoencoder.
    """
    stage = build_stages(config, model_grid(config))[0]
    if stage.method.stage != 'autoencoder':
        raise UserError(f'config.method: {config.method} has no autoencoder')
    cohort, layout = open_cohort(config), parallel.layout_of(stage.training.batch_size)
    seed = derived_seed(config.seed, 'first stage')
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        params = train_stage(
            stage.method,
            lambda params: stage.method.prepare(
                params, some_volumes(healthy_of(config, cohort, 'train'))
            ),
            Feed(cohort, layout, seed),
            stage.training,
            Path(folder),
            seed,
            layout,
            stop,
            Watch(),
        )
    rows = _rows(
        stage.method, params, healthy_of(config, cohort, 'validation'), config.detect.batch_size
    )
    means = {name: float(np.mean([row[name] for row in rows])) for name in SCORES}
    TABLE.print_head(f'{len(rows)} scans')
    TABLE.print_row('autoencoder', means)
    return means


def _rows(method: Any, params: Any, scans: Any, batch: int) -> list[dict[str, float]]:
    """Scores of each scan's reconstruction."""
    reconstruct, rows = jax.jit(method.reconstruct), []
    for some in batches(scans, batch):
        volumes = np.stack([scan.image for scan in some])[..., None]
        found = np.asarray(reconstruct(params, volumes, jax.random.key(0)))[..., 0]
        for scan, image in zip(some, found, strict=True):
            brain = scan.brain.astype(bool)
            made = np.where(brain, image, 0.0)
            rows.append({name: getattr(metrics, name)(made, scan.image, brain) for name in SCORES})
    return rows
