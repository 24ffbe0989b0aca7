"""The healthy scans of a training step: given or synthesised, then augmented and varied."""

from __future__ import annotations

import jax

from fluidjax.base.share import Share
from fluidjax.fluid.wide import Appearance
from fluidjax.methods.augment import AugmentSettings, augment_batch
from fluidjax.methods.variants import VariantSettings, vary_batch
from fluidjax.synthesis.generate import SynthesisSettings, synthesise_batch

Spacing = tuple[float, float, float]


def healthy_scans(
    batch: dict[str, jax.Array],
    k_augment: jax.Array,
    key: jax.Array,
    spacing: Spacing,
    share: Share,
    *,
    augment: AugmentSettings,
    variants: VariantSettings | None,
    synthesis: SynthesisSettings | None,
) -> tuple[jax.Array, jax.Array, Appearance | None]:
    """The scans of a batch, as a method sees them.

    Args:
        batch: `{'image', 'brain'}` `(batch, x, y, z, 1)`, and with `synthesis` the fractions
            `'tissue'` `(batch, x, y, z, tissues)`, from which images of a random contrast are made.
        k_augment: key of the augmentation.
        key: of the rest, which takes its folds 2 and 3.
        spacing: voxel size, mm.
        share: of the whole batch that this device has.
        augment: changes of all scans.
        variants: further changes, after the augmentation, or None.
        synthesis: of the images; None: they are those of the batch.

    Returns:
        images and brains `(batch, x, y, z, 1)`, and how lesions look in the contrast of each scan,
        `(batch,)`; None for T1w scans.
    """
    images, brains, appearance = batch['image'], batch['brain'], None
    # Not numbers that `split` uses: a key that is used twice ties two draws together.
    keys = lambda number: share.keys(jax.random.fold_in(key, number), len(images))
    if synthesis is not None:
        images, brains, drawn = synthesise_batch(
            keys(3), batch['tissue'], brains, spacing, synthesis
        )
        appearance = Appearance(drawn.bright, drawn.enhancing, drawn.white, drawn.fluid)
    own = share.keys(k_augment, len(images))
    images, brains = augment_batch(own, images, brains, spacing, augment)
    if variants is not None:
        fluid = None if appearance is None else appearance.fluid
        images, brains = vary_batch(keys(2), images, brains, spacing, variants, fluid)
    return images, brains, appearance
