"""KL autoencoder: volume -> small latent, and back (the published one, and one with a patch stem).

Default configuration: the published network (arXiv:2506.10233; 13,766,248 parameters), three
stride-2 halvings, no attention. With `patch=p` all convolutions run on a p times coarser grid, and
`linear_path` starts the whole as a linear code of patches (`linear_code.with_linear_start`).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.models.conv import Conv3D, as_configured, check_arrangement, folds_pairs
from fluidjax.models.folding import fold, unfold
from fluidjax.models.layers import (
    Dense,
    Downsample,
    GroupNorm,
    Upsample,
    compute_dtype,
    depth_to_space,
    require_divisible,
    require_groups,
    res_block,
    space_to_depth,
)

END_PADDING = ((0, 1), (0, 1), (0, 1))  # the published halving pads one voxel at the end of an axis
LOG_VAR_RANGE = (-30.0, 20.0)
LINEAR_LOG_VAR = -8.0  # start value of a linear code: a noise of 0.02, far below its components


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are the published ones.

    Attributes:
        channels: one entry per level; each level after the first halves the grid.
        num_res_blocks: residual blocks per level.
        norm_num_groups: groups of the group norm, a divisor of every entry of `channels`.
        patch: side of the space-to-depth patches before the first convolution (1: none).
        linear_path: add a linear map of patches to the mean and to the reconstruction.
        in_channels: channels of the volume.
        dtype: of the computation, 'float32' or 'bfloat16'; parameters, norms, inputs and outputs
            are float32.
        remat: recompute the residual blocks, and the decoder's end, in the backward pass instead of
            storing their activations: less memory, about a third more work.
        convolution: how convolutions are computed, 'auto', 'direct' or 'taps' (`conv.arranged`);
            it changes no result, so networks that differ only in it are equal.
    """

    channels: tuple[int, ...] = (64, 128, 128, 128)
    num_res_blocks: int = 2
    latent_channels: int = 3
    norm_num_groups: int = 32
    patch: int = 1
    linear_path: bool = False
    in_channels: int = 1
    dtype: str = 'float32'
    remat: bool = False
    convolution: str = dataclasses.field(default='auto', compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'channels', tuple(self.channels))
        compute_dtype(self.dtype)
        check_arrangement(self.convolution)
        if not self.channels or self.patch < 1 or self.num_res_blocks < 1:
            raise UserError('autoencoder: channels, patch and num_res_blocks must be at least 1')
        require_groups('autoencoder', self.channels, self.norm_num_groups)

    @property
    def factor(self) -> int:
        """Voxels of the volume along one side of a latent voxel."""
        return self.patch * 2 ** (len(self.channels) - 1)


class Encoder(nn.Module):
    """(b, x, y, z, patch^3 c) -> (b, x/2^l, y/2^l, z/2^l, latent_channels), l = levels - 1."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        folded = len(c.channels) > 1 and folds_pairs(c.channels[0], x.shape[1])
        h = Conv3D(c.channels[0], folded=folded, name='conv_in')(fold(x) if folded else x)
        for level, channels in enumerate(c.channels):
            if level:
                h = Downsample(
                    c.channels[level - 1],
                    padding=END_PADDING,
                    folded=folded,
                    name=f'down_{level - 1}_downsample',
                )(h)
                folded = False
            for block in range(c.num_res_blocks):
                h = res_block(c.remat)(
                    channels, c.norm_num_groups, folded=folded, name=f'down_{level}_res_{block}'
                )(h)
        h = GroupNorm(c.norm_num_groups, name='norm_out')(h)  # no SiLU follows, as published
        return Conv3D(c.latent_channels, zero_init=c.linear_path, name='conv_out')(h)


class Decoder(nn.Module):
    """The mirror of `Encoder`; ends in patch^3 c channels, linear."""

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        c = self.config
        folded, last = False, len(c.channels) - 1
        h = Conv3D(c.channels[-1], name='conv_in')(z)
        for level, channels in enumerate(reversed(c.channels)):
            if level:
                folded = level == last and folds_pairs(channels, 2 * h.shape[1])
                h = Upsample(h.shape[-1], folded=folded, name=f'up_{level - 1}_upsample')(h)
            for block in range(c.num_res_blocks):
                h = res_block(c.remat)(
                    channels, c.norm_num_groups, folded=folded, name=f'up_{level}_res_{block}'
                )(h)
        end = nn.remat(Decoder._end, static_argnums=2) if c.remat else Decoder._end
        h = end(self, h, folded)
        return unfold(h) if folded else h

    def _end(self, h: jax.Array, folded: bool) -> jax.Array:
        c = self.config
        h = GroupNorm(c.norm_num_groups, folded=folded, name='norm_out')(h)
        out = c.patch**3 * c.in_channels
        return Conv3D(out, zero_init=c.linear_path, folded=folded, name='conv_out')(h)


class Autoencoder(nn.Module):
    """Volume (b, x, y, z, c) in [0, 1] <-> latent (b, x/f, y/f, z/f, latent_channels)."""

    config: AutoencoderConfig = AutoencoderConfig()

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        self.quant_mu = Conv3D(c.latent_channels, kernel_size=1)
        self.quant_log_var = Conv3D(c.latent_channels, kernel_size=1)
        self.post_quant = Conv3D(c.latent_channels, kernel_size=1)
        if c.linear_path:
            self.linear_encode = Dense(c.latent_channels)
            self.linear_decode = Dense(c.factor**3 * c.in_channels)

    @as_configured
    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z_mu and z_log_var, the latter clamped to [-30, 20]."""
        c = self.config
        require_divisible('autoencoder input', x.shape[1:4], c.factor)
        h = self.encoder(space_to_depth(x, c.patch).astype(compute_dtype(c.dtype)))
        h = h.astype(jnp.float32)
        z_mu, z_log_var = self.quant_mu(h), self.quant_log_var(h)
        if c.linear_path:
            z_mu = z_mu + self.linear_encode(space_to_depth(x, c.factor))
            z_log_var = z_log_var + LINEAR_LOG_VAR
        return z_mu, jnp.clip(z_log_var, *LOG_VAR_RANGE)

    @as_configured
    def decode(self, z: jax.Array) -> jax.Array:
        """Volume of a latent; linear output, not clipped to [0, 1]."""
        c = self.config
        h = self.decoder(self.post_quant(z).astype(compute_dtype(c.dtype)))
        x = depth_to_space(h, c.patch).astype(jnp.float32)
        if c.linear_path:
            x = x + depth_to_space(self.linear_decode(z), c.factor)
        return x

    def __call__(
        self, x: jax.Array, eps: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """recon, z_mu, z_log_var; eps is standard normal in the latent's shape (None: the mean)."""
        z_mu, z_log_var = self.encode(x)
        z = z_mu if eps is None else z_mu + jnp.exp(0.5 * z_log_var) * eps
        return self.decode(z), z_mu, z_log_var
