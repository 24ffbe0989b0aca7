"""Training pairs, made on the device inside the step: (healthy, diseased) from healthy scans."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fluidjax.augment import AugmentSettings, augment_batch
from fluidjax.corruptions import CorruptionSettings, corrupt_batch
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.painting import divide_by_maximum
from fluidjax.fluid.randomize import Randomized, randomize_batch
from fluidjax.fluid.settings import FluidSettings


@dataclasses.dataclass(frozen=True)
class PairMaker:
    """Augmentation, then pseudo-pathology: `(batch, key) -> Randomized`.

    Attributes:
        grid: shape and voxel size of the volumes.
        augment: of the training scans; both images of a pair share it.
        randomization: fluid-driven lesions, the corruptions of ICDM, or None: both images are the
            healthy one.
    """

    grid: Grid
    augment: AugmentSettings
    randomization: FluidSettings | CorruptionSettings | None

    def __call__(self, batch: dict[str, jax.Array], key: jax.Array) -> Randomized:
        """Fresh pairs of a batch `{'image', 'brain'}` `(batch, x, y, z, 1)`, shaped alike.

        Each image is divided by its own maximum. Masks of `batch['lesions']`, where there are any,
        are carried by the flow (`fluid.bank`).
        """
        k_augment, k_pairs = jax.random.split(key)
        images, brains = augment_batch(
            k_augment, batch['image'], batch['brain'], self.grid.spacing, self.augment)
        settings = self.randomization
        if settings is None:
            images = jax.vmap(divide_by_maximum)(images)
            return Randomized(images, images, jnp.zeros_like(images), jnp.zeros_like(images))
        if isinstance(settings, CorruptionSettings):
            return corrupt_batch(k_pairs, images, brains, self.grid, settings)
        return randomize_batch(
            k_pairs, images, brains, self.grid, settings, batch.get('lesions'))


def by_its_maximum(volumes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scans `(batch, x, y, z, 1)` divided by their maximum, as in every training pair, and it."""
    peak = jnp.maximum(volumes.max(axis=(1, 2, 3, 4), keepdims=True), 1e-6)
    return volumes / peak, peak
