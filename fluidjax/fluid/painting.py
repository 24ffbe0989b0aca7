"""Painting a lesion probability map into a healthy image: the intensity laws.

`randomize.paint_drawn` applies them with the numbers of `draws`. The test subjects of the embedded
cohort follow another law on purpose (`data_pipelines/template_lesions.py`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.fluid.flow_map import cubic_weights
from fluidjax.fluid.grid import Grid

LAWS = ('paper', 'una', 'una_equation')
# Lesion shift m in units of mu, the mean intensity inside the mask: m = +-(least + span * u).
_SHIFTS = {'paper': (0.75, 0.25), 'una': (1.0, 1.0)}


def mean_inside(image: jax.Array, mask: jax.Array) -> jax.Array:
    """mu: mean intensity where the mask is 1, a scalar; 0 for an empty mask."""
    return jnp.sum(image * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def lesion_shift(law: str, mu: jax.Array, u: jax.Array, bright: jax.Array | bool) -> jax.Array:
    """m of the published code: +-(0.75..1) mu in the paper's (arXiv:2506.10233, where it is always
    darker), +-(1..2) mu in UNA's (arXiv:2501.13370).

    Args:
      law: 'paper' or 'una'.
      mu: mean intensity under the lesion.
      u: uniform on [0, 1), a scalar or one number per voxel.
      bright: whether the lesion is brighter than the tissue.
    """
    least, span = _SHIFTS[law]
    return jnp.where(bright, 1.0, -1.0) * (least + span * u) * mu


def equation_shift(
    mu_w: jax.Array, n: jax.Array, flipped: jax.Array | bool, white_matter_bright: bool
) -> jax.Array:
    """m of the equation UNA publishes: m ~ N(-+mu_w / 2, mu_w / 2).

    Darker where white matter is the brighter tissue, else brighter; the sign is flipped in a share
    of the draws (published: 20 %).

    Args:
      mu_w: intensity of white matter.
      n: standard normal, a scalar.
      flipped: whether this draw's sign is flipped.
      white_matter_bright: whether white matter is brighter than grey matter.
    """
    sign = jnp.where(flipped, -1.0, 1.0) * (-1.0 if white_matter_bright else 1.0)
    return 0.5 * mu_w * (sign + n)


def paint(
    image: jax.Array, P: jax.Array, shift: jax.Array, spread: jax.Array, texture: jax.Array
) -> jax.Array:
    """I <- max(0, I + P (m + s n)): the painted image (x, y (, z)), not rescaled.

    Args:
      image: intensities (x, y (, z)), not negative.
      P: lesion probability (x, y (, z)) in [0, 1]; its soft edges are the lesion's.
      shift: m, see `lesion_shift`.
      spread: s; in the published code u mu / 4, u uniform on [0, 1).
      texture: n (x, y (, z)), of unit variance.
    """
    return jnp.maximum(image + P * (shift + spread * texture), 0.0)


def lesion_texture(key: jax.Array, grid: Grid, length_mm: float = 0.0) -> jax.Array:
    """Normal noise of unit variance in every voxel (x, y (, z)); smooth over `length_mm`."""
    if length_mm <= min(grid.spacing):
        return jax.random.normal(key, grid.shape)
    nodes = [2 + int(np.ceil(n * h / length_mm)) for n, h in zip(grid.shape, grid.spacing)]
    noise = jax.random.normal(key, nodes)
    for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing)):
        weights = cubic_weights(np.arange(n) * h / length_mm, nodes[axis], periodic=False)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        noise = jnp.moveaxis(jnp.tensordot(weights, noise, axes=(1, axis)), 0, axis)
    return noise


def divide_by_maximum(image: jax.Array) -> jax.Array:
    """The image divided by its own maximum; an image of zeros stays as it is."""
    peak = jnp.max(image)
    return image / jnp.where(peak > 0.0, peak, 1.0)


def on_one_scale(healthy: jax.Array, diseased: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A pair in [0, 1]: the diseased image divided by its maximum, as every scan is.

    Where that is the maximum of a bright lesion the healthy image is divided by it too, so that
    healthy tissue is equal in both; else the healthy one is divided by its own, as published.
    """
    highest = jnp.maximum(jnp.max(healthy), jnp.max(diseased))
    return healthy / jnp.where(highest > 0.0, highest, 1.0), divide_by_maximum(diseased)
