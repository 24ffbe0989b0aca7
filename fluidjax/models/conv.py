"""The 3-D convolution: several arrangements of the same sum, with the same parameters.

XLA's own 3-D convolution is several times slower on a CPU than the same sum written as one 2-D
convolution for each tap along the first axis, with that axis folded into the batch; on a TPU it
copies its input into tiles and back. A few input channels are better gathered into patches, kernels
of twice their stride are dense ones over blocks of voxels, and a convolution after doubling the
grid is eight small ones before it (`upsampled_conv3d`). docs/performance.md has the numbers. Which
of the first two is used can also be chosen (`arranged`).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fluidjax.base.errors import UserError
from fluidjax.models.folding import fold, pair_convolution
from fluidjax.models.ordering import is_large, one_after_another
from fluidjax.models.weight_gradient import gradient_by_blocks, worth_blocks

WORTH_PHASES = 2**21  # coarse voxels x channels in x channels out, measured on a CPU
WORTH_TAPS = 2**26  # size of volumes x size of kernel; smaller ones compile longer than they run
LANES = 128  # channels a TPU works on at once: with fewer, the others idle
ARRANGEMENTS = ('auto', 'direct', 'taps')
_backend: contextvars.ContextVar[str | None] = contextvars.ContextVar('backend', default=None)
_arrangement: contextvars.ContextVar[str] = contextvars.ContextVar('arrangement', default='auto')

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@contextlib.contextmanager
def target_backend(name: str) -> Iterator[None]:
    """Trace every convolution inside the block in the way that suits 'cpu', 'gpu' or 'tpu'."""
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def backend() -> str:
    """The backend to trace for: that of `target_backend`, else the one that runs."""
    return _backend.get() or jax.default_backend()


def check_arrangement(name: str) -> None:
    """Check a network's `convolution` setting.

    Raises:
        UserError: it is none of `ARRANGEMENTS`.
    """
    if name not in ARRANGEMENTS:
        raise UserError(f"convolution: '{name}' is not one of {', '.join(ARRANGEMENTS)}")


@contextlib.contextmanager
def arranged(name: str) -> Iterator[None]:
    """Trace every convolution inside the block in one arrangement.

    Args:
        name: 'auto': what suits the backend; 'direct': XLA's own 3-D convolution; 'taps': the sum
            of 2-D ones. Convolutions of size 1 are matmuls always.
    """
    check_arrangement(name)
    token = _arrangement.set(name)
    try:
        yield
    finally:
        _arrangement.reset(token)


def as_configured(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a network that is traced in the arrangement `self.config.convolution`."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with arranged(self.config.convolution):
            return method(self, *args, **kwargs)

    return call


def folds_pairs(channels: int, planes: int) -> bool:
    """Whether features of this width are better stored as pairs of planes (`folding`)."""
    return backend() == 'tpu' and 2 * channels <= LANES and planes % 2 == 0


def doubles_cheaply(x: jax.Array, features: int) -> bool:
    """Whether `upsampled_conv3d` pays off: on a CPU or TPU, and only for large inputs."""
    return backend() in ('cpu', 'tpu') and x.size * features >= WORTH_PHASES


def conv3d(
    x: jax.Array,
    kernel: jax.Array,
    strides: Triple = (1, 1, 1),
    padding: Pads = ((1, 1), (1, 1), (1, 1)),
) -> jax.Array:
    """Cross-correlate (b, x, y, z, in) with a kernel (kx, ky, kz, in, out), zeros outside.

    The arrangement depends on the backend, unless it was chosen (`arranged`); all give the same sum
    in another order of additions.
    Computed in the dtype of x, which is also that of the result.
    """
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:3] == (1, 1, 1) and tuple(strides) == (1, 1, 1) and not any(map(sum, padding)):
        return pointwise(x, kernel)
    if backend() == 'tpu' and _arrangement.get() == 'auto':
        if x.shape[-1] == 1 and is_block_kernel(x, kernel, strides, padding):
            x, kernel = blocks(x, kernel, padding)
            strides, padding = (1, 1, 1), ((0, 0),) * 3
        if math.prod(kernel.shape[:4]) <= LANES:
            return patch_conv3d(x, kernel, strides, padding)
    return _plain(x, kernel, strides, padding)


def _plain(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Pads) -> jax.Array:
    chosen = _arrangement.get()
    if chosen == 'auto':
        small = x.size * kernel.size < WORTH_TAPS
        direct = backend() == 'gpu' or (backend() == 'cpu' and small)
        chosen = 'direct' if direct else 'taps'
    convolve = direct_conv3d if chosen == 'direct' else sum_of_taps
    return convolve(x, kernel, strides, padding)


def direct_conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Pads) -> jax.Array:
    """XLA's own 3-D convolution."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=('NXYZC', 'XYZIO', 'NXYZC')
    )


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(b, x, y, z, in) times a kernel (1, 1, 1, in, out)."""
    return jnp.einsum('bxyzi,io->bxyzo', x, kernel[0, 0, 0])


def sum_of_taps(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Pads) -> jax.Array:
    """The convolution as a sum of 2-D ones, one for each tap along the first axis.

    On a CPU the gradient of large ones with respect to the kernel is computed in blocks; there they
    have no forward-mode derivative.
    """
    if backend() == 'cpu' and worth_blocks(x, strides):
        return _taps_and_blocks(x, kernel, padding)
    if backend() == 'cpu' and is_large(x):
        # What the gradient needs of x is prepared in the backward pass, not kept from the forward.
        return jax.checkpoint(lambda x, kernel: _taps(x, kernel, strides, padding))(x, kernel)
    return _taps(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _taps_and_blocks(x: jax.Array, kernel: jax.Array, padding: Pads) -> jax.Array:
    return _taps(x, kernel, (1, 1, 1), padding)


def _forward(x: jax.Array, kernel: jax.Array, padding: Pads) -> tuple[jax.Array, tuple]:
    return _taps(x, kernel, (1, 1, 1), padding), (x, kernel)


def _backward(padding: Pads, kept: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    (dx,) = jax.linear_transpose(lambda x: _taps(x, kernel, (1, 1, 1), padding), x)(dy)
    weights = gradient_by_blocks(x, dy, kernel.shape[0], padding)
    # Gradients of earlier layers wait, so that what the weights' needs is not kept meanwhile.
    return one_after_another((dx, weights.astype(kernel.dtype)))


_taps_and_blocks.defvjp(_forward, _backward)


def _taps(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Pads) -> jax.Array:
    size, stride = kernel.shape[0], strides[0]
    padded = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    planes = (padded.shape[1] - size) // stride + 1
    last = (planes - 1) * stride + 1
    total = 0.0
    for tap in range(size):
        plane = padded[:, tap : tap + last : stride]
        total = total + conv2d(plane, kernel[tap], strides[1:], padding[1:])
        if backend() == 'cpu' and tap < size - 1:
            total, padded = one_after_another((total, padded))
    return total


def conv2d(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence) -> jax.Array:
    """The 2-D convolution of every (y, z) plane of x (b, x, y, z, c)."""
    folded = x.reshape((-1, *x.shape[2:]))
    out = lax.conv_general_dilated(
        folded, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return out.reshape((*x.shape[:2], *out.shape[1:]))


def patch_conv3d(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Pads) -> jax.Array:
    """The convolution as one matmul of every voxel's neighbourhood: for few channels in."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    sizes = kernel.shape[:3]
    counts = [(n - k) // s for n, k, s in zip(padded.shape[1:4], sizes, strides)]
    taps = [
        padded[:, *(slice(t, t + n * s + 1, s) for t, n, s in zip(tap, counts, strides))]
        for tap in itertools.product(*map(range, sizes))
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape((-1, kernel.shape[-1]))


def is_block_kernel(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Pads) -> bool:
    """Whether stride 2 and a kernel of 4 divide the padded volume into blocks of 2^3."""
    whole = [n + sum(pad) for n, pad in zip(x.shape[1:4], padding)]
    return (
        tuple(strides) == (2, 2, 2)
        and kernel.shape[:3] == (4, 4, 4)
        and not any(n % 2 for n in whole)
    )


def blocks(x: jax.Array, kernel: jax.Array, padding: Pads) -> tuple[jax.Array, jax.Array]:
    """Volume and kernel of the same convolution over blocks: 8 in channels, size 2, stride 1.

    (b, x, y, z, c), (4, 4, 4, c, o) -> (b, x'/2, y'/2, z'/2, 8 c), (2, 2, 2, 8 c, o), x' padded.
    """
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    b, *sides, c = padded.shape
    halves = [part for n in sides for part in (n // 2, 2)]
    moved = padded.reshape((b, *halves, c)).transpose((0, 1, 3, 5, 2, 4, 6, 7))
    small = kernel.reshape((2,) * 6 + kernel.shape[3:]).transpose((0, 2, 4, 1, 3, 5, 6, 7))
    return (
        moved.reshape((b, *(n // 2 for n in sides), 8 * c)),
        small.reshape((2, 2, 2, 8 * c, -1)),
    )


# Rows: the two coarse voxels a fine one of phase 0 or 1 sees; columns: the fine kernel's taps.
PHASES = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def upsampled_conv3d(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a 3x3x3 convolution makes of x doubled by nearest neighbours, its even and odd planes.

    Computed on the coarse grid, where the fine voxels of one phase (odd or even on each axis) are a
    convolution of size 2 of their own: 64 multiplications for every 216.

    Args:
        x: (b, x, y, z, c).
        kernel: (3, 3, 3, c, o), applied with one voxel of zeros around the doubled volume.

    Returns:
        Two of (b, x, 2 y, 2 z, o): planes 0, 2, 4 ... and planes 1, 3, 5 ... of the first axis.
    """
    phases = jnp.array(PHASES, kernel.dtype)
    small = jnp.einsum('pax,qby,rcz,xyzio->pqrabcio', phases, phases, phases, kernel)
    small = small.astype(x.dtype)
    pads = ((1, 0), (0, 1))

    def phase(p: int, q: int, r: int) -> jax.Array:
        return _plain(x, small[p, q, r], (1, 1, 1), (pads[p], pads[q], pads[r]))

    def planes(p: int) -> jax.Array:
        rows = [interleave(phase(p, q, 0), phase(p, q, 1), 3) for q in range(2)]
        return interleave(*rows, 2)

    return planes(0), planes(1)


def conv3d_of_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv3d` of `nearest_x2(x)`; training keeps x and doubles it again, as that is cheap."""
    # A new function at each call: JAX keeps the trace of a known one, whatever the arrangement.
    return jax.checkpoint(lambda x, kernel: conv3d(nearest_x2(x), kernel))(x, kernel)


def nearest_x2(x: jax.Array) -> jax.Array:
    """Every voxel eight times: (b, x, y, z, c) -> (b, 2 x, 2 y, 2 z, c)."""
    b, nx, ny, nz, c = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None, :, None], (b, nx, 2, ny, 2, nz, 2, c))
    return wide.reshape((b, 2 * nx, 2 * ny, 2 * nz, c))


def interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    """Slices of two arrays by turns along an axis."""
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis + 1).reshape(shape)


class Conv3D(nn.Module):
    """A convolution with bias; float32 parameters `kernel` (kx, ky, kz, in, out), `bias` (out,).

    Attributes:
        features: channels out.
        kernel_size, strides: one number for all axes, or three.
        padding: zeros at both ends of each axis, or a (low, high) pair for each axis; by default
            what keeps the size at stride 1.
        zero_init: start as the zero map.
        folded: the input is kept as pairs of planes (`folding`), and the output too at stride 1.
        doubled: convolve the input doubled by nearest neighbours; with `folded`, pairs of planes
            come out (and none go in).
    """

    features: int
    kernel_size: int | Triple = 3
    strides: int | Triple = 1
    padding: int | Pads | None = None
    use_bias: bool = True
    zero_init: bool = False
    folded: bool = False
    doubled: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = _triple(self.kernel_size)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        halves = 2 if self.folded and not self.doubled else 1
        kernel = self.param('kernel', init, (*size, x.shape[-1] // halves, self.features))
        out = self._convolve(x, kernel)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,))
            out = out + jnp.tile(bias, out.shape[-1] // self.features).astype(out.dtype)
        return out

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        pads = self._pads(_triple(self.kernel_size))
        if self.doubled:
            return self._convolve_doubled(x, kernel)
        strides = _triple(self.strides)
        if self.folded:
            kernel, strides, pads = pair_convolution(kernel, strides, pads)
        return conv3d(x, kernel, strides, pads)

    def _convolve_doubled(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if not doubles_cheaply(x, self.features):
            out = conv3d_of_doubled(x, kernel)
            return fold(out) if self.folded else out
        even, odd = upsampled_conv3d(x, kernel)
        return jnp.concatenate([even, odd], -1) if self.folded else interleave(even, odd, 1)

    def _pads(self, size: Triple) -> Pads:
        if self.padding is None:
            return tuple((n // 2, (n - 1) // 2) for n in size)
        if isinstance(self.padding, int):
            return ((self.padding, self.padding),) * 3
        return self.padding


def _triple(value: int | Triple) -> Triple:
    return (value,) * 3 if isinstance(value, int) else tuple(value)
