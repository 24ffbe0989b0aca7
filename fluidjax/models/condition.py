"""Encoders of the condition, the scan that the diffusion U-Net sees.

`VectorConditionEncoder` is the published one: position in two of the three axes is lost.
`SpatialConditionEncoder` is ours: the same idea with position kept, features at every resolution.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from fluidjax.base.errors import UserError
from fluidjax.models.conv import Conv3D
from fluidjax.models.layers import Dense, Downsample, GroupNorm, ResBlock, SelfAttention

PUBLISHED_GROUPS, PUBLISHED_EPS = 32, 1e-5


class HalfBlock(nn.Module):
    """GN-SiLU-conv plus the input: the published encoder's block, which has no second half."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.silu(GroupNorm(PUBLISHED_GROUPS, PUBLISHED_EPS, name='norm')(x))
        h = Conv3D(self.features, name='conv')(h)
        if x.shape[-1] != self.features:
            x = Conv3D(self.features, kernel_size=1, name='skip')(x)
        return x + h


class VectorConditionEncoder(nn.Module):
    """Latent (b, slices, y, z, c) -> (b, out_channels * slices), index = channel * slices + slice.

    Halves the last two axes only and averages over them. Published sizes: 805,376 parameters.
    """

    channels: tuple[int, ...] = (32, 64, 64, 64)
    out_channels: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = Conv3D(self.channels[0], name='conv_in')(x)
        for level, channels in enumerate(self.channels):
            if level:
                h = Downsample(h.shape[-1], strides=(1, 2, 2), name=f'down_{level - 1}_downsample')(
                    h
                )
            h = HalfBlock(channels, name=f'down_{level}_res')(h)
            if level == 0:
                h = _published_attention('down_0_attn')(h)
        h = HalfBlock(channels, name='mid_res_1')(h)
        h = _published_attention('mid_attn')(h)
        h = HalfBlock(channels, name='mid_res_2')(h)
        h = nn.silu(GroupNorm(PUBLISHED_GROUPS, PUBLISHED_EPS, name='norm_out')(h))
        pooled = h.mean((2, 3), keepdims=True)
        out = Conv3D(self.out_channels, kernel_size=1, name='conv_out')(pooled)[:, :, 0, 0]
        return out.swapaxes(1, 2).reshape((x.shape[0], -1))


def _published_attention(name: str) -> SelfAttention:
    return SelfAttention(PUBLISHED_GROUPS, PUBLISHED_EPS, zero_init=True, name=name)


class SpatialConditionEncoder(nn.Module):
    """Latent (b, x, y, z, c) -> one feature map per level, at the U-Net's resolutions.

    Attributes:
        channels: number of features per level; each level after the first halves the grid.
        position_shape: grid (x, y, z) of a learned bias of the first features, zero at the start,
            which encodes the position (volumes are aligned to an atlas); None for no bias.
        global_context: add to every map a vector of the whole, the mean of the deepest features.
    """

    channels: tuple[int, ...]
    num_res_blocks: int = 1
    norm_num_groups: int = 32
    position_shape: tuple[int, int, int] | None = None
    global_context: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        h = self._with_position(Conv3D(self.channels[0], name='conv_in')(x))
        features = []
        for level, channels in enumerate(self.channels):
            if level:
                h = Downsample(h.shape[-1], name=f'down_{level - 1}_downsample')(h)
            for block in range(self.num_res_blocks):
                h = ResBlock(channels, self.norm_num_groups, name=f'down_{level}_res_{block}')(h)
            features.append(GroupNorm(self.norm_num_groups, name=f'norm_{level}')(h))
        return tuple(self._with_context(features) if self.global_context else features)

    def _with_context(self, features: list[jax.Array]) -> list[jax.Array]:
        whole = nn.silu(features[-1].mean((1, 2, 3), keepdims=True))
        return [
            h + Dense(h.shape[-1], zero_init=True, name=f'context_{level}')(whole)
            for level, h in enumerate(features)
        ]

    def _with_position(self, h: jax.Array) -> jax.Array:
        if self.position_shape is None:
            return h
        if h.shape[1:4] != tuple(self.position_shape):
            raise UserError(
                f'condition: grid {h.shape[1:4]} differs from position_shape '
                f'{tuple(self.position_shape)}; set it to the latent grid, or to None'
            )
        shape = (*self.position_shape, h.shape[-1])
        return h + self.param('position', nn.initializers.zeros, shape).astype(h.dtype)
