"""U-Net in image space: volume(s) in, one volume out, at the same grid (regression, inpainting)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.models.conv import Conv3D, as_configured, check_arrangement
from fluidjax.models.layers import (
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


@dataclasses.dataclass(frozen=True)
class ImageUNetConfig:
    """Sizes of the image-space U-Net.

    Attributes:
        channels: one entry per level; each level after the first halves the grid.
        num_res_blocks: residual blocks per level, on the way down and on the way up.
        norm_num_groups: groups of the group norm, a divisor of every entry of `channels`.
        patch: side of the space-to-depth patches before the first convolution (1: none).
        in_channels: number of input volumes.
        dtype, remat, convolution: as in `AutoencoderConfig`.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256)
    num_res_blocks: int = 1
    norm_num_groups: int = 8
    patch: int = 1
    in_channels: int = 1
    dtype: str = 'float32'
    remat: bool = False
    convolution: str = dataclasses.field(default='auto', compare=False)

    def __post_init__(self) -> None:
        check_arrangement(self.convolution)
        compute_dtype(self.dtype)
        if not self.channels or self.patch < 1 or self.num_res_blocks < 1:
            raise UserError('unet: channels, patch and num_res_blocks must be at least 1')
        require_groups('unet', self.channels, self.norm_num_groups)

    @property
    def divisor(self) -> int:
        """Every side of the grid is a multiple of this."""
        return self.patch * 2 ** (len(self.channels) - 1)


class ImageUNet(nn.Module):
    """(b, x, y, z, in_channels) -> (b, x, y, z, 1), linear; black before any training."""

    config: ImageUNetConfig = ImageUNetConfig()

    @nn.compact
    @as_configured
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        require_divisible('image U-Net input', x.shape[1:4], c.divisor)
        h = space_to_depth(x, c.patch).astype(compute_dtype(c.dtype))
        h, skips = Conv3D(c.channels[0], name='conv_in')(h), []
        for level, channels in enumerate(c.channels):
            if level:
                h = Downsample(h.shape[-1], name=f'down_{level - 1}_downsample')(h)
            h = self._blocks(h, channels, f'down_{level}')
            skips.append(h)
        for level in reversed(range(len(c.channels) - 1)):
            h = Upsample(c.channels[level], name=f'up_{level}_upsample')(h)
            h = jnp.concatenate([h, skips[level]], axis=-1)
            h = self._blocks(h, c.channels[level], f'up_{level}')
        h = nn.silu(GroupNorm(c.norm_num_groups, name='norm_out')(h))
        h = Conv3D(c.patch**3, zero_init=True, name='conv_out')(h)
        return depth_to_space(h, c.patch).astype(x.dtype)

    def _blocks(self, h: jax.Array, channels: int, name: str) -> jax.Array:
        c = self.config
        for block in range(c.num_res_blocks):
            h = res_block(c.remat)(channels, c.norm_num_groups, name=f'{name}_res_{block}')(h)
        return h
