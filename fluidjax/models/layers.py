"""Building blocks shared by the networks; volumes are (batch, x, y, z, channel).

Parameters are float32. A block computes in the dtype of its input, except for norms and the
softmax of attention, which are always float32: a network runs in bfloat16 if its input is cast to
it (`compute_dtype`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.models.conv import Conv3D, Pads, Triple

DTYPES = ('float32', 'bfloat16')


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of a network's `dtype` setting.

    Raises:
        UserError: it is neither float32 nor bfloat16.
    """
    if name not in DTYPES:
        raise UserError(f"network.dtype: '{name}' is not one of {', '.join(DTYPES)}")
    return jnp.dtype(name)


class Dense(nn.Module):
    """A linear layer on the last axis, computed in the dtype of its input."""

    features: int
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param('kernel', init, (x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over space and the channels of a group, computed in float32.

    With `folded` the features come as pairs of planes (`folding`), with two copies of each channel;
    with `silu` the activation follows.
    """

    num_groups: int = 32
    eps: float = 1e-6
    folded: bool = False
    silu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        copies = 2 if self.folded else 1
        channels = x.shape[-1] // copies
        if channels % self.num_groups:
            raise UserError(
                f'norm_num_groups: {self.num_groups} does not divide {channels} channels; '
                'choose a common divisor of all channels'
            )
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        scale, bias = jnp.tile(scale, copies), jnp.tile(bias, copies)
        flat = x.astype(jnp.float32).reshape((x.shape[0], -1, x.shape[-1]))
        # Space first, channel by channel: a quarter faster on CPUs than over a group's own axes.
        mean = self._over_group(flat.mean(1), copies)
        if x.dtype == jnp.bfloat16:
            # Both moments in one pass over memory: the input's own rounding is far coarser than
            # what float32 loses in the difference.
            square = self._over_group(jnp.square(flat).mean(1), copies)
            variance = jnp.maximum(square - jnp.square(mean), 0.0)
        else:
            variance = self._over_group(jnp.square(flat - mean).mean(1), copies)
        normed = (flat - mean) * (jax.lax.rsqrt(variance + self.eps) * scale) + bias
        normed = normed.reshape(x.shape).astype(x.dtype)
        return nn.silu(normed) if self.silu else normed

    def _over_group(self, per_channel: jax.Array, copies: int) -> jax.Array:
        """(b, c) -> (b, 1, c): each channel gets the mean of its group."""
        batch, channels = per_channel.shape
        size = channels // copies // self.num_groups
        means = per_channel.reshape((batch, copies, self.num_groups, size)).mean((1, 3))
        return jnp.tile(jnp.repeat(means, size, axis=-1), copies)[:, None]


class ResBlock(nn.Module):
    """GN-SiLU-conv, embedding, GN-SiLU-conv, plus the input (1x1x1 convolution if channels change).

    Attributes:
        features: channels out.
        scale_shift: the embedding scales and shifts after the second norm (diffusion autoencoders);
            otherwise it is added before it (DDPM).
        zero_init: start as the skip connection only.
        folded: features come and go as pairs of planes (`folding`); without embeddings.
        remat: in the backward pass compute the norms again when it comes to them, instead of
            keeping their float32 parts through that of the convolutions.
    """

    features: int
    num_groups: int = 32
    eps: float = 1e-6
    scale_shift: bool = False
    zero_init: bool = False
    folded: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, emb: jax.Array | None = None, cond: jax.Array | None = None
    ) -> jax.Array:
        """x (b, x, y, z, c); emb (b, e) of the time; cond (b, e) or (b, x, y, z, e)."""
        norm = nn.remat(GroupNorm) if self.remat else GroupNorm
        h = norm(self.num_groups, self.eps, self.folded, silu=True, name='norm1')(x)
        h = Conv3D(self.features, folded=self.folded, name='conv1')(h)
        if emb is not None and not self.scale_shift:
            h = h + _over_space(Dense(self.features, name='time_proj')(nn.silu(emb)))
        h = norm(self.num_groups, self.eps, self.folded, name='norm2')(h)
        if emb is not None and self.scale_shift:
            h = _modulate(h, Dense(2 * self.features, name='time_proj')(nn.silu(emb)))
        if cond is not None:
            h = _modulate(h, Dense(2 * self.features, name='cond_proj')(nn.silu(cond)))
        h = Conv3D(self.features, zero_init=self.zero_init, folded=self.folded, name='conv2')(
            nn.silu(h)
        )
        if x.shape != h.shape:
            x = Conv3D(self.features, kernel_size=1, folded=self.folded, name='skip')(x)
        return x + h


def res_block(remat: bool) -> Callable[..., ResBlock]:
    """`ResBlock`, or the same one computed again in the backward pass (parameters alike)."""
    return functools.partial(nn.remat(ResBlock), remat=True) if remat else ResBlock


def _over_space(vector: jax.Array) -> jax.Array:
    return vector[:, None, None, None, :] if vector.ndim == 2 else vector


def _modulate(h: jax.Array, scale_and_shift: jax.Array) -> jax.Array:
    scale, shift = jnp.split(_over_space(scale_and_shift), 2, axis=-1)
    return h * (1.0 + scale) + shift


class Downsample(nn.Module):
    """3x3x3 convolution with stride; `padding` distinguishes the two published conventions.

    With `folded` pairs of planes go in (`folding`); single planes come out.
    """

    features: int
    strides: int | Triple = 2
    padding: int | Pads = 1
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv3D(
            self.features,
            strides=self.strides,
            padding=self.padding,
            folded=self.folded,
            name='conv',
        )(x)


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3x3 convolution; with `folded` pairs of planes come out."""

    features: int
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv3D(self.features, folded=self.folded, doubled=True, name='conv')(x)


class SelfAttention(nn.Module):
    """Attention among all voxels, with GN before and the residual added.

    Attributes:
        head_channels: channels per head; None for a single head.
        project: use the output projection. The published U-Net has its parameters and never uses
            them; False keeps it so.
        zero_init: start the projection at zero.
    """

    num_groups: int = 32
    eps: float = 1e-6
    head_channels: int | None = None
    project: bool = True
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, *_, c = x.shape
        per_head = self.head_channels or c
        if c % per_head:
            raise UserError(
                f'num_head_channels: {per_head} does not divide {c} channels; '
                'choose a divisor of the channels at every attention level'
            )
        h = GroupNorm(self.num_groups, self.eps, name='norm')(x).reshape((b, -1, c))
        q, k, v = (
            Dense(c, name=name)(h).reshape((b, -1, c // per_head, per_head))
            for name in ('to_q', 'to_k', 'to_v')
        )
        out = jax.nn.dot_product_attention(q, k, v).reshape((b, -1, c))
        projection = Dense(c, zero_init=self.zero_init, name='proj_attn')
        # Unused, the projection still gets one token, so that its parameters exist.
        projected = projection(out if self.project else out[:, :1])
        return x + (projected if self.project else out).reshape(x.shape)


def time_embedding(t: jax.Array, dim: int) -> jax.Array:
    """(b,) steps -> (b, dim): [cos(t f_i), sin(t f_i)], f_i = 10000^(-i / (dim / 2)); dim even."""
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """(b, x, y, z, c) -> (b, x/p, y/p, z/p, p^3 c): each p^3 patch becomes channels, c fastest."""
    if patch == 1:
        return x
    b, nx, ny, nz, c = x.shape
    split = x.reshape((b, nx // patch, patch, ny // patch, patch, nz // patch, patch, c))
    moved = split.transpose((0, 1, 3, 5, 2, 4, 6, 7))
    return moved.reshape((b, nx // patch, ny // patch, nz // patch, patch**3 * c))


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    if patch == 1:
        return x
    b, nx, ny, nz, channels = x.shape
    c = channels // patch**3
    split = x.reshape((b, nx, ny, nz, patch, patch, patch, c)).transpose((0, 1, 4, 2, 5, 3, 6, 7))
    return split.reshape((b, nx * patch, ny * patch, nz * patch, c))


def require_groups(where: str, channels: Iterable[int], num_groups: int) -> None:
    """UserError unless the groups of the group norm divide the channels of every level."""
    for width in channels:
        if width % num_groups:
            raise UserError(
                f'{where}.norm_num_groups: {num_groups} does not divide {width} '
                'channels; choose a common divisor'
            )


def require_divisible(what: str, shape: Triple, divisor: int) -> None:
    """UserError unless every side is a multiple of `divisor`."""
    if any(side % divisor for side in shape):
        raise UserError(
            f'{what}: sides {tuple(shape)} are not multiples of {divisor}; '
            'change the grid, or the number of levels'
        )
