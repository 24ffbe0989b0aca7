"""The healthy scans of a training step: given or synthesised, then varied and augmented."""

from __future__ import annotations

from typing import Protocol

import jax

from fluidjax.base.share import Share
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.wide import Appearance
from fluidjax.methods.augment import AugmentSettings, augment_batch
from fluidjax.methods.variants import VariantSettings, vary_batch
from fluidjax.synthesis.generate import SynthesisSettings, synthesise_batch


class Plan(Protocol):
    """What a step does to healthy scans; fields of those that are trained on them.

    grid: shape and voxel size of the volumes.
    augment: changes of all scans.
    variants: further changes, before the augmentation moves a scan out of MNI152 space, or None.
    synthesis: of the images; None: they are those of the batch.
    """

    grid: Grid
    augment: AugmentSettings
    variants: VariantSettings | None
    synthesis: SynthesisSettings | None


def healthy_scans(
    plan: Plan, batch: dict[str, jax.Array], key: jax.Array, share: Share
) -> tuple[jax.Array, jax.Array, Appearance | None]:
    """The scans of a batch, as a method sees them.

    Args:
        plan: what is done to them.
        batch: `{'image', 'brain'}` `(batch, x, y, z, 1)`, and with `synthesis` the fractions
            `'tissue'` `(batch, x, y, z, tissues)`, from which images of a random contrast are made.
        key: of the step. The first half of its split is the augmentation's, the second is left to
            the caller, and the folds 2 and 3 are of the rest: a key that is used twice ties two
            draws together.
        share: of the whole batch that this device has.

    Returns:
        images and brains `(batch, x, y, z, 1)`, and how lesions look in the contrast of each scan,
        `(batch,)`; None for T1w scans.
    """
    images, brains, appearance = batch['image'], batch['brain'], None
    spacing = plan.grid.spacing
    keys = lambda own: share.keys(own, len(images))
    if plan.synthesis is not None:
        own = keys(jax.random.fold_in(key, 3))
        images, brains, drawn = synthesise_batch(
            own, batch['tissue'], brains, spacing, plan.synthesis
        )
        appearance = Appearance(drawn.bright, drawn.enhancing, drawn.white, drawn.fluid)
    if plan.variants is not None:
        own = keys(jax.random.fold_in(key, 2))
        fluid = None if appearance is None else appearance.fluid
        images, brains = vary_batch(own, images, brains, spacing, plan.variants, fluid)
    own = keys(jax.random.split(key)[0])
    images, brains = augment_batch(own, images, brains, spacing, plan.augment)
    return images, brains, appearance
