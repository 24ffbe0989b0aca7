"""What the methods of a trained autoencoder's latent space share: `LatentMethod`.

They work on normalised latents,

    z = (autoencoder.encode(x) - mean) * scale,    params['latent'] = {'mean', 'scale'}
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.share import WHOLE, Share
from fluidjax.fluid.painting import divide_by_maximum
from fluidjax.methods import Method
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.methods.pairs import PairMaker, by_its_maximum
from fluidjax.models.unet import UNet, UNetConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LatentMethod(Method):
    """A U-Net that turns the latent of a scan into that of its healthy counterpart.

    A subclass defines `example_loss`, `num_counterparts` and
    `_samples(params, z_scan, key)`, the healthy latents `(n, batch, ...)`.

    Attributes:
        autoencoder: trained in the stage before this one.
        network: the U-Net, and how it is conditioned on the scan.
        process: settings of the subclass, with the field `centre_latents`.
        pairs: makes the training pairs.
    """

    autoencoder: AutoencoderMethod
    network: UNetConfig
    process: Any
    pairs: PairMaker

    trainable = ('unet',)

    @property
    def conditional(self) -> bool:
        """Whether the network sees the scan."""
        return self.network.condition != 'none'

    def init(self, key: jax.Array) -> Params:
        """Random parameters of U-Net and autoencoder; latents neither centred nor scaled."""
        k_unet, k_auto = jax.random.split(key)
        shape = self.autoencoder.latent_shape
        z = jnp.zeros((1, *shape))
        cond = z if self.conditional else None
        return {
            'unet': UNet(self.network).init(k_unet, z, jnp.zeros((1,)), cond)['params'],
            'autoencoder': self.autoencoder.init(k_auto)['autoencoder'],
            'latent': {'mean': jnp.zeros(shape), 'scale': jnp.ones(())},
        }

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Measure mean and scale on the latents of training scans `(n, x, y, z, 1)`.

        All channels get the same scale, from their joint standard deviation: separate scales would
        turn the fine components into noise. (The published constant, 0.18215, belongs to another
        model.) The mean is taken position by position, and is 0 without `process.centre_latents`.
        """
        encode = jax.jit(lambda v: self.autoencoder.encode(params, divide_by_maximum(v)))
        z = np.concatenate([np.asarray(encode(v[None])) for v in volumes])
        centred = self.process.centre_latents and len(z) > 1  # of one scan nothing would be left
        centre = z.mean(axis=0) if centred else np.zeros(z.shape[1:])
        spread = max(float((z - centre).std()), 1e-6)
        latent = {'mean': jnp.asarray(centre, jnp.float32), 'scale': jnp.float32(1.0 / spread)}
        return {**params, 'latent': latent}

    def encode(self, params: Params, volumes: jax.Array) -> jax.Array:
        """Normalised latents `(batch, x', y', z', c)` of volumes `(batch, x, y, z, 1)`."""
        z = self.autoencoder.encode(params, volumes)
        return (z - params['latent']['mean']) * params['latent']['scale']

    def decode(self, params: Params, z: jax.Array) -> jax.Array:
        """Volumes of normalised latents, in [0, 1]."""
        latent = params['latent']
        return self.autoencoder.decode(params, z / latent['scale'] + latent['mean'])

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of new pairs; see `example_loss`."""
        return self.example_loss(params, self.examples(params, batch, key, share), key, share)

    def examples(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> dict[str, jax.Array]:
        """Latents of new pairs, `(batch, ...)`; they depend on frozen parameters only.

        Returns:
            `healthy` and, for a conditional network, `diseased`; `touched`, 1 at the latents whose
            voxels a lesion touches; `lesion_ml`, the volume of each lesion.
        """
        pair = self.pairs(batch, jax.random.split(key, 3)[0], share)
        examples = {'healthy': self.encode(params, pair.healthy)}
        if self.conditional:
            examples['diseased'] = self.encode(params, pair.diseased)
        examples['touched'] = touched(pair.mask, examples['healthy'].shape)
        examples['lesion_ml'] = self.pairs.lesion_ml(pair)
        return jax.lax.stop_gradient(examples)

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Healthy counterparts of scans `(batch, x, y, z, 1)` in [0, 1], shaped alike.

        Of several samples the mean latent is decoded.
        """
        scans, peak = by_its_maximum(volumes)
        samples = self._samples(params, self.encode(params, scans), key)
        return peak * self.decode(params, samples.mean(axis=0))

    def counterparts(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Each sample as a volume, `(n, batch, x, y, z, 1)`; see `reconstruct`."""
        scans, peak = by_its_maximum(volumes)
        samples = self._samples(params, self.encode(params, scans), key)
        return jax.lax.map(lambda z: peak * self.decode(params, z), samples)


def touched(mask: jax.Array, latent_shape: tuple[int, ...]) -> jax.Array:
    """1 at the latents `(batch, x, y, z, 1)` whose blocks of voxels a lesion touches, else 0."""
    blocks = [(n, m // n) for n, m in zip(latent_shape[1:4], mask.shape[1:4], strict=True)]
    split = mask.reshape(len(mask), *(size for pair in blocks for size in pair))
    return split.max(axis=(2, 4, 6))[..., None]
