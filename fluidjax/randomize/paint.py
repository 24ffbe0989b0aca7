"""One pair of a scan: its drawn lesions painted into it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.fluid.draws import Draw, draw_pair
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import lesion_of, paint_drawn
from fluidjax.fluid.settings import FluidSettings
from fluidjax.randomize.healthy import Healthy, MaskFiles


class Pair(NamedTuple):
    """A painted pair, on the box of its scan.

    draw: what it was painted from, with `bank_index` counted in `bank`.
    bank: (seeds, x, y, z) uint8, a lesion mask for each seed, or None.
    change: (x, y, z), diseased image - healthy image, in units of `Healthy.image`.
    mask: (x, y, z) bool.
    probability: (x, y, z) in [0, 1].
    """

    draw: Draw
    bank: np.ndarray | None
    change: np.ndarray
    mask: np.ndarray
    probability: np.ndarray


@functools.partial(jax.jit, static_argnames=('grid', 'settings'))
def _paint(
    draw: Draw,
    image: jax.Array,
    brain: jax.Array,
    bank: jax.Array | None,
    grid: Grid,
    settings: FluidSettings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Change, mask and probability, each (x, y, z); all 0 for a healthy pair."""
    P, mask = lesion_of(draw, brain, grid, settings, bank)
    change = paint_drawn(draw, image, brain, P, mask, grid, settings) - image
    return jax.tree.map(lambda v: jnp.where(draw.diseased, v, 0.0), (change, mask, P))


def draw_of(seed: int, scan: int, number: int, settings: FluidSettings, num_masks: int) -> Draw:
    """The draw of a pair.

    Args:
        seed: of all draws.
        scan: number of the scan, from 0.
        number: of the pair, from 0.
        settings: what to draw.
        num_masks: lesion masks to choose from; 0 for Perlin noise only.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), scan), number)
    return draw_pair(key, settings, num_masks)


def paint(draw: Draw, healthy: Healthy, masks: MaskFiles, settings: FluidSettings) -> Pair:
    """Paint a draw into a scan."""
    bank, draw = _bank_of(draw, masks, healthy)
    image, brain = jnp.asarray(healthy.image), jnp.asarray(healthy.brain)
    arrays = _paint(draw, image, brain, bank, healthy.grid, settings)
    change, mask, probability = (np.asarray(array) for array in arrays)
    return Pair(draw, bank, change, mask > 0, probability)


def _bank_of(draw: Draw, masks: MaskFiles, scan: Healthy) -> tuple[np.ndarray | None, Draw]:
    """See `Pair.bank`, and the draw with `bank_index` counted in it."""
    if not len(masks):
        return None, draw
    seeds, count = draw.seeds, int(draw.count)
    bank = np.zeros((seeds.bank_index.shape[0], *scan.grid.shape), np.uint8)
    for i in range(len(bank)):
        if i < count and bool(seeds.from_bank[i]):
            bank[i] = masks.on(scan, int(seeds.bank_index[i]))
        else:
            bank[i, 0, 0, 0] = 1  # a seed that is not used is computed too, and needs a voxel
    return bank, draw._replace(seeds=seeds._replace(bank_index=jnp.arange(len(bank))))


def diseased(healthy: Healthy, pair: Pair) -> np.ndarray:
    """(x, y, z) the whole scan with a pair's change, in the scan's own intensities."""
    inside = healthy.volume.data[healthy.box]
    # Rounding must not leave a voxel below the background.
    values = np.maximum(inside + healthy.scale * pair.change, healthy.background)
    return healthy.whole(np.where(pair.change != 0, values, inside), healthy.volume.data)
