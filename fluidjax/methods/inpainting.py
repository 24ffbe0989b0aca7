"""Supervised inpainting: told where the lesion is, it fills the hole. An upper bound, no detector.

Trained on healthy scans with holes in the shape of the randomization's lesions. The counterpart
differs from the scan within the given mask alone, so its anomaly map knows the answer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fluidjax.fluid.randomize import Randomized
from fluidjax.methods.regression import Regression

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Inpainting(Regression):
    """The regression's network, given the image without the lesion's voxels, and its mask.

    `network.in_channels` is 2.
    """

    needs_mask = True

    def reconstruct(
        self, params: Params, volumes: jax.Array, key: jax.Array, masks: jax.Array
    ) -> jax.Array:
        """Scans `(batch, x, y, z, 1)` with new contents where masks, shaped alike, are 1.

        `key` is not used.
        """
        del key
        masks = masks.astype(volumes.dtype)
        kept = volumes * (1.0 - masks)
        peak = jnp.maximum(kept.max(axis=(1, 2, 3, 4), keepdims=True), 1e-6)
        filled = self._restore(params, jnp.concatenate([kept / peak, masks], axis=-1))
        return kept + masks * peak * jnp.clip(filled, 0.0, 1.0)

    def _seen(self, pair: Randomized) -> jax.Array:
        return jnp.concatenate([pair.healthy * (1.0 - pair.mask), pair.mask], axis=-1)

    def _weight(self, pair: Randomized) -> jax.Array:
        return pair.mask
