"""Training pairs (healthy, diseased) from healthy scans, made on the device inside the step.

The lesion masks of a batch (`lesions`) are drawn anew at every step: with a lesion bank and
`stored` pairs, a pair keeps the flow and the place of its lesion, but not the mask.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fluidjax.base.settings import check
from fluidjax.base.share import WHOLE, Share
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.painting import divide_by_maximum
from fluidjax.fluid.randomize import Randomized, randomize_batch
from fluidjax.fluid.settings import FluidSettings
from fluidjax.fluid.wide import WideSettings, randomize_wide_batch
from fluidjax.methods.augment import AugmentSettings
from fluidjax.methods.corruptions import CorruptionSettings, corrupt_batch
from fluidjax.methods.scans import healthy_scans
from fluidjax.methods.variants import VariantSettings
from fluidjax.synthesis.generate import SynthesisSettings


@dataclasses.dataclass(frozen=True)
class PairMaker:
    """Healthy scans, then pseudo-pathology: `(batch, key) -> Randomized`.

    Attributes:
        grid: shape and voxel size of the volumes.
        augment: of the training scans; both images of a pair share it.
        randomization: fluid-driven lesions, by the published law or a wider one, the corruptions
            of ICDM, or None: both images are the healthy one.
        stored: 0 for new pairs at every step; n for the same n pairs of each scan again and again,
            as if they had been made once and stored (published); not for corruptions.
        seed: of the stored pairs.
        variants: further changes of the scans, before the augmentation, or None.
        synthesis: how scans of any contrast are made from tissue fractions; None: they are given.
    """

    grid: Grid
    augment: AugmentSettings
    randomization: FluidSettings | WideSettings | CorruptionSettings | None
    stored: int = 0
    seed: int = 0
    variants: VariantSettings | None = None
    synthesis: SynthesisSettings | None = None

    def __post_init__(self) -> None:
        check(self.stored >= 0, 'stored_pairs', self.stored, 'must be 0 or more')
        # A stored pair is made alone, so there is no other scan to take a patch from.
        corrupted = isinstance(self.randomization, CorruptionSettings)
        advice = 'must be 0 for corruptions (icdm), whose patches are of other scans of the batch'
        check(not corrupted or self.stored == 0, 'stored_pairs', self.stored, advice)
        t1w = self.randomization is not None and not isinstance(self.randomization, WideSettings)
        advice = (
            'only law=wide paints lesions in other contrasts than T1w; choose it, or contrast=t1w'
        )
        contrasts = self.synthesis.contrasts if self.synthesis else ('t1w',)
        check(not t1w or set(contrasts) == {'t1w'}, 'synthesis.contrasts', contrasts, advice)

    def __call__(
        self, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> Randomized:
        """Pairs of a batch `{'image', 'brain'}` `(batch, x, y, z, 1)`, shaped alike.

        With `synthesis` the batch also has `'tissue'`, see `methods.scans`.

        The images of a pair have one scale (`painting.on_one_scale`). If the batch has lesion
        masks, `lesions`, the flow transports them (`fluid.bank`).
        """
        if self.stored:
            return self._from_store(batch, key, share)
        return self._fresh(batch, key, share)

    def lesion_ml(self, pair: Randomized) -> jax.Array:
        """Volume of each sample's lesion in ml, `(batch,)`; 0 for healthy ones."""
        return self.grid.voxel_ml * pair.mask.sum(axis=(1, 2, 3, 4))

    def _from_store(self, batch: dict[str, jax.Array], key: jax.Array, share: Share) -> Randomized:
        """Pairs whose random numbers depend only on `seed`, the scan and its place in the store."""
        count = len(batch['image'])
        places = jnp.int32(self.stored * share.uniform(key, (count,)))
        # A sum of integers identifies a scan, whatever the order of the batches and of the sum.
        bits = jax.lax.bitcast_convert_type(batch['image'], jnp.uint32)
        scans = bits.sum(axis=(1, 2, 3, 4), dtype=jnp.uint32)
        keys = jax.vmap(
            lambda scan, place: jax.random.fold_in(
                jax.random.fold_in(jax.random.key(self.seed), scan), place
            )
        )(scans, places)

        def one(sample: dict[str, jax.Array], key: jax.Array) -> Randomized:
            pair = self._fresh({name: value[None] for name, value in sample.items()}, key, WHOLE)
            return Randomized(*(volume[0] for volume in pair))

        return jax.vmap(one)(batch, keys)

    def _fresh(self, batch: dict[str, jax.Array], key: jax.Array, share: Share) -> Randomized:
        images, brains, appearance = healthy_scans(self, batch, key, share)
        k_pairs = jax.random.split(key)[1]
        settings = self.randomization
        if settings is None:
            images = jax.vmap(divide_by_maximum)(images)
            return Randomized(images, images, jnp.zeros_like(images), jnp.zeros_like(images))
        if isinstance(settings, CorruptionSettings):
            return corrupt_batch(k_pairs, images, brains, self.grid, settings, share)
        lesions = batch.get('lesions')
        # Every sample chooses among those of all; with `accumulate` among those of its part, so
        # that then the pairs depend on the number of devices.
        if lesions is not None:
            lesions = share.everyones(lesions)
        keys = share.keys(k_pairs, len(images))
        if isinstance(settings, WideSettings):
            return randomize_wide_batch(
                keys, images, brains, self.grid, settings, lesions, appearance
            )
        return randomize_batch(keys, images, brains, self.grid, settings, lesions)


def by_its_maximum(volumes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scans `(batch, x, y, z, 1)` divided by their maximum, as training pairs are; the maximum."""
    peak = jnp.maximum(volumes.max(axis=(1, 2, 3, 4), keepdims=True), 1e-6)
    return volumes / peak, peak
