"""Image-space methods to compare with diffusion: direct regression and supervised inpainting.

`Regression` is a U-Net from the diseased image to the healthy one, as in UNA (arXiv:2501.13370). It
is trained on the same pairs as the diffusion, without a latent space and without noise.

`Inpainting` is given the lesion's mask and fills the hole. Its counterpart differs from the scan
only within that mask, so it is an upper bound, not a detector.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.share import WHOLE, Share
from fluidjax.fluid.randomize import Randomized
from fluidjax.methods import Method
from fluidjax.methods.pairs import PairMaker, by_its_maximum
from fluidjax.models.image_unet import ImageUNet, ImageUNetConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RestorationLoss:
    """L1 of the image, and of its differences between neighbours.

    Attributes:
        gradient: weight of the second term.
    """

    gradient: float = 0.5


@dataclasses.dataclass(frozen=True)
class Regression(Method):
    """Healthy from pseudo-diseased, voxel by voxel.

    Attributes:
        network: sizes of the U-Net.
        losses: weights.
        pairs: how training pairs are made.
    """

    network: ImageUNetConfig
    losses: RestorationLoss
    pairs: PairMaker

    stage = 'restoration'
    trainable = ('unet',)
    autoencoder = None

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        volume = jnp.zeros((1, *self.pairs.grid.shape, self.network.in_channels))
        return {'unet': ImageUNet(self.network).init(key, volume)['params']}

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Nothing is measured on the training scans."""
        del volumes
        return params

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """L1 between the restored and the healthy image, of intensities and of gradients."""
        pair = self.pairs(batch, key, share)
        error = self._restore(params, self._seen(pair)) - pair.healthy
        weight = self._weight(pair)
        l1 = _mean(jnp.abs(error), weight, share)
        slopes = sum(jnp.mean(jnp.abs(jnp.diff(error * weight, axis=axis))) for axis in (1, 2, 3))
        return l1 + self.losses.gradient * slopes / 3.0, {
            'l1': l1,
            'lesion_ml': self.pairs.lesion_ml(pair),
            'lesion_l1': _mean(jnp.abs(error), pair.mask, share),
        }

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Healthy counterparts of scans `(batch, x, y, z, 1)`; `key` is not used."""
        del key
        scans, peak = by_its_maximum(volumes)
        return peak * jnp.clip(self._restore(params, scans), 0.0, 1.0)

    def _restore(self, params: Params, seen: jax.Array) -> jax.Array:
        return ImageUNet(self.network).apply({'params': params['unet']}, seen)

    def _seen(self, pair: Randomized) -> jax.Array:
        """The input of the network from a pair `(batch, x, y, z, in_channels)`."""
        return pair.diseased

    def _weight(self, pair: Randomized) -> jax.Array:
        """Where the restored image counts, broadcast against `(batch, x, y, z, 1)`."""
        return jnp.ones(())


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


def _mean(values: jax.Array, weight: jax.Array, share: Share) -> jax.Array:
    """The weighted mean over the batch, before the mean over devices that follows."""
    weight = jnp.broadcast_to(weight, values.shape)
    return jnp.sum(values * weight) / jnp.maximum(share.device_mean(jnp.sum(weight)), 1.0)
