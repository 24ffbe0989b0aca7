"""Perceptual distance of volumes: LPIPS on random slices along each axis (2.5-D).

    slice of x, slice of x_hat -> SqueezeNet 1.1 -> seven layers -> weighted squared differences

LPIPS (Zhang et al. 2018, arXiv:1801.03924) compares activations of a network trained on
photographs, with one learned weight for each channel. The weights are those of two public files:
torchvision's `squeezenet1_1` and the lpips package's `squeeze.pth` (version 0.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fluidjax.base.errors import UserError

Params = dict[str, Any]
SMALLEST_SIDE = 17  # below, nothing is left after the third pooling
# torchvision's numbers of the fire modules: channels of the squeeze, and of each of the two expands
FIRES = {
    3: (16, 64),
    4: (16, 64),
    6: (32, 128),
    7: (32, 128),
    9: (48, 192),
    10: (48, 192),
    11: (64, 256),
    12: (64, 256),
}
POOLED = (3, 6, 9)  # these come after a pooling
COMPARED = (4, 7, 9, 10, 11, 12)  # and these are compared, beside the first convolution
# Mean and standard deviation of photographs in [-1, 1], by colour.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10  # of the norm of a pixel's features
UNUSED = ('classifier.1.weight', 'classifier.1.bias')


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1x1 and by 3x3 side by side (Iandola et al. 2016)."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(nn.Conv(self.squeeze, (1, 1), name='squeeze')(x))
        one = nn.Conv(self.expand, (1, 1), name='expand1x1')(h)
        three = nn.Conv(self.expand, (3, 3), padding=1, name='expand3x3')(h)
        return nn.relu(jnp.concatenate([one, three], axis=-1))


class SqueezeNet(nn.Module):
    """Images (n, h, w, 3), standardised -> the activations of the seven compared layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        h = nn.relu(nn.Conv(64, (3, 3), (2, 2), padding='VALID', name='0')(x))
        compared = [h]
        for number, (squeeze, expand) in FIRES.items():
            if number in POOLED:
                h = _pool(h)
            h = Fire(squeeze, expand, name=str(number))(h)
            if number in COMPARED:
                compared.append(h)
        return compared


