"""The picture of a validation scan that a run shows during training.

Rows of axial planes: the scan with a simulated lesion, its counterpart, their difference, and the
probability of a lesion, if the method has one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.detect.slices import AXIAL, cut
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.fluid.settings import FluidSettings

Params = dict[str, Any]
PLANES = 5
SMALLEST_SIDE = 96  # pixels; smaller planes are enlarged
SHOWN_DIFFERENCE = 0.5  # of the scan's maximum; shown white


def painter(
    method: Any, grid: Grid, fluid: FluidSettings, image: np.ndarray, brain: np.ndarray
) -> Callable[[Params], np.ndarray]:
    """A function from averaged parameters to a picture `(height, width, 3)` uint8.

    Args:
        method: see `fluidjax.methods`.
        grid: of the scan.
        fluid: how the lesion is simulated.
        image: a healthy scan `(x, y, z)` in [0, 1].
        brain: its mask.
    """
    key = jax.random.key(0)
    always = dataclasses.replace(fluid, diseased_probability=1.0)
    randomize = jax.jit(lambda image, brain: randomize_batch(key, image, brain, grid, always))
    pair = randomize(image[None, ..., None], brain[None, ..., None].astype(np.float32))
    masks = [pair.mask] if method.needs_mask else []
    views = jax.jit(lambda params: method.views(params, pair.diseased, key, *masks))

    probability = None if method.probability is None else jax.jit(method.probability)

    def paint(params: Params) -> np.ndarray:
        counterparts = views(params)
        counterpart = counterparts.mean(axis=0)
        rows = [pair.diseased, counterpart, jnp.abs(pair.diseased - counterpart) / SHOWN_DIFFERENCE]
        if probability is not None:
            brain = pair.diseased > 0
            rows.append(brain * probability(params, pair.diseased, counterparts))
        return montage([np.asarray(row[0, ..., 0]) for row in rows])

    return paint


def montage(volumes: list[np.ndarray]) -> np.ndarray:
    """Axial planes of volumes `(x, y, z)` in [0, 1], one row per volume; right is right."""
    depth = volumes[0].shape[AXIAL.cuts]
    places = np.linspace(0.25 * depth, 0.75 * depth, PLANES).astype(int)
    rows = [
        np.hstack([cut(volume, AXIAL, (0, 0, place))[::-1] for place in places])
        for volume in volumes
    ]
    grey = np.uint8(np.clip(np.vstack(rows), 0.0, 1.0) * 255)
    times = max(1, -(-SMALLEST_SIDE // min(volumes[0].shape[:2])))
    grey = grey.repeat(times, axis=0).repeat(times, axis=1)
    return np.repeat(grey[..., None], 3, axis=-1)
