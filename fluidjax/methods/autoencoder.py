"""Stage one: the KL autoencoder with its adversarial loss, trained on healthy scans."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.augment import AugmentSettings, augment_batch
from fluidjax.errors import UserError
from fluidjax.fluid.grid import Grid
from fluidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from fluidjax.models.discriminator import Discriminator
from fluidjax.models.linear_code import principal_components, with_linear_start

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the loss's terms beside the mean squared error (METHOD.md, "Networks").

    Attributes:
        kl: of KL(q(z|x) || N(0, 1)), summed over the latent.
        adversarial: of the least-squares GAN's term.
        discriminator_features: width of the patch discriminator.
        discriminator_layers: its stride-2 convolutions.
    """

    kl: float = 1e-8
    adversarial: float = 1e-3
    discriminator_features: int = 96
    discriminator_layers: int = 3


@dataclasses.dataclass(frozen=True)
class AutoencoderMethod:
    """The autoencoder as a method of its own: it copies what it sees, within its means.

    Attributes:
        grid: shape and voxel size of the volumes.
        network: sizes.
        losses: weights.
        augment: of the training scans.
    """

    grid: Grid
    network: AutoencoderConfig
    losses: AutoencoderLoss
    augment: AugmentSettings

    stage = 'autoencoder'
    trainable = ('autoencoder', 'discriminator')

    def __post_init__(self) -> None:
        if any(n % self.network.factor for n in self.grid.shape):
            raise UserError(f'config.autoencoder.network: the grid {self.grid.shape} does not '
                            f'divide by {self.network.factor}, the side of a latent voxel')

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one latent, channels last."""
        sides = [n // self.network.factor for n in self.grid.shape]
        return (*sides, self.network.latent_channels)

    @property
    def _network(self) -> Autoencoder:
        return Autoencoder(self.network)

    @property
    def _discriminator(self) -> Discriminator:
        return Discriminator(self.losses.discriminator_features, self.losses.discriminator_layers)

    def init(self, key: jax.Array) -> Params:
        """Random parameters of the autoencoder and the discriminator."""
        k_auto, k_disc = jax.random.split(key)
        volume = jnp.zeros((1, *self.grid.shape, 1))
        return {
            'autoencoder': self._network.init(k_auto, volume)['params'],
            'discriminator': self._discriminator.init(k_disc, volume)['params'],
        }

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Start from the principal components of the scans' patches, where the network can."""
        if not self.network.linear_path:
            return params
        weights = (volumes[..., 0] > 0).astype(np.float32)
        basis = principal_components(
            volumes, self.network.factor, self.network.latent_channels, weights, center=False)
        return {**params, 'autoencoder': with_linear_start(params['autoencoder'], basis)}

    def encode(self, params: Params, volumes: jax.Array) -> jax.Array:
        """Mean latents `(batch, x', y', z', channel)`, unscaled."""
        return self._network.apply(
            {'params': params['autoencoder']}, volumes, method='encode')[0]

    def decode(self, params: Params, z: jax.Array) -> jax.Array:
        """Volumes of latents, clipped to [0, 1]."""
        volumes = self._network.apply({'params': params['autoencoder']}, z, method='decode')
        return jnp.clip(volumes, 0.0, 1.0)

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of both players in one value, each blind to the other's parameters.

        With the other's parameters behind `stop_gradient`, the gradient of the sum is the pair of
        gradients of the two least-squares GAN losses.
        """
        k_augment, k_eps = jax.random.split(key)
        x, _ = augment_batch(
            k_augment, batch['image'], batch['brain'], self.grid.spacing, self.augment)
        eps = jax.random.normal(k_eps, (x.shape[0], *self.latent_shape))
        recon, z_mu, z_log_var = self._network.apply({'params': params['autoencoder']}, x, eps)

        def judge(discriminator: Any, volume: jax.Array) -> jax.Array:
            return self._discriminator.apply({'params': discriminator}, volume)

        fixed = jax.lax.stop_gradient(params['discriminator'])
        # 1. reconstruction, 2. KL, 3. fooling the discriminator, 4. the discriminator's own
        mse = jnp.mean((x - recon) ** 2)
        kl = 0.5 * jnp.mean(jnp.sum(
            z_mu**2 + jnp.exp(z_log_var) - 1.0 - z_log_var, axis=(1, 2, 3, 4)))
        generator = jnp.mean((judge(fixed, recon) - 1.0) ** 2)
        real = judge(params['discriminator'], x)
        fake = judge(params['discriminator'], jax.lax.stop_gradient(recon))
        discriminator = 0.5 * (jnp.mean((real - 1.0) ** 2) + jnp.mean(fake**2))
        weights = self.losses
        loss = mse + weights.kl * kl + weights.adversarial * (generator + discriminator)
        return loss, {'mse': mse, 'psnr': -10.0 * jnp.log10(mse), 'kl': kl,
                      'generator': generator, 'discriminator': discriminator}

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """The volumes after encoding and decoding; `key` is not used."""
        del key
        return self.decode(params, self.encode(params, volumes))
