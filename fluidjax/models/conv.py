"""The 3-D convolution, in one place: two algorithms for the same parameters.

XLA's own 3-D convolution is several times slower on a CPU than the same sum written as one 2-D
convolution for each tap along the first axis, with that axis folded into the batch.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

ALGORITHMS = ('direct', 'taps')
_algorithm: contextvars.ContextVar[str | None] = contextvars.ContextVar('algorithm', default=None)

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@contextlib.contextmanager
def conv_algorithm(name: str) -> Iterator[None]:
    """Traces every convolution inside the block with `name`: 'direct' or 'taps'."""
    if name not in ALGORITHMS:
        raise ValueError(f'unknown convolution algorithm {name!r}, one of {ALGORITHMS}')
    token = _algorithm.set(name)
    try:
        yield
    finally:
        _algorithm.reset(token)


def default_algorithm() -> str:
    """The algorithm chosen around us, else the faster one of this backend."""
    return _algorithm.get() or ('taps' if jax.default_backend() == 'cpu' else 'direct')


def conv3d(
    x: jax.Array,
    kernel: jax.Array,
    strides: Triple = (1, 1, 1),
    padding: Pads = ((1, 1), (1, 1), (1, 1)),
    algorithm: str | None = None,
) -> jax.Array:
    """Cross-correlates (b, x, y, z, in) with a kernel (kx, ky, kz, in, out), zeros outside.

    Both algorithms give the same sum in another order of additions. A 1x1x1 kernel is a matmul.
    Computed in the dtype of x, which the result has.
    """
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:3] == (1, 1, 1) and tuple(strides) == (1, 1, 1) and not any(map(sum, padding)):
        return jnp.einsum('bxyzi,io->bxyzo', x, kernel[0, 0, 0])
    if (algorithm or default_algorithm()) == 'taps':
        return _sum_of_taps(x, kernel, strides, padding)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=('NXYZC', 'XYZIO', 'NXYZC')
    )


def _sum_of_taps(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Pads) -> jax.Array:
    size, stride = kernel.shape[0], strides[0]
    padded = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    planes = (padded.shape[1] - size) // stride + 1
    last = (planes - 1) * stride + 1
    return sum(
        _conv2d(padded[:, tap : tap + last : stride], kernel[tap], strides[1:], padding[1:])
        for tap in range(size)
    )


def _conv2d(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence
) -> jax.Array:
    """The 2-D convolution of every (y, z) plane of x (b, x, y, z, c)."""
    folded = x.reshape((-1, *x.shape[2:]))
    out = lax.conv_general_dilated(
        folded, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return out.reshape((*x.shape[:2], *out.shape[1:]))


class Conv3D(nn.Module):
    """A convolution with bias; float32 parameters `kernel` (kx, ky, kz, in, out), `bias` (out,).

    Attributes:
        features: channels out.
        kernel_size, strides: one number for all axes, or three.
        padding: zeros at both ends of each axis, or a (low, high) pair for each axis; by default
            what keeps the size at stride 1.
        zero_init: start as the zero map.
    """

    features: int
    kernel_size: int | Triple = 3
    strides: int | Triple = 1
    padding: int | Pads | None = None
    use_bias: bool = True
    zero_init: bool = False
    algorithm: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, strides = _triple(self.kernel_size), _triple(self.strides)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param('kernel', init, (*size, x.shape[-1], self.features))
        out = conv3d(x, kernel, strides, self._pads(size), self.algorithm)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,))
            out = out + bias.astype(out.dtype)
        return out

    def _pads(self, size: Triple) -> Pads:
        if self.padding is None:
            return tuple((n // 2, (n - 1) // 2) for n in size)
        if isinstance(self.padding, int):
            return ((self.padding, self.padding),) * 3
        return self.padding


def _triple(value: int | Triple) -> Triple:
    return (value,) * 3 if isinstance(value, int) else tuple(value)