class LPIPS(nn.Module):
    """Distance (n,) of images (n, h, w, c) in [0, 1], with one channel or three; equal ones give 0.

    Sides are at least 17.
    """

    def setup(self) -> None:
        self.features = SqueezeNet()
        widths = [64] + [2 * FIRES[number][1] for number in COMPARED]
        self.linear = [
            self.param(f'lin{k}', nn.initializers.zeros, (width,)) for k, width in enumerate(widths)
        ]

    def __call__(self, x: jax.Array, x_hat: jax.Array) -> jax.Array:
        distance = 0.0
        # Two passes, not one over both: the first has no gradient where x is data.
        layers = zip(self.linear, self._layers(x), self._layers(x_hat), strict=True)
        for weight, one, other in layers:
            distance += jnp.mean(jnp.square(one - other) @ weight, axis=(1, 2))
        return distance

    def _layers(self, x: jax.Array) -> list[jax.Array]:
        if min(x.shape[1:3]) < SMALLEST_SIDE:
            raise UserError(
                f'perceptual loss: slices of {x.shape[1]} x {x.shape[2]} are below '
                f'{SMALLEST_SIDE} voxels; use feature matching or a larger grid'
            )
        standard = (2.0 * x - 1.0 - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
        return [_unit_length(h) for h in self.features(standard)]


def slice_distance(
    params: Params, key: jax.Array, x: jax.Array, x_hat: jax.Array, share: float = 0.25
) -> jax.Array:
    """2.5-D LPIPS, a scalar: the mean over random slices along each axis, summed over the axes.

    Args:
        params: of `LPIPS`, from `lpips_params`.
        key: for the choice of slices, the same in both volumes.
        x, x_hat: (b, x, y, z, c) in [0, 1]. LPIPS expects [-1, 1] and gets it here; MONAI's 2.5-D
            loss passes [0, 1] unchanged, which halves the contrast.
        share: share of the slices along an axis, counted over the batch (published: a quarter).
    """
    total = 0.0
    for axis, axis_key in enumerate(jax.random.split(key, 3), start=1):
        slices, slices_hat = (_slices(volume, axis) for volume in (x, x_hat))
        count = max(1, int(share * len(slices)))
        chosen = jax.random.permutation(axis_key, len(slices))[:count]
        distance = LPIPS().apply({'params': params}, slices[chosen], slices_hat[chosen])
        total += jnp.mean(distance)
    return total


def blank_params() -> Params:
    """The parameters of `LPIPS` with zeros, to be replaced by those of `lpips_params`."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _shapes())


def lpips_params(weights: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `LPIPS` from the tensors of the two public files, by their names there.

    Args:
        weights: `features.*` of torchvision's squeezenet1_1 (its `classifier` is not used) and
            `lin0.model.1.weight` to `lin6...` of the lpips package; torch's order of axes.

    Raises:
        UserError: names that are missing or unknown, shapes that do not fit, numbers not finite.
    """
    leaves = flatten_dict(_shapes(), sep='/')
    tensors = {_torch_name(path): path for path in leaves}
    shapes = {name: _torch_shape(path, leaves[path].shape) for name, path in tensors.items()}
    both = [name for name in tensors if name in weights]
    problems = {
        'missing': [name for name in tensors if name not in weights],
        'unknown': [name for name in weights if name not in tensors and name not in UNUSED],
        'misshapen': [
            f'{name} (is {np.shape(weights[name])}, must be {shapes[name]})'
            for name in both
            if np.shape(weights[name]) != shapes[name]
        ],
        'not finite': [name for name in both if not np.isfinite(weights[name]).all()],
    }
    wrong = [f'{what}: {", ".join(names)}' for what, names in problems.items() if names]
    if wrong:
        raise UserError(
            'not the weights of LPIPS with squeezenet1_1 (torchvision) and squeeze.pth '
            f'(lpips 0.1); {"; ".join(wrong)}'
        )
    return unflatten_dict(
        {
            path: _our_axes(path, np.asarray(weights[name], np.float32))
            for name, path in tensors.items()
        },
        sep='/',
    )


def _shapes() -> Params:
    image = jax.ShapeDtypeStruct((1, SMALLEST_SIDE, SMALLEST_SIDE, 3), jnp.float32)
    return dict(jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)['params'])


def _torch_name(path: str) -> str:
    """features/3/squeeze/kernel -> features.3.squeeze.weight; lin0 -> lin0.model.1.weight."""
    if path.startswith('lin'):
        return f'{path}.model.1.weight'
    return path.replace('/', '.').replace('kernel', 'weight')


def _torch_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
    """There a kernel (h, w, in, out) is (out, in, h, w), and a `lin` (c,) is (1, c, 1, 1)."""
    if path.startswith('lin'):
        return (1, *shape, 1, 1)
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else tuple(shape)


def _our_axes(path: str, tensor: np.ndarray) -> jax.Array:
    if path.startswith('lin'):
        return jnp.asarray(tensor.ravel())
    return jnp.asarray(tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor)


def _slices(volume: jax.Array, axis: int) -> jax.Array:
    """(b, x, y, z, c) -> (b n, ., ., c), all planes across an axis of length n."""
    moved = jnp.moveaxis(volume, axis, 1)
    return moved.reshape((-1, *moved.shape[2:]))


def _pool(x: jax.Array) -> jax.Array:
    """The largest of 3x3 every 2 pixels; a last window that reaches over the edge is included."""
    over = tuple((0, (side - 3) % 2) for side in x.shape[1:3])
    return nn.max_pool(x, (3, 3), (2, 2), padding=over)


def _unit_length(h: jax.Array) -> jax.Array:
    """Each pixel's features divided by their norm, with a finite gradient where all are zero."""
    return h * jax.lax.rsqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True) + EPS**2)
