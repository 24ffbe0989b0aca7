"""The diffusion U-Net (DDPM in 3-D) and the ways to condition it.

`none`, `concat` and `vector` are the published LDM (46,640,134 parameters), cLDM (46,650,502) and
CondDiff (54,923,910). `spatial` is ours: CondDiff's second scale and shift, as maps; `both` adds a
vector of the whole scan to every map.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.models.condition import SpatialConditionEncoder, VectorConditionEncoder
from fluidjax.models.conv import Conv3D, as_configured, check_arrangement
from fluidjax.models.layers import (
    Dense,
    Downsample,
    GroupNorm,
    ResBlock,
    SelfAttention,
    Upsample,
    compute_dtype,
    require_divisible,
    require_groups,
    res_block,
    time_embedding,
)

CONDITIONS = ('none', 'concat', 'vector', 'spatial', 'both')
SPATIAL = ('spatial', 'both')


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the U-Net; the defaults are the published LDM.

    Attributes:
        channels: one entry per level; each level after the first halves the grid.
        num_res_blocks: residual blocks per level on the way down; one more on the way up.
        attention_levels: one flag per level; the middle always has attention.
        num_head_channels: channels per attention head (None: one head).
        condition: 'none'; 'concat' (on the channels of x); 'vector' (published CondDiff);
            'spatial' (maps of scale and shift at every level); 'both' (the maps, and in them a
            vector of the whole scan).
        condition_channels: features of the condition encoder, one entry per level. None: the
            published (32, 64, 64, 64) for 'vector', else `channels`.
        condition_num_res_blocks: residual blocks per level of the 'spatial' encoder.
        condition_slices: first side of the condition's grid, fixed for 'vector'.
        position_shape: grid of the learned position bias of the 'spatial' encoder, or None.
        dtype, remat, convolution: as in `AutoencoderConfig`.
    """

    in_channels: int = 3
    out_channels: int = 6
    channels: tuple[int, ...] = (128, 256, 256)
    num_res_blocks: int = 1
    attention_levels: tuple[bool, ...] = (False, False, True)
    num_head_channels: int | None = 256
    norm_num_groups: int = 32
    condition: str = 'none'
    condition_channels: tuple[int, ...] | None = None
    condition_num_res_blocks: int = 1
    condition_slices: int = 20
    position_shape: tuple[int, int, int] | None = None
    dtype: str = 'float32'
    remat: bool = False
    convolution: str = dataclasses.field(default='auto', compare=False)

    def __post_init__(self) -> None:
        check_arrangement(self.convolution)
        for name in ('channels', 'attention_levels', 'condition_channels', 'position_shape'):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        compute_dtype(self.dtype)
        if self.condition not in CONDITIONS:
            raise UserError(f'unet.condition: {self.condition!r} is not one of {CONDITIONS}')
        if not self.channels or len(self.attention_levels) != len(self.channels):
            raise UserError(
                f'unet.attention_levels: {len(self.attention_levels)} flags for '
                f'{len(self.channels)} channels; give one per level'
            )
        if self.condition in SPATIAL and len(self.spatial_channels) != len(self.channels):
            raise UserError(
                f'unet.condition_channels: {self.condition_channels} must have one '
                f'entry per level, {len(self.channels)}'
            )
        require_groups(
            'unet', (*self.channels, *self._normed_condition_channels()), self.norm_num_groups
        )

    def _normed_condition_channels(self) -> tuple[int, ...]:
        return self.spatial_channels if self.condition in SPATIAL else ()

    @property
    def spatial_channels(self) -> tuple[int, ...]:
        """Features of the 'spatial' condition encoder at each level."""
        return self.condition_channels or self.channels

    @property
    def divisor(self) -> int:
        """Every side of the latent grid is a multiple of this."""
        return 2 ** (len(self.channels) - 1)


