"""Normalised latents of a trained autoencoder: what every method of its latent space works on.

z = (autoencoder.encode(x) - mean) * scale,    params['latent'] = {'mean', 'scale'}
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.fluid.painting import divide_by_maximum
from fluidjax.methods.autoencoder import AutoencoderMethod

Params = dict[str, Any]


def unmeasured(shape: tuple[int, ...]) -> Params:
    """The place of mean and scale for latents of a shape (x, y, z, c): 0 and 1."""
    return {'mean': jnp.zeros(shape), 'scale': jnp.ones(())}


def prepare(
    autoencoder: AutoencoderMethod, params: Params, volumes: np.ndarray, centred: bool
) -> Params:
    """Params with mean and scale measured on the latents of training scans `(n, x, y, z, 1)`.

    One scale for all channels, that of their joint standard deviation: a scale each would make
    noise of the fine components. (The published constant, 0.18215, is of another model.)

    Args:
        centred: subtract the mean latent, position by position; otherwise the mean is 0.
    """
    encode = jax.jit(lambda v: autoencoder.encode(params, divide_by_maximum(v)))
    z = np.concatenate([np.asarray(encode(v[None])) for v in volumes])
    centre = z.mean(axis=0) if centred else np.zeros(z.shape[1:])
    spread = max(float((z - centre).std()), 1e-6)
    latent = {'mean': jnp.asarray(centre, jnp.float32), 'scale': jnp.float32(1.0 / spread)}
    return {**params, 'latent': latent}


def encode(autoencoder: AutoencoderMethod, params: Params, volumes: jax.Array) -> jax.Array:
    """Normalised latents `(batch, x', y', z', c)` of volumes `(batch, x, y, z, 1)`."""
    z = autoencoder.encode(params, volumes)
    return (z - params['latent']['mean']) * params['latent']['scale']


def decode(autoencoder: AutoencoderMethod, params: Params, z: jax.Array) -> jax.Array:
    """Volumes of normalised latents, in [0, 1]."""
    return autoencoder.decode(params, z / params['latent']['scale'] + params['latent']['mean'])
