"""A linear start for the patch autoencoder: principal components of the training volumes' patches.

A patch p (f^3 values) is coded as z = W (p - m) and decoded as m + W^T z, W with orthonormal rows:
the linear code of that size with the least squared error. Training starts from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from fluidjax.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class PatchBasis:
    """Principal components of patches, in the channel order of `space_to_depth`.

    Attributes:
        mean: (f^3,) the mean patch.
        components: (latent_channels, f^3), orthonormal rows, largest variance first.
        variance: (latent_channels,) variance of the patches along each component.
    """

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray


def principal_components(
    volumes: np.ndarray,
    patch: int,
    latent_channels: int,
    weights: np.ndarray | None = None,
    center: bool = True,
) -> PatchBasis:
    """Basis of the patches of `volumes` (n, x, y, z, 1).

    Args:
        volumes: training volumes; sides are multiples of `patch`.
        patch: side of a patch in voxels; `AutoencoderConfig.factor` for that autoencoder.
        latent_channels: components kept, at most patch^3.
        weights: optional (x, y, z) or (n, x, y, z), for instance the brain: a patch counts with its
            mean weight, so that the empty background does not make the basis.
        center: subtract the mean patch; without it an empty patch is coded as exactly zero.
    """
    volumes = np.asarray(volumes, np.float64)
    if latent_channels > patch**3:
        raise UserError(
            f'latent_channels: {latent_channels} is more than the {patch**3} values '
            f'of a patch of side {patch}; take fewer'
        )
    patches = _patches(volumes[..., 0], patch)
    counts = np.ones(len(patches))
    if weights is not None:
        whole = np.broadcast_to(np.asarray(weights, np.float64), volumes.shape[:-1])
        counts = _patches(whole, patch).mean(1)
    if counts.sum() <= 0:
        raise UserError('principal_components: the weights are zero everywhere; is the mask empty?')
    mean = counts @ patches / counts.sum() if center else np.zeros(patch**3)
    centred = patches - mean
    covariance = (centred * counts[:, None]).T @ centred / counts.sum()
    variance, vectors = np.linalg.eigh(covariance)
    order = np.argsort(variance)[::-1][:latent_channels]
    return PatchBasis(mean, vectors[:, order].T, np.maximum(variance[order], 0.0))


def _patches(volumes: np.ndarray, patch: int) -> np.ndarray:
    n, *sides = volumes.shape
    if any(side % patch for side in sides):
        raise UserError(f'volumes: sides {tuple(sides)} are not multiples of the patch {patch}')
    x, y, z = (side // patch for side in sides)
    split = volumes.reshape((n, x, patch, y, patch, z, patch))
    return split.transpose((0, 1, 3, 5, 2, 4, 6)).reshape((-1, patch**3))


def with_linear_start(params: Mapping, basis: PatchBasis) -> dict:
    """`params` of an `Autoencoder` with `linear_path`, its linear layers holding `basis`.

    With the network's last convolutions still at zero, decode(encode(x)) is then the projection
    of every patch on the components.
    """
    if 'linear_encode' not in params:
        raise UserError('autoencoder.linear_path: is off; a linear start needs it on')
    wanted = params['linear_encode']['kernel'].shape
    if basis.components.T.shape != wanted:
        raise UserError(
            f'linear start: the basis is {basis.components.T.shape}, the autoencoder '
            f'wants {wanted}; use its factor and latent_channels'
        )
    encode = {'kernel': basis.components.T, 'bias': -basis.components @ basis.mean}
    decode = {'kernel': basis.components, 'bias': basis.mean}
    as_float32 = {
        name: {key: jnp.asarray(value, jnp.float32) for key, value in layer.items()}
        for name, layer in (('linear_encode', encode), ('linear_decode', decode))
    }
    return {**params, **as_float32}
