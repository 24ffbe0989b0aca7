"""Parts of our networks once more in PyTorch, to time both frameworks on the same work.

The networks take the settings of `fluidjax.models`, name their parts alike and compute the same
function, channels first: (b, c, x, y, z). They need PyTorch, an optional package.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

EPS = 1e-6


def conv(inputs: int, outputs: int, size: int = 3, **how: int | tuple[int, ...]) -> nn.Conv3d:
    """A convolution that keeps the grid at stride 1."""
    return nn.Conv3d(inputs, outputs, size, **{'padding': size // 2, **how})


class Dense(nn.Linear):
    """A linear layer on the channels of (b, n, c), (b, c) or a volume (b, c, x, y, z)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 5:
            return F.conv3d(x, self.weight[:, :, None, None, None], self.bias)
        return super().forward(x)


class ResBlock(nn.Module):
    """`fluidjax.models.layers.ResBlock`.

    Args:
        inputs, outputs: channels.
        groups: of the group norms.
        emb, cond: widths of the embedding of the time and of the condition; None for none.
        scale_shift: whether the time scales and shifts.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        emb: int | None = None,
        cond: int | None = None,
        scale_shift: bool = False,
        remat: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift, self.remat = scale_shift, remat
        self.norm1, self.conv1 = nn.GroupNorm(groups, inputs, EPS), conv(inputs, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(groups, outputs, EPS), conv(outputs, outputs)
        self.time_proj = None if emb is None else Dense(emb, (1 + scale_shift) * outputs)
        self.cond_proj = None if cond is None else Dense(cond, 2 * outputs)
        self.skip = None if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        if self.remat and torch.is_grad_enabled():
            return checkpoint(self._compute, x, emb, cond, use_reentrant=False)
        return self._compute(x, emb, cond)

    def _compute(self, x: Tensor, emb: Tensor | None, cond: Tensor | None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        time = None if self.time_proj is None else over_space(self.time_proj(F.silu(emb)))
        if time is not None and not self.scale_shift:
            h = h + time
        h = self.norm2(h)
        if time is not None and self.scale_shift:
            h = _modulate(h, time)
        if self.cond_proj is not None:
            h = _modulate(h, over_space(self.cond_proj(F.silu(cond))))
        h = self.conv2(F.silu(h))
        return h + (x if self.skip is None else self.skip(x))


def over_space(x: Tensor) -> Tensor:
    return x[:, :, None, None, None] if x.ndim == 2 else x


def _modulate(h: Tensor, scale_and_shift: Tensor) -> Tensor:
    scale, shift = scale_and_shift.chunk(2, dim=1)
    return h * (1.0 + scale) + shift


class Downsample(nn.Module):
    """A convolution with stride; `at_end` pads one voxel at the end of each axis only."""

    def __init__(self, channels: int, stride: int | tuple = 2, at_end: bool = False) -> None:
        super().__init__()
        self.at_end = at_end
        self.conv = conv(channels, channels, stride=stride, padding=0 if at_end else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1) * 3) if self.at_end else x)


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))


class SelfAttention(nn.Module):
    """Attention among all voxels; without `project` the projection's parameters are not used."""

    def __init__(
        self, channels: int, groups: int, eps: float, per_head: int | None, project: bool
    ) -> None:
        super().__init__()
        self.project, self.heads = project, channels // (per_head or channels)
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.to_q, self.to_k, self.to_v = (Dense(channels, channels) for _ in range(3))
        self.proj_attn = Dense(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            to(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = self.proj_attn(out) if self.project else out
        return x + out.transpose(1, 2).reshape(x.shape)


class Levels(nn.Module):
    """A network whose parts are named by their level: `down_0_res_0`, `up_1_upsample`."""

    def add(self, name: str, module: nn.Module) -> None:
        """Add a part."""
        self.add_module(name, module)

    def run(self, name: str, *inputs: Tensor | None) -> Tensor:
        """Apply a part."""
        return getattr(self, name)(*inputs)

    def add_blocks(self, name: str, c: Any, inputs: int, outputs: int) -> int:
        """Add the residual blocks of a level, whose sizes are in `c`; returns their channels."""
        for block in range(c.num_res_blocks):
            made = ResBlock(inputs, outputs, c.norm_num_groups, remat=c.remat)
            self.add(f'{name}_res_{block}', made)
            inputs = outputs
        return outputs

    def run_blocks(self, name: str, c: Any, h: Tensor) -> Tensor:
        """Apply the residual blocks of a level."""
        for block in range(c.num_res_blocks):
            h = self.run(f'{name}_res_{block}', h)
        return h


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """(b,) steps -> (b, dim), as `fluidjax.models.layers.time_embedding`."""
    half = dim // 2
    powers = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * powers)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """(b, c, x, y, z) -> (b, p^3 c, x/p, y/p, z/p), c fastest among the new channels."""
    if patch == 1:
        return x
    split = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return split.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4)


def depth_to_space(x: Tensor, patch: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    if patch == 1:
        return x
    split = x.unflatten(1, (patch, patch, patch, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return split.flatten(6, 7).flatten(4, 5).flatten(2, 3)
