"""The gradient of a 3-D convolution's weights on a CPU: a sum over blocks of a few planes.

XLA computes this gradient as a convolution of the input with the gradient of the output, which is a
kernel as large as the grid. On a CPU it gathers both into matrices of that size, far larger than
the caches. For a few planes at a time they fit, and the sum over the blocks is the same gradient.
docs/performance.md has the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from fluidjax.models.ordering import one_after_another

WORTH_BLOCKS = 2**12  # voxels of a batch; up to there one kernel is as fast, measured on a CPU
PLANES = 8  # of a block; measured with 4 to 20, and fewer are slow where channels are few
EVEN = 4  # numbers of planes that are no multiple of it are slower than with planes of zeros added
MOST_BLOCKS = 16  # each is compiled on its own, since XLA's loops make convolutions very slow
# Channels of the input take the place of the batch, planes that of the channels, and the gradient
# of the output that of the kernel: (planes, y, z, in), (planes, y, z, out) -> (ky, kz, in, out).
CORRELATION = lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))


def worth_blocks(x: jax.Array, strides: tuple[int, ...]) -> bool:
    """Whether blocks are the faster way: stride 1, and a large batch x (b, x, y, z, c)."""
    return tuple(strides) == (1, 1, 1) and x.size // x.shape[-1] >= WORTH_BLOCKS


def gradient_by_blocks(
    x: jax.Array, dy: jax.Array, size: int, padding: tuple[tuple[int, int], ...]
) -> jax.Array:
    """The gradient with respect to the kernel of a convolution with stride 1.

    Args:
        x: its input, (b, x, y, z, in).
        dy: the gradient with respect to its output, (b, x', y', z', out).
        size: of the kernel along the first axis.
        padding: zeros at both ends of each axis.

    Returns:
        (kx, ky, kz, in, out), computed and summed in float32 or the wider dtype of x.
    """
    padded = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    outer, taps = _planes(dy), []
    for tap in range(size):
        inner = _planes(padded[:, tap : tap + dy.shape[1]])
        taps.append(_sum_of_blocks(inner, outer, padding[1:]))
        taps, padded, outer = one_after_another((taps, padded, outer))
    return jnp.stack(taps)


def _planes(volumes: jax.Array) -> jax.Array:
    """(b, x, y, z, c) -> (planes, y, z, c), a multiple of `EVEN` of them: zeros at the end."""
    planes = volumes.reshape((-1, *volumes.shape[2:]))
    return jnp.pad(planes, ((0, -len(planes) % EVEN), (0, 0), (0, 0), (0, 0)))


def _sum_of_blocks(x: jax.Array, dy: jax.Array, padding: tuple[tuple[int, int], ...]) -> jax.Array:
    """The gradient of a 2-D convolution's kernel: (ky, kz, in, out)."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros((), dtype)
    for block in _blocks(len(x)):
        total = total + lax.conv_general_dilated(
            x[block],
            dy[block],
            (1, 1),
            padding,
            dimension_numbers=CORRELATION,
            preferred_element_type=dtype,
        )
        total, x, dy = one_after_another((total, x, dy))
    return total


def _blocks(planes: int) -> Iterator[slice]:
    """At most `MOST_BLOCKS` blocks, of a multiple of `PLANES` each; the last may be smaller."""
    size = PLANES * -(-planes // (PLANES * MOST_BLOCKS))
    return (slice(start, start + size) for start in range(0, planes, size))
