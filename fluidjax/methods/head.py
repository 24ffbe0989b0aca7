"""A head: it says where a lesion is, from a scan and its healthy counterpart.

The difference between a scan and its counterpart is also large where a counterpart is wrong: at
folds, at the edge of the brain, in unusual anatomy. The head is a small U-Net in image space, which
learns from simulated lesions to tell the two apart. Discriminative heads on restored images are
known from DRAEM (Zavrtanik et al. 2021). The method that makes the counterparts is trained before
and stays fixed.

The network sees, all divided by the maximum of the scan and 0 where scan and counterpart are black,

    scan,  counterpart,  scan - counterpart,  scan mirrored left-right,  (scan - mean) / spread

with mean and spread of the training scans, params['health']. Of an ensemble it sees each
counterpart, and its difference to the scan.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.settings import check
from fluidjax.base.share import WHOLE, Share
from fluidjax.methods import Method
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.methods.pairs import PairMaker, by_its_maximum
from fluidjax.models.image_unet import ImageUNet, ImageUNetConfig

Params = dict[str, Any]
SMALLEST_SPREAD = 0.05  # of the training scans, in units of a scan's maximum
LARGEST_Z_SCORE = 5.0
LEAST_TISSUE = 0.1  # of a counterpart inside the brain, in units of the scan's maximum
# Added to the output of the network, which is 0 before training: the head starts from a probability
# of 0.05, about the share of lesions in a brain, and need not learn that most tissue is healthy.
PRIOR_LOGIT = -3.0


@dataclasses.dataclass(frozen=True)
class HeadLoss:
    """Cross-entropy in each voxel of the brain, and the overlap of all lesions of a batch.

    Attributes:
        dice: weight of the second term, 1 - soft Dice. Cross-entropy gives large lesions their
            weight by their voxels; the overlap balances lesion and healthy tissue.
    """

    dice: float = 1.0

    def __post_init__(self) -> None:
        check(self.dice >= 0, 'head.losses.dice', self.dice, 'must be 0 or more')


@dataclasses.dataclass(frozen=True)
class AnomalyHead(Method):
    """A lesion's probability in each voxel, beside the counterparts of a trained method.

    Attributes:
        restorer: makes the counterparts; trained in the stages before this one.
        network: sizes of the U-Net; `in_channels` is that of `input_channels`.
        losses: weights.
        pairs: makes the training pairs.
    """

    restorer: Method
    network: ImageUNetConfig
    losses: HeadLoss
    pairs: PairMaker

    stage = 'head'
    trainable = ('head',)

    @property
    def autoencoder(self) -> AutoencoderMethod | None:
        """That of the restorer, if it has one."""
        return self.restorer.autoencoder

    @property
    def num_counterparts(self) -> int:
        """Those of the restorer."""
        return self.restorer.num_counterparts

    @property
    def separate(self) -> bool:
        """As for the restorer."""
        return self.restorer.separate

    def init(self, key: jax.Array) -> Params:
        """Random parameters of restorer and head; scans neither centred nor scaled."""
        k_restorer, k_head = jax.random.split(key)
        volume = jnp.zeros((1, *self.pairs.grid.shape, self.network.in_channels))
        one = (*self.pairs.grid.shape, 1)
        return {
            **self.restorer.init(k_restorer),
            'head': ImageUNet(self.network).init(k_head, volume)['params'],
            'health': {'mean': jnp.zeros(one), 'spread': jnp.ones(one)},
        }

    @property
    def is_random(self) -> bool:
        """Whether counterparts depend on the key: those of the restorer."""
        return self.restorer.is_random

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Measure mean and spread of training scans `(n, x, y, z, 1)`, voxel by voxel.

        All other groups stay as they are: those of the restorer come from its own training.
        """
        scans = np.asarray(volumes, np.float32)
        scans = scans / np.maximum(scans.max(axis=(1, 2, 3, 4), keepdims=True), 1e-6)
        spread = np.maximum(scans.std(axis=0), SMALLEST_SPREAD)
        health = {'mean': jnp.asarray(scans.mean(axis=0)), 'spread': jnp.asarray(spread)}
        return {**params, 'health': health}

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy in the brain, and 1 - soft Dice over all lesions of the batch.

        A voxel that a lesion blackens is part of the brain.
        """
        k_pairs, k_sampling = jax.random.split(key)
        pair = self.pairs(batch, k_pairs, share)
        views = self._fixed_views(params, pair.diseased, k_sampling, share)
        logits = self._logits(params, pair.diseased, views)
        brain = ((pair.diseased > 0) | (pair.mask > 0)).astype(logits.dtype)
        lesion = pair.mask.astype(logits.dtype)
        entropy = -(
            lesion * jax.nn.log_sigmoid(logits) + (1.0 - lesion) * jax.nn.log_sigmoid(-logits)
        )
        marked = brain * jax.nn.sigmoid(logits)
        bce = _ratio(brain * entropy, brain, share)
        soft_dice = _ratio(2.0 * marked * lesion, marked + lesion, share)
        return bce + self.losses.dice * (1.0 - soft_dice), {
            'bce': bce,
            'soft_dice': soft_dice,
            'lesion_ml': self.pairs.lesion_ml(pair),
        }

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Healthy counterparts of scans `(batch, x, y, z, 1)`: those of the restorer."""
        return self.restorer.reconstruct(params, volumes, key)

    def counterparts(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Each sample of the restorer as a volume, `(n, batch, x, y, z, 1)`."""
        return self.restorer.counterparts(params, volumes, key)

    def probability(self, params: Params, volumes: jax.Array, counterparts: jax.Array) -> jax.Array:
        """Probability of a lesion in each voxel, in [0, 1]; it means nothing outside the brain.

        Args:
            params: all groups.
            volumes: scans `(batch, x, y, z, 1)`, 0 outside the brain.
            counterparts: all of each scan, `(n, batch, x, y, z, 1)`.
        """
        views = counterparts if self.separate else counterparts.mean(axis=0, keepdims=True)
        return jax.nn.sigmoid(self._logits(params, volumes, views))

    def _logits(self, params: Params, volumes: jax.Array, views: jax.Array) -> jax.Array:
        scans, peak = by_its_maximum(volumes)
        seen = network_input(scans, views / peak, params['health'])
        return ImageUNet(self.network).apply({'params': params['head']}, seen) + PRIOR_LOGIT

    def _fixed_views(
        self, params: Params, scans: jax.Array, key: jax.Array, share: Share
    ) -> jax.Array:
        """What the network sees, without gradients; with random numbers of each sample's key."""
        if not self.restorer.is_random:  # a whole batch is faster on CPUs
            return jax.lax.stop_gradient(self.views(params, scans, key))

        def one(scan: jax.Array, key: jax.Array) -> jax.Array:
            return self.views(params, scan[None], key)[:, 0]

        keys = share.keys(key, len(scans))
        return jax.lax.stop_gradient(jax.vmap(one, out_axes=1)(scans, keys))


def input_channels(restorer: Method) -> int:
    """The number of volumes that a head sees of a scan and the counterparts of a method."""
    return 3 + 2 * (restorer.num_counterparts if restorer.separate else 1)


def network_input(scans: jax.Array, views: jax.Array, health: dict[str, jax.Array]) -> jax.Array:
    """What the network sees, `(batch, x, y, z, channels)`; see the top of this file.

    Args:
        scans: `(batch, x, y, z, 1)`, each divided by its maximum.
        views: counterparts `(views, batch, x, y, z, 1)`, divided by the same numbers.
        health: mean and spread of the training scans, `(x, y, z, 1)`.
    """
    z_score = (scans - health['mean']) / health['spread']
    channels = [scans]
    for counterparts in views:
        channels += [counterparts, scans - counterparts]
    channels += [scans[:, ::-1], jnp.clip(z_score, -LARGEST_Z_SCORE, LARGEST_Z_SCORE)]
    # A lesion may be as black as the background: there a counterpart shows that it is brain.
    inside = (scans > 0) | (views.max(axis=0) > LEAST_TISSUE)
    return jnp.where(inside, jnp.concatenate(channels, axis=-1), 0.0)


def _ratio(part: jax.Array, whole: jax.Array, share: Share) -> jax.Array:
    """A sum over the batch by another one, before the mean over devices that follows."""
    return jnp.sum(part) / jnp.maximum(share.device_mean(jnp.sum(whole)), 1.0)
