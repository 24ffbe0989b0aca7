"""Patch discriminator of the autoencoder's adversarial loss (pix2pix in 3-D; published sizes).

Convolutions of kernel 4: `num_layers` with stride 2, then two with stride 1. Batch norm uses the
statistics of the batch always, so the network is a pure function without running state.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fluidjax.errors import UserError
from fluidjax.models.conv import Conv3D


class BatchNorm(nn.Module):
    """Normalises each channel over batch and space with the (biased) statistics of the batch."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
        centred = x - x.mean((0, 1, 2, 3))
        variance = jnp.square(centred).mean((0, 1, 2, 3))
        return centred * jax.lax.rsqrt(variance + self.eps) * scale + bias


class Discriminator(nn.Module):
    """Volume (b, x, y, z, 1) -> one unbounded logit for each overlapping patch, (b, x', y', z', 1).

    24,830,689 parameters with the published 96 features.
    """

    features: int = 96
    num_layers: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        smallest = 3 * 2**self.num_layers
        if min(x.shape[1:4]) < smallest:
            raise UserError(f'discriminator input: sides {x.shape[1:4]} are below {smallest}; '
                            'use fewer num_layers or a larger grid')
        h = Conv3D(self.features, 4, 2, 1, name='conv_0')(x)
        for layer in range(1, self.num_layers + 1):
            h = nn.leaky_relu(h, 0.2)
            width = self.features * min(2**layer, 8)
            strides = 2 if layer < self.num_layers else 1
            h = Conv3D(width, 4, strides, 1, use_bias=False, name=f'conv_{layer}')(h)
            h = BatchNorm(name=f'norm_{layer}')(h)
        return Conv3D(1, 4, 1, 1, name=f'conv_{self.num_layers + 1}')(nn.leaky_relu(h, 0.2))
