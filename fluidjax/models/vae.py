"""The 3-D variational autoencoder among the paper's rivals: one code vector for the whole brain.

Five 5x5x5 convolutions of stride 2 and 256 latents as published; widths are ours, the paper gives
none. The way back is the encoder's mirror with sub-pixel convolutions (Shi et al. 2016): a
convolution on the coarse grid whose channels become the eight fine voxels, which is what a
transposed convolution of stride 2 is, without its stride.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.models.conv import Conv3D, as_configured, check_arrangement
from fluidjax.models.layers import Dense, GroupNorm, compute_dtype, depth_to_space, require_groups

LOG_VAR_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE.

    Attributes:
        shape: sides of the volumes (x, y, z), multiples of 2^levels.
        channels: one entry per level; each level halves the grid.
        latent_size: size of the code of a volume.
        norm_num_groups: groups of the group norm, a divisor of every entry of `channels`.
        dtype: of the computation, 'float32' or 'bfloat16'.
        convolution: how convolutions are computed, 'auto', 'direct' or 'taps' (`conv.arranged`);
            it changes no result, so a run goes on with another.
    """

    shape: tuple[int, int, int]
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    latent_size: int = 256
    norm_num_groups: int = 8
    dtype: str = 'float32'
    convolution: str = dataclasses.field(default='auto', compare=False)

    def __post_init__(self) -> None:
        compute_dtype(self.dtype)
        check_arrangement(self.convolution)
        if not self.channels or self.latent_size < 1:
            raise UserError('vae: channels and latent_size must be at least 1')
        if any(side % 2 ** len(self.channels) for side in self.shape):
            raise UserError(
                f'vae.channels: the grid {tuple(self.shape)} cannot be halved '
                f'{len(self.channels)} times; give fewer levels'
            )
        require_groups('vae', self.channels, self.norm_num_groups)

    @property
    def coarse(self) -> tuple[int, int, int, int]:
        """Shape of the last features, channels last."""
        return (*(side // 2 ** len(self.channels) for side in self.shape), self.channels[-1])


class VAE(nn.Module):
    """Volume (b, x, y, z, 1) <-> code (b, latent_size)."""

    config: VAEConfig

    def setup(self) -> None:
        c = self.config
        self.down = [Conv3D(width, 5, 2) for width in c.channels]
        self.down_norms = [GroupNorm(c.norm_num_groups) for _ in c.channels]
        self.to_code, self.from_code = Dense(2 * c.latent_size), Dense(math.prod(c.coarse))
        widths = (*reversed(c.channels[:-1]), 1)
        self.up_norms = [GroupNorm(c.norm_num_groups) for _ in c.channels]
        self.up = [Conv3D(8 * width, 3, zero_init=width == 1) for width in widths]

    @as_configured
    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the code, float32."""
        h = x.astype(compute_dtype(self.config.dtype))
        for conv, norm in zip(self.down, self.down_norms):
            h = nn.silu(norm(conv(h)))
        code = self.to_code(h.reshape((h.shape[0], -1))).astype(jnp.float32)
        mu, log_var = jnp.split(code, 2, axis=-1)
        return mu, jnp.clip(log_var, *LOG_VAR_RANGE)

    @as_configured
    def decode(self, z: jax.Array) -> jax.Array:
        """Volume of a code, float32, not clipped; zero before any training."""
        c = self.config
        h = self.from_code(z.astype(compute_dtype(c.dtype))).reshape((-1, *c.coarse))
        for norm, conv in zip(self.up_norms, self.up):
            h = depth_to_space(conv(nn.silu(norm(h))), 2)
        return h.astype(jnp.float32)

    def __call__(self, x: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x_hat, mu, log_var; eps (b, latent_size) is standard normal."""
        mu, log_var = self.encode(x)
        return self.decode(mu + jnp.exp(0.5 * log_var) * eps), mu, log_var