class UNet(nn.Module):
    """(x, t, cond) -> model output (b, x, y, z, out_channels)."""

    config: UNetConfig = UNetConfig()

    @nn.compact
    @as_configured
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """x (b, x, y, z, in_channels) noisy latent; t (b,) step; cond (b, x, y, z, c) latent."""
        c = self.config
        _check_input(c, x, cond)
        dtype = compute_dtype(c.dtype)
        emb = self._embed_time(t).astype(dtype)
        x, cond = x.astype(dtype), None if cond is None else cond.astype(dtype)
        conds = self._encode_condition(cond)
        if c.condition == 'concat':
            x = jnp.concatenate([x, cond], axis=-1)
        skips = self._down(x, emb, conds)
        h = self._middle(skips[-1], emb, conds[-1])
        h = self._up(h, skips, emb, conds)
        h = nn.silu(GroupNorm(c.norm_num_groups, name='norm_out')(h))
        h = Conv3D(c.out_channels, zero_init=True, name='conv_out')(h)
        return h.astype(jnp.float32)

    def _embed_time(self, t: jax.Array) -> jax.Array:
        width = 4 * self.config.channels[0]
        emb = Dense(width, name='time_0')(time_embedding(t, self.config.channels[0]))
        return Dense(width, name='time_1')(nn.silu(emb))

    def _encode_condition(self, cond: jax.Array | None) -> tuple[jax.Array | None, ...]:
        """What the residual blocks of each level get of the condition."""
        c = self.config
        if c.condition in SPATIAL:
            return SpatialConditionEncoder(
                c.spatial_channels,
                c.condition_num_res_blocks,
                c.norm_num_groups,
                c.position_shape,
                c.condition == 'both',
                name='condition',
            )(cond)
        if c.condition == 'vector':
            sizes = c.condition_channels or VectorConditionEncoder.channels
            return (VectorConditionEncoder(sizes, name='condition')(cond),) * len(c.channels)
        return (None,) * len(c.channels)

    def _down(self, x: jax.Array, emb: jax.Array, conds: tuple) -> list[jax.Array]:
        c = self.config
        skips = [Conv3D(c.channels[0], name='conv_in')(x)]
        for level, channels in enumerate(c.channels):
            if level:
                below = Downsample(skips[-1].shape[-1], name=f'down_{level - 1}_downsample')
                skips.append(below(skips[-1]))
            for block in range(c.num_res_blocks):
                h = self._block(channels, f'down_{level}_res_{block}')(skips[-1], emb, conds[level])
                if c.attention_levels[level]:
                    h = self._attention(f'down_{level}_attn_{block}')(h)
                skips.append(h)
        return skips

    def _middle(self, h: jax.Array, emb: jax.Array, cond: jax.Array | None) -> jax.Array:
        channels = self.config.channels[-1]
        h = self._block(channels, 'mid_res_1')(h, emb, cond)
        h = self._attention('mid_attn')(h)
        return self._block(channels, 'mid_res_2')(h, emb, cond)

    def _up(self, h: jax.Array, skips: list, emb: jax.Array, conds: tuple) -> jax.Array:
        c = self.config
        skips = list(skips)
        for level in reversed(range(len(c.channels))):
            for block in range(c.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                name = f'up_{level}_res_{block}'
                h = self._block(c.channels[level], name)(h, emb, conds[level])
                if c.attention_levels[level]:
                    h = self._attention(f'up_{level}_attn_{block}')(h)
            if level:
                h = Upsample(c.channels[level], name=f'up_{level}_upsample')(h)
        return h

    def _block(self, channels: int, name: str) -> ResBlock:
        c = self.config
        scale_shift = c.condition in ('vector', *SPATIAL)
        return res_block(c.remat)(
            channels, c.norm_num_groups, scale_shift=scale_shift, zero_init=True, name=name
        )

    def _attention(self, name: str) -> SelfAttention:
        c = self.config
        # The published networks never use their output projection; ours has no reason not to.
        return SelfAttention(
            c.norm_num_groups,
            head_channels=c.num_head_channels,
            project=c.condition in SPATIAL,
            name=name,
        )


def _check_input(c: UNetConfig, x: jax.Array, cond: jax.Array | None) -> None:
    require_divisible('unet input', x.shape[1:4], c.divisor)
    if x.shape[-1] != c.in_channels:
        raise UserError(f'unet.in_channels: is {c.in_channels}, the latent has {x.shape[-1]}')
    if (cond is None) != (c.condition == 'none'):
        state = 'missing' if cond is None else 'given'
        raise UserError(f'unet.condition: is {c.condition!r}, but a condition is {state}')
    if c.condition in ('concat', *SPATIAL) and cond.shape[:4] != x.shape[:4]:
        raise UserError(f'condition: shape {cond.shape[:4]} differs from the latent {x.shape[:4]}')
    if c.condition == 'vector' and cond.shape[1] != c.condition_slices:
        raise UserError(
            f'unet.condition_slices: is {c.condition_slices}, the condition has '
            f'{cond.shape[1]} along its first axis; its encoder has a fixed size'
        )
