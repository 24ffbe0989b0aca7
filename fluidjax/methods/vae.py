"""VAE: the healthy counterpart is the reconstruction from a code of a few hundred numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.share import WHOLE, Share
from fluidjax.fluid.painting import divide_by_maximum
from fluidjax.methods import Method
from fluidjax.methods.pairs import PairMaker, by_its_maximum
from fluidjax.models.vae import VAE, VAEConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class VAELoss:
    """The bound's two terms (Kingma and Welling 2014; Higgins et al. 2017).

    Attributes:
        beta: weight of KL(q(z|x) || N(0, I)) (published: 1).
        noise: standard deviation of an intensity, in [0, 1], under the decoder's Gaussian; volumes
            of 1 mm^3 count as independent, so that a setting means the same on every grid.
    """

    beta: float = 1.0
    noise: float = 1.0


@dataclasses.dataclass(frozen=True)
class VAEMethod(Method):
    """A VAE of healthy scans.

    Attributes:
        network: sizes.
        losses: weights.
        pairs: augmentation; the images are healthy ones.
    """

    network: VAEConfig
    losses: VAELoss
    pairs: PairMaker

    stage = 'vae'
    trainable = ('vae',)
    autoencoder = None

    def init(self, key: jax.Array) -> Params:
        """Random parameters; the mean brain is 0 until `prepare`."""
        volume = jnp.zeros((1, *self.network.shape, 1))
        code = jnp.zeros((1, self.network.latent_size))
        return {
            'vae': VAE(self.network).init(key, volume, code)['params'],
            'mean': jnp.zeros(volume.shape[1:]),
        }

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Measure the mean of training scans `(n, x, y, z, 1)`, on which the decoder builds."""
        mean = np.mean([divide_by_maximum(np.asarray(v)) for v in volumes], axis=0)
        return {**params, 'mean': jnp.asarray(mean, jnp.float32)}

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The negative evidence lower bound, in nats per 1000 mm^3 of the volume."""
        k_pairs, k_eps = jax.random.split(key)
        x = self.pairs(batch, k_pairs, share).healthy
        eps = share.normal(k_eps, (x.shape[0], self.network.latent_size))
        x_hat, mu, log_var = VAE(self.network).apply(
            {'params': params['vae']}, x - params['mean'], eps
        )
        error = x - params['mean'] - x_hat
        mm3 = self.pairs.grid.voxel_ml * 1000.0
        likelihood = 0.5 * mm3 * jnp.sum(jnp.square(error / self.losses.noise), axis=(1, 2, 3, 4))
        kl = 0.5 * jnp.sum(mu**2 + jnp.exp(log_var) - 1.0 - log_var, axis=-1)
        size = mm3 * error[0].size / 1000.0
        loss = jnp.mean(likelihood + self.losses.beta * kl) / size
        return loss, {'mse': jnp.mean(error**2), 'kl': jnp.mean(kl)}

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """Volumes `(batch, x, y, z, 1)` of the codes' means; `key` is not used."""
        del key
        scans, peak = by_its_maximum(volumes)
        network, theta = VAE(self.network), {'params': params['vae']}
        mu, _ = network.apply(theta, scans - params['mean'], method='encode')
        x_hat = params['mean'] + network.apply(theta, mu, method='decode')
        return peak * jnp.clip(x_hat, 0.0, 1.0)
