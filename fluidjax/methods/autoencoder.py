"""Stage one: the KL autoencoder with its adversarial and perceptual losses, on healthy scans."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.settings import check
from fluidjax.base.share import WHOLE, Share
from fluidjax.fluid.grid import Grid
from fluidjax.methods import Method
from fluidjax.methods.augment import AugmentSettings
from fluidjax.methods.pairs import by_its_maximum
from fluidjax.methods.scans import healthy_scans
from fluidjax.methods.variants import VariantSettings
from fluidjax.models import perceptual
from fluidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from fluidjax.models.conv import arranged
from fluidjax.models.discriminator import (
    GAN_LOSSES,
    Discriminator,
    discriminator_loss,
    feature_matching,
    generator_loss,
)
from fluidjax.models.linear_code import principal_components, with_linear_start
from fluidjax.models.weights_file import read_state_dict
from fluidjax.synthesis.generate import SynthesisSettings

Params = dict[str, Any]
RECONSTRUCTIONS = ('squared', 'absolute')


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """Terms of the loss, with weights relative to the reconstruction's (arXiv:2506.10233).

    Attributes:
        kl: weight of KL(q(z|x) || N(0, 1)), summed over the latent.
        adversarial: weight of the terms of generator and discriminator.
        discriminator_features: width of the patch discriminator.
        discriminator_layers: its stride-2 convolutions.
        reconstruction: mean 'squared' (published) or 'absolute' error.
        gan: 'least_squares' (published) or 'hinge'.
        perceptual: weight of the perceptual term (published: 0.002); 0 leaves it out.
        perceptual_weights: files that together hold torchvision's squeezenet1_1 and the lpips
            package's squeeze.pth (.npz, .safetensors, .pt or .pth): the term is LPIPS. Without
            them it is feature matching on the discriminator.
        perceptual_share: share of the slices of each axis that LPIPS sees in a step.
    """

    kl: float = 1e-8
    adversarial: float = 1e-3
    discriminator_features: int = 96
    discriminator_layers: int = 3
    reconstruction: str = 'squared'
    gan: str = 'least_squares'
    perceptual: float = 0.0
    perceptual_weights: tuple[str, ...] = ()
    perceptual_share: float = 0.25

    def __post_init__(self) -> None:
        for name, choices in (('reconstruction', RECONSTRUCTIONS), ('gan', GAN_LOSSES)):
            self._check(name, getattr(self, name) in choices, f'one of {", ".join(choices)}')
        for name in ('kl', 'adversarial', 'perceptual'):
            self._check(name, getattr(self, name) >= 0, '0 or more')
        for name in ('discriminator_features', 'discriminator_layers'):
            self._check(name, getattr(self, name) >= 1, '1 or more')
        self._check('perceptual_share', 0 < self.perceptual_share <= 1, 'in (0, 1]')
        advice = "file names in parentheses, ('squeezenet1_1.pth', 'squeeze.pth')"
        self._check('perceptual_weights', isinstance(self.perceptual_weights, tuple), advice)

    def _check(self, name: str, holds: bool, must_be: str) -> None:
        value = getattr(self, name)
        check(holds, f'autoencoder.losses.{name}', value, f'must be {must_be}')

    @property
    def perceptual_kind(self) -> str | None:
        """'lpips', 'feature_matching' or None."""
        if not self.perceptual:
            return None
        return 'lpips' if self.perceptual_weights else 'feature_matching'


@dataclasses.dataclass(frozen=True)
class AutoencoderMethod(Method):
    """The autoencoder as a method of its own: its counterpart is the reconstructed scan.

    Attributes:
        grid: shape and voxel size of the volumes.
        network: sizes.
        losses: weights.
        augment: of the training scans.
        variants: further changes of them, or None.
        synthesis: how they are made from tissue fractions; None: they are given.
    """

    grid: Grid
    network: AutoencoderConfig
    losses: AutoencoderLoss
    augment: AugmentSettings
    variants: VariantSettings | None = None
    synthesis: SynthesisSettings | None = None

    stage = 'autoencoder'
    trainable = ('autoencoder', 'discriminator')
    pairs = None
    autoencoder = None

    def __post_init__(self) -> None:
        if any(n % self.network.factor for n in self.grid.shape):
            raise UserError(
                f'config.autoencoder.network: the grid {self.grid.shape} does not '
                f'divide by {self.network.factor}, the side of a latent voxel'
            )
        lpips = self.losses.perceptual_kind == 'lpips'
        if lpips and min(self.grid.shape) < perceptual.SMALLEST_SIDE:
            raise UserError(
                'config.autoencoder.losses.perceptual_weights: LPIPS needs sides of '
                f'{perceptual.SMALLEST_SIDE} voxels, the grid is {self.grid.shape}; '
                'leave it empty for feature matching'
            )

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one latent, channels last."""
        sides = [n // self.network.factor for n in self.grid.shape]
        return (*sides, self.network.latent_channels)

    @property
    def _network(self) -> Autoencoder:
        return Autoencoder(self.network)

    def _discriminator(self, axis: str | None = None) -> Discriminator:
        losses = self.losses
        return Discriminator(
            losses.discriminator_features, losses.discriminator_layers, self.network.dtype, axis
        )

    def init(self, key: jax.Array) -> Params:
        """Random parameters of autoencoder and discriminator; zeros in place of LPIPS's weights."""
        k_auto, k_disc = jax.random.split(key)
        volume = jnp.zeros((1, *self.grid.shape, 1))
        params = {
            'autoencoder': self._network.init(k_auto, volume)['params'],
            'discriminator': self._discriminator().init(k_disc, volume)['params'],
        }
        if self.losses.perceptual_kind == 'lpips':
            params['perceptual'] = perceptual.blank_params()
        return params

    def prepare(self, params: Params, volumes: np.ndarray) -> Params:
        """Start from the principal components of the scans' patches, with `network.linear_path`.

        Also reads the weights of LPIPS, which are part of the checkpoint from then on.

        Raises:
            UserError: the weights cannot be read, or are not those of LPIPS.
        """
        if self.losses.perceptual_kind == 'lpips':
            params = {**params, 'perceptual': _read_lpips(self.losses.perceptual_weights)}
        if not self.network.linear_path:
            return params
        weights = (volumes[..., 0] > 0).astype(np.float32)
        basis = principal_components(
            volumes, self.network.factor, self.network.latent_channels, weights, center=False
        )
        return {**params, 'autoencoder': with_linear_start(params['autoencoder'], basis)}

    def encode(self, params: Params, volumes: jax.Array) -> jax.Array:
        """Mean latents `(batch, x', y', z', channel)`, unscaled."""
        return self._network.apply({'params': params['autoencoder']}, volumes, method='encode')[0]

    def decode(self, params: Params, z: jax.Array) -> jax.Array:
        """Volumes of latents, clipped to [0, 1]."""
        volumes = self._network.apply({'params': params['autoencoder']}, z, method='decode')
        return jnp.clip(volumes, 0.0, 1.0)

    def loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses of generator and discriminator in one sum.

        Each has the parameters of the other behind `stop_gradient`, so the gradient of the sum
        consists of the gradients of the two losses.
        """
        # Divided by their maxima, as all that it encodes later.
        x, _ = by_its_maximum(healthy_scans(self, batch, key, share)[0])
        k_eps = jax.random.split(key)[1]
        eps = share.normal(k_eps, (x.shape[0], *self.latent_shape))
        x_hat, z_mu, z_log_var = self._network.apply({'params': params['autoencoder']}, x, eps)
        # 1. reconstruction
        mse = jnp.mean((x - x_hat) ** 2)
        error, errors = mse, {'mse': mse, 'psnr': -10.0 * jnp.log10(share.device_mean(mse))}
        if self.losses.reconstruction == 'absolute':
            error = errors['l1'] = jnp.mean(jnp.abs(x - x_hat))
        # 2. KL(N(z_mu, z_sigma^2) || N(0, 1))
        kl = 0.5 * jnp.mean(
            jnp.sum(z_mu**2 + jnp.exp(z_log_var) - 1.0 - z_log_var, axis=(1, 2, 3, 4))
        )
        # 3. fooling the discriminator, 4. the discriminator's own, 5. the perceptual one
        players, matching = self._adversarial_terms(params['discriminator'], x, x_hat, share.axis)
        weights, seen = self.losses, {}
        if weights.perceptual_kind == 'feature_matching':
            seen = {'feature_matching': matching}
        elif weights.perceptual_kind == 'lpips':
            k_slices = jax.random.fold_in(k_eps, 1)
            seen = {
                'lpips': perceptual.slice_distance(
                    params['perceptual'], k_slices, x, x_hat, weights.perceptual_share
                )
            }
        loss = (
            error
            + weights.kl * kl
            + weights.adversarial * sum(players.values())
            + weights.perceptual * sum(seen.values())
        )
        return loss, {**errors, 'kl': kl, **players, **seen}

    def validation_loss(
        self, params: Params, batch: dict[str, jax.Array], key: jax.Array, share: Share = WHOLE
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`loss` without the two players', which rise where the discriminator gets better."""
        loss, metrics = self.loss(params, batch, key, share)
        players = metrics['generator'] + metrics['discriminator']
        return loss - self.losses.adversarial * players, metrics

    def _adversarial_terms(
        self, theta: Params, x: jax.Array, x_hat: jax.Array, axis: str | None
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The two players' losses, and the distance of the discriminator's features.

        Args:
            theta: the discriminator's parameters.
            x, x_hat: scans and reconstructions (b, x, y, z, 1).
            axis: the mapped axis whose devices share the batch.
        """

        def judge(theta: Params, volume: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            with arranged(self.network.convolution):
                return self._discriminator(axis).apply(
                    {'params': theta}, volume, return_features=True
                )

        fixed = jax.lax.stop_gradient
        fooled, fake_features = judge(fixed(theta), x_hat)
        real, real_features = judge(theta, x)
        fake, _ = judge(theta, fixed(x_hat))
        kind = self.losses.gan
        players = {
            'generator': generator_loss(kind, fooled),
            'discriminator': discriminator_loss(kind, real, fake),
        }
        return players, feature_matching(fixed(real_features), fake_features)

    def reconstruct(self, params: Params, volumes: jax.Array, key: jax.Array) -> jax.Array:
        """The volumes after encoding and decoding, seen as the counterparts' latents are: divided
        by their maxima, so that its errors are those of the counterparts; `key` is not used."""
        del key
        scans, peak = by_its_maximum(volumes)
        return peak * self.decode(params, self.encode(params, scans))


def _read_lpips(files: tuple[str, ...]) -> Params:
    """Parameters of LPIPS from the files of a setting, all read into one."""
    try:
        weights = {
            name: array for file in files for name, array in read_state_dict(Path(file)).items()
        }
        return perceptual.lpips_params(weights)
    except UserError as error:
        raise UserError(f'config.autoencoder.losses.perceptual_weights: {error}') from error
