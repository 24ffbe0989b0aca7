"""The diffusion U-Net and its condition encoders in PyTorch; see `torch_layers`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluidjax.bench.torch_layers import (
    EPS,
    Dense,
    Downsample,
    Levels,
    ResBlock,
    SelfAttention,
    Upsample,
    conv,
    over_space,
    time_embedding,
)
from fluidjax.models.condition import PUBLISHED_EPS, PUBLISHED_GROUPS, VectorConditionEncoder
from fluidjax.models.unet import SPATIAL, UNetConfig


class HalfBlock(nn.Module):
    """`fluidjax.models.condition.HalfBlock`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(PUBLISHED_GROUPS, inputs, PUBLISHED_EPS)
        self.conv = conv(inputs, outputs)
        self.skip = None if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(x))) + (x if self.skip is None else self.skip(x))


class VectorCondition(Levels):
    """CondDiff's condition encoder: (b, c, slices, y, z) -> (b, 64 slices)."""

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels, width = len(channels), channels[0]
        self.conv_in = conv(inputs, width)
        for level, outputs in enumerate(channels):
            if level:
                self.add(f'down_{level - 1}_downsample', Downsample(width, (1, 2, 2)))
            self.add(f'down_{level}_res', HalfBlock(width, outputs))
            width = outputs
        first, last = (
            SelfAttention(c, PUBLISHED_GROUPS, PUBLISHED_EPS, None, True)
            for c in (channels[0], width)
        )
        self.down_0_attn, self.mid_attn = first, last
        self.mid_res_1, self.mid_res_2 = HalfBlock(width, width), HalfBlock(width, width)
        self.norm_out = nn.GroupNorm(PUBLISHED_GROUPS, width, PUBLISHED_EPS)
        self.conv_out = conv(width, VectorConditionEncoder.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in range(self.levels):
            h = self.run(f'down_{level - 1}_downsample', h) if level else h
            h = self.run(f'down_{level}_res', h)
            h = h if level else self.down_0_attn(h)
        h = self.mid_res_2(self.mid_attn(self.mid_res_1(h)))
        h = F.silu(self.norm_out(h)).mean((3, 4), keepdim=True)
        return self.conv_out(h).flatten(1)


class SpatialCondition(Levels):
    """Our condition encoder: (b, c, x, y, z) -> a feature map for each level."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, groups = config.spatial_channels, config.norm_num_groups
        self.blocks, self.levels = config.condition_num_res_blocks, len(channels)
        self.whole, self.position, width = config.condition == 'both', None, channels[0]
        self.conv_in = conv(config.in_channels, width)
        if config.position_shape is not None:
            self.position = nn.Parameter(torch.zeros(1, width, *config.position_shape))
        for level, outputs in enumerate(channels):
            if level:
                self.add(f'down_{level - 1}_downsample', Downsample(width))
            for block in range(self.blocks):
                self.add(f'down_{level}_res_{block}', ResBlock(width, outputs, groups))
                width = outputs
            self.add(f'norm_{level}', nn.GroupNorm(groups, width, EPS))
            if self.whole:
                self.add(f'context_{level}', Dense(channels[-1], width))

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.conv_in(x)
        h = h if self.position is None else h + self.position
        features = []
        for level in range(self.levels):
            h = self.run(f'down_{level - 1}_downsample', h) if level else h
            for block in range(self.blocks):
                h = self.run(f'down_{level}_res_{block}', h)
            features.append(self.run(f'norm_{level}', h))
        if not self.whole:
            return features
        whole = F.silu(features[-1].mean((2, 3, 4)))
        return [h + over_space(self.run(f'context_{i}', whole)) for i, h in enumerate(features)]


class UNet(Levels):
    """`fluidjax.models.unet.UNet`: (x, t, cond) -> (b, out_channels, x, y, z)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        self.emb = 4 * c.channels[0]
        self.time_0, self.time_1 = Dense(c.channels[0], self.emb), Dense(self.emb, self.emb)
        self.widths: tuple[int | None, ...] = (None,) * len(c.channels)
        if c.condition == 'vector':
            sizes = c.condition_channels or VectorConditionEncoder.channels
            self.condition = VectorCondition(c.in_channels, sizes)
            width = VectorConditionEncoder.out_channels * c.condition_slices
            self.widths = (width,) * len(c.channels)
        elif c.condition in SPATIAL:
            self.condition, self.widths = SpatialCondition(c), c.spatial_channels
        self.conv_in = conv((1 + (c.condition == 'concat')) * c.in_channels, c.channels[0])
        self._add_levels()
        self.norm_out = nn.GroupNorm(c.norm_num_groups, c.channels[0], EPS)
        self.conv_out = conv(c.channels[0], c.out_channels)

    def _add_levels(self) -> None:
        c, skips, last = self.config, [self.config.channels[0]], len(self.config.channels) - 1
        for level, channels in enumerate(c.channels):
            if level:
                self.add(f'down_{level - 1}_downsample', Downsample(skips[-1]))
                skips.append(skips[-1])
            for block in range(c.num_res_blocks):
                self._add_block(f'down_{level}', block, skips[-1], level)
                skips.append(channels)
        h = c.channels[-1]
        self.mid_res_1, self.mid_res_2 = self._block(h, last), self._block(h, last)
        self.mid_attn = self._attention(h)
        for level in reversed(range(len(c.channels))):
            for block in range(c.num_res_blocks + 1):
                self._add_block(f'up_{level}', block, h + skips.pop(), level)
                h = c.channels[level]
            if level:
                self.add(f'up_{level}_upsample', Upsample(h, h))

    def _add_block(self, name: str, block: int, inputs: int, level: int) -> None:
        self.add(f'{name}_res_{block}', self._block(inputs, level))
        if self.config.attention_levels[level]:
            self.add(f'{name}_attn_{block}', self._attention(self.config.channels[level]))

    def _block(self, inputs: int, level: int) -> ResBlock:
        c, cond = self.config, self.widths[level]
        scale_shift = cond is not None
        outputs = c.channels[level]
        return ResBlock(inputs, outputs, c.norm_num_groups, self.emb, cond, scale_shift, c.remat)

    def _attention(self, channels: int) -> SelfAttention:
        c = self.config
        project = c.condition in SPATIAL
        return SelfAttention(channels, c.norm_num_groups, EPS, c.num_head_channels, project)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        c = self.config
        emb = self.time_1(F.silu(self.time_0(time_embedding(t, c.channels[0]))))
        conds = [None] * len(c.channels)
        if c.condition == 'vector':
            conds = [self.condition(cond)] * len(c.channels)
        elif c.condition in SPATIAL:
            conds = self.condition(cond)
        x = torch.cat([x, cond], 1) if c.condition == 'concat' else x
        skips = self._down(self.conv_in(x), emb, conds)
        h = self.mid_attn(self.mid_res_1(skips[-1], emb, conds[-1]))
        h = self._up(self.mid_res_2(h, emb, conds[-1]), skips, emb, conds)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _down(self, h: Tensor, emb: Tensor, conds: list) -> list[Tensor]:
        skips = [h]
        for level in range(len(conds)):
            if level:
                skips.append(self.run(f'down_{level - 1}_downsample', skips[-1]))
            for block in range(self.config.num_res_blocks):
                skips.append(
                    self._apply_block(f'down_{level}', block, skips[-1], emb, conds[level])
                )
        return skips

    def _up(self, h: Tensor, skips: list[Tensor], emb: Tensor, conds: list) -> Tensor:
        for level in reversed(range(len(conds))):
            for block in range(self.config.num_res_blocks + 1):
                h = torch.cat([h, skips.pop()], 1)
                h = self._apply_block(f'up_{level}', block, h, emb, conds[level])
            h = self.run(f'up_{level}_upsample', h) if level else h
        return h

    def _apply_block(
        self, name: str, block: int, h: Tensor, emb: Tensor, cond: Tensor | None
    ) -> Tensor:
        h = self.run(f'{name}_res_{block}', h, emb, cond)
        attention = f'{name}_attn_{block}'
        return self.run(attention, h) if hasattr(self, attention) else h
