"""Patch discriminator of the autoencoder's adversarial loss (pix2pix in 3-D; published sizes).

Convolutions of kernel 4: `num_layers` with stride 2, then two with stride 1. Batch norm uses the
statistics of the batch always, so the network is a pure function without running state. Also the
losses of generator and discriminator, and feature matching.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.models.conv import Conv3D
from fluidjax.models.layers import compute_dtype

GAN_LOSSES = ('least_squares', 'hinge')


class BatchNorm(nn.Module):
    """Normalises each channel with the (biased) statistics of the batch, computed in float32.

    With the mapped `axis` the batch is that of all its devices.
    """

    eps: float = 1e-5
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
        whole = x.astype(jnp.float32)
        centred = whole - self._mean(whole)
        variance = self._mean(jnp.square(centred))
        normed = centred * jax.lax.rsqrt(variance + self.eps) * scale + bias
        return normed.astype(x.dtype)

    def _mean(self, x: jax.Array) -> jax.Array:
        mean = x.mean((0, 1, 2, 3))
        return mean if self.axis is None else jax.lax.pmean(mean, self.axis)


class Discriminator(nn.Module):
    """Volume (b, x, y, z, 1) -> one unbounded logit for each overlapping patch, (b, x', y', z', 1).

    24,830,689 parameters with the published 96 features.
    """

    features: int = 96
    num_layers: int = 3
    dtype: str = 'float32'
    axis: str | None = None  # of `BatchNorm`

    @nn.compact
    def __call__(
        self, x: jax.Array, return_features: bool = False
    ) -> jax.Array | tuple[jax.Array, list[jax.Array]]:
        """The logits, float32; with `return_features` also the `num_layers` + 1 activations."""
        smallest = 3 * 2**self.num_layers
        if min(x.shape[1:4]) < smallest:
            raise UserError(
                f'discriminator input: sides {x.shape[1:4]} are below {smallest}; '
                'use fewer num_layers or a larger grid'
            )
        x = x.astype(compute_dtype(self.dtype))
        features = [nn.leaky_relu(Conv3D(self.features, 4, 2, 1, name='conv_0')(x), 0.2)]
        for layer in range(1, self.num_layers + 1):
            width = self.features * min(2**layer, 8)
            strides = 2 if layer < self.num_layers else 1
            h = Conv3D(width, 4, strides, 1, use_bias=False, name=f'conv_{layer}')(features[-1])
            features.append(nn.leaky_relu(BatchNorm(axis=self.axis, name=f'norm_{layer}')(h), 0.2))
        logits = Conv3D(1, 4, 1, 1, name=f'conv_{self.num_layers + 1}')(features[-1])
        logits = logits.astype(jnp.float32)
        return (logits, features) if return_features else logits


def generator_loss(kind: str, fake: jax.Array) -> jax.Array:
    """The autoencoder's loss of the logits D(x_hat) of its reconstructions, a scalar.

    'least_squares': E (D(x_hat) - 1)^2 (Mao et al. 2017, eq. 9, without its 1/2, as published);
    'hinge': -E D(x_hat) (Lim and Ye 2017).
    """
    return -jnp.mean(fake) if _is_hinge(kind) else jnp.mean(jnp.square(fake - 1.0))


def discriminator_loss(kind: str, real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's loss of its logits D(x) and D(x_hat), a scalar.

    'least_squares': 1/2 E (D(x) - 1)^2 + 1/2 E D(x_hat)^2;
    'hinge': 1/2 E max(0, 1 - D(x)) + 1/2 E max(0, 1 + D(x_hat)), with the halves of VQGAN
    (Esser et al. 2021, code), so that both kinds have the same weight.
    """
    if _is_hinge(kind):
        terms = nn.relu(1.0 - real), nn.relu(1.0 + fake)
    else:
        terms = jnp.square(real - 1.0), jnp.square(fake)
    return 0.5 * (jnp.mean(terms[0]) + jnp.mean(terms[1]))


def feature_matching(real: Sequence[jax.Array], fake: Sequence[jax.Array]) -> jax.Array:
    """Sum over layers of the mean |D_i(x) - D_i(x_hat)| (Wang et al. 2018, pix2pixHD, eq. 4)."""
    return sum(jnp.mean(jnp.abs(r - f)) for r, f in zip(real, fake, strict=True))


def _is_hinge(kind: str) -> bool:
    if kind not in GAN_LOSSES:
        raise UserError(f'discriminator loss: {kind!r} is not one of {", ".join(GAN_LOSSES)}')
    return kind == 'hinge'
