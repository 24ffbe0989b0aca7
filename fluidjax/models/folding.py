"""Features kept as pairs of planes: (b, x, y, z, c) as (b, x/2, y, z, 2 c), even plane first.

A TPU works on 128 channels at once and stores them in rows of 128: a network's finest level, with
64, would leave half of both unused. Two planes side by side fill them, and a convolution becomes
one with a kernel rearranged for pairs, half of it zeros. The computed function is the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

SAME = ((1, 1), (1, 1), (1, 1))
END = ((0, 1), (0, 1), (0, 1))


def fold(x: jax.Array) -> jax.Array:
    """(b, x, y, z, c) -> (b, x/2, y, z, 2 c)."""
    return jnp.concatenate([x[:, ::2], x[:, 1::2]], axis=-1)


def unfold(x: jax.Array) -> jax.Array:
    """The inverse of `fold`."""
    b, planes, ny, nz, channels = x.shape
    return jnp.stack(jnp.split(x, 2, axis=-1), axis=2).reshape(
        (b, 2 * planes, ny, nz, channels // 2)
    )


def pair_convolution(kernel: jax.Array, strides: tuple, padding: tuple) -> tuple:
    """Kernel, strides and padding that do to folded features what the given ones do to planes.

    Args:
        kernel: (kx, ky, kz, i, o): 1x1x1, or 3x3x3 that keeps the size (folded features come out),
            or 3x3x3 with stride 2 and a voxel of zeros at each end (single planes come out).

    Returns:
        (kx', ky, kz, 2 i, 2 o) or, with stride 2, (2, ky, kz, 2 i, o), and its strides and padding.
    """
    if kernel.shape[0] == 1:
        return _kernel_of_pairs(kernel, (0,), (0, 1), 0), strides, padding
    if tuple(strides) == (1, 1, 1) and tuple(padding) == SAME:
        return _kernel_of_pairs(kernel, (-1, 0, 1), (0, 1), 1), strides, padding
    if tuple(strides) == (2, 2, 2) and tuple(padding) == END:
        return _kernel_of_pairs(kernel, (0, 1), (0,), 0), (1, 2, 2), padding
    raise ValueError(f'no folded convolution of strides {strides} and padding {padding}')


def _kernel_of_pairs(
    kernel: jax.Array, pairs: tuple[int, ...], outs: tuple[int, ...], before: int
) -> jax.Array:
    """The taps from both planes of neighbouring pairs to the planes `outs` of a pair."""
    nothing = jnp.zeros_like(kernel[0])

    def tap(plane: int, out: int) -> jax.Array:
        k = plane - out + before
        return kernel[k] if 0 <= k < kernel.shape[0] else nothing

    return jnp.stack(
        [
            jnp.concatenate(
                [
                    jnp.concatenate([tap(2 * pair + plane, out) for out in outs], -1)
                    for plane in (0, 1)
                ],
                -2,
            )
            for pair in pairs
        ]
    )
