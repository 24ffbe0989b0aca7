"""Image-space methods to compare with diffusion: direct regression and supervised inpainting.

`Regression` is a U-Net from the diseased image to the healthy one, as in UNA (arXiv:2501.13370). It
is trained on the same pairs as the diffusion, without a latent space and without noise. As in UNA
the network predicts the image; started from the identity it predicts a correction of the scan, as
the bridge does (`identity`).

`Inpainting` is given the lesion's mask and fills the hole. Its counterpart differs from the scan
only within that mask, so it is an upper bound, not a detector.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.settings import check
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
        lesion_weight: additional weight of the first term in the voxels of a lesion, as in
            `BridgeProcess`. Inpainting is trained only there, so for it this changes nothing.
    """

    gradient: float = 0.5
    lesion_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ('gradient', 'lesion_weight'):
            value = getattr(self, name)
            check(value >= 0, f'restoration.losses.{name}', value, 'must be 0 or more')


@dataclasses.dataclass(frozen=True)
class Regression(Method):
    """Healthy from pseudo-diseased, voxel by voxel.

    Attributes:
        network: sizes of the U-Net.
        losses: weights.
        pairs: how training pairs are made.
        identity: the network's output is added to the scan, so that an untrained network returns
            the scan (else a black image).
    """

    network: ImageUNetConfig
    losses: RestorationLoss
    pairs: PairMaker
    identity: bool = False

    stage = 'restoration'
    trainable = ('restoration',)
    autoencoder = None

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        volume = jnp.zeros((1, *self.pairs.grid.shape, self.network.in_channels))
        return {'restoration': ImageUNet(self.network).init(key, volume)['params']}

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Nothing is measured on the training scans."""
        del volumes
        return params

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """L1 between the restored and the healthy image, of intensities and of gradients."""
        pair = self.pairs(batch, key, share)
        return self._compared(self._restore(params, self._seen(pair)), pair, share)

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Healthy counterparts of scans `(batch, x, y, z, 1)`; `key` is not used."""
        del key
        scans, peak = by_its_maximum(volumes)
        return peak * jnp.clip(self._restore(params, scans), 0.0, 1.0)

    def _restore(self, params: Params, seen: jax.Array) -> jax.Array:
        """The healthy images `(batch, x, y, z, 1)` that the network expects."""
        output = ImageUNet(self.network).apply({'params': params['restoration']}, seen)
        return seen[..., :1] + output if self.identity else output

    def _compared(
        self, restored: jax.Array, pair: Randomized, share: Share
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of restored images, and metrics; `l1` does not know the lesion weight."""
        error, weight = restored - pair.healthy, self._weight(pair)
        cost = l1 = _mean(jnp.abs(error), weight, share)
        if self.losses.lesion_weight:
            more = 1.0 + self.losses.lesion_weight * pair.mask
            cost = _mean(jnp.abs(error), weight * more, share)
        slopes = sum(jnp.mean(jnp.abs(jnp.diff(error * weight, axis=axis))) for axis in (1, 2, 3))
        # Of the voxels that count, like the error itself.
        counting = jnp.mean(jnp.broadcast_to(weight, error.shape))
        slopes = slopes / jnp.maximum(share.device_mean(counting), 1e-6)
        return cost + self.losses.gradient * slopes / 3.0, {
            'l1': l1,
            'lesion_ml': self.pairs.lesion_ml(pair),
            'lesion_l1': _mean(jnp.abs(error), pair.mask, share),
        }

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
