"""Lesion seeds from a bank of real masks: mirrored, rotated, scaled, and placed in the brain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.interpolation import linear
from fluidjax.fluid.draws import SeedDraw
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.settings import FluidSettings

# A place is tested with this many random voxels of the mask, the chosen one with all of them.
_POINTS, _PLACES_NEAR, _PLACES_ANYWHERE = 64, 8, 24
_SCALES = (0.1, 10.0)  # limits of the factor on a mask's lengths that gives a wanted volume
_TINY = 1e-6


def random_voxels(key: jax.Array, mask: jax.Array, count: int) -> jax.Array:
    """Indices (count, d) of voxels drawn uniformly from a boolean mask that is not empty.

    A plane is drawn, then a line, then a voxel, each in proportion to the voxels in it.
    """
    planes = mask.sum(axis=tuple(range(1, mask.ndim)))

    def one(key: jax.Array) -> jax.Array:
        chosen, region, counts = [], mask, planes
        for key_axis in jax.random.split(key, mask.ndim):
            index = jax.random.categorical(key_axis, jnp.log(counts.astype(jnp.float32)))
            chosen.append(index)
            region = region[index]
            counts = region.sum(axis=tuple(range(1, region.ndim))) if region.ndim else region
        return jnp.stack(chosen)

    return jax.vmap(one)(jax.random.split(key, count))


def turn(angles: jax.Array, ndim: int) -> jax.Array:
    """Rotation matrix (d, d): rotations about x, y and z in this order; in 2-D only the last."""
    about = []
    for k in range(3):
        i, j = (a for a in range(3) if a != k)
        c, s = jnp.cos(angles[k]), jnp.sin(angles[k])
        about.append(jnp.eye(3).at[i, i].set(c).at[j, j].set(c).at[i, j].set(-s).at[j, i].set(s))
    if ndim == 2:
        return about[2][:2, :2]
    return about[2] @ about[1] @ about[0]


def place_mask(
    draw: SeedDraw, mask: jax.Array, brain: jax.Array, grid: Grid, settings: FluidSettings
) -> jax.Array:
    """A mask of the bank as P0, with at least `settings.inside_share` of it in the brain.

    It is mirrored about the middle of axis 0 (the mid-sagittal plane of a centred RAS+ grid),
    rotated and scaled about its centre, and moved by up to `bank_shift_mm`. The first of several
    such places that keeps the share is taken; if there is none, random places in the brain are
    tried. A mask that still does not fit, because it is too large, is cut at the border.

    Args:
      draw: mirror, angles, scale or wanted volume, and the key of the places.
      mask: boolean (x, y (, z)), not empty.
      brain: boolean (x, y (, z)), not empty.
      grid: geometry.
      settings: shift and share.

    Returns:
      P0 (x, y (, z)) in [0, 1], 1 at its maximum in the brain; zero where the mask is empty.
    """
    key_points, key_shift, key_brain = jax.random.split(draw.key, 3)
    points = random_voxels(key_points, mask, _POINTS).astype(jnp.float32)
    scale = jnp.where(draw.size_ml > 0, _scale_to(draw.size_ml, mask, grid), draw.scale)
    centre = jnp.mean(points, axis=0)
    h = np.asarray(grid.spacing, np.float32)
    mirror = jnp.ones(grid.ndim).at[0].set(jnp.where(draw.mirrored, -1.0, 1.0))
    forward = scale * turn(draw.angles, grid.ndim) * mirror  # of lengths in mm
    forward = forward * h / h[:, None]
    home = jnp.where(mirror < 0, np.asarray(grid.shape) - 1.0 - centre, centre)

    # Whole voxels keep a mask's edges; the outermost move is as likely as any.
    limit = np.floor(settings.bank_shift_mm / h + 1e-3) + 0.499
    near = jax.random.uniform(key_shift, (_PLACES_NEAR, grid.ndim), minval=-limit, maxval=limit)
    far = random_voxels(key_brain, brain, _PLACES_ANYWHERE)
    moves = jnp.round(jnp.concatenate([near, far - home]))
    exact = jax.lax.Precision.HIGHEST  # accelerators would round the positions
    turned = jnp.matmul(points - centre, forward.T, precision=exact)
    landed = jnp.round(home + moves[:, None] + turned).astype(jnp.int32)
    hits = _looked_up(brain, landed)
    fits = hits.mean(axis=1) >= settings.inside_share
    chosen = jnp.where(fits.any(), jnp.argmax(fits), jnp.argmax(hits.mean(axis=1)))

    P0 = _resample(mask, jnp.linalg.inv(forward), home + moves[chosen], centre, grid)
    whole = jnp.maximum(P0.sum(), scale**grid.ndim * mask.sum())
    inside = jnp.where(brain, P0, 0.0)
    P0 = jnp.where(inside.sum() >= settings.inside_share * whole, P0, inside)
    # A tiny mask can fall between the voxels: then one voxel of the brain under it is the seed.
    anchor = jnp.where(hits[chosen].any(), landed[chosen, jnp.argmax(hits[chosen])], far[0])
    speck = jnp.zeros(grid.shape).at[tuple(anchor)].set(1.0)
    peak = inside.max()
    P0 = jnp.where(peak > 1e-3, jnp.minimum(P0 / jnp.maximum(peak, _TINY), 1.0), speck)
    return jnp.where(mask.any(), P0, 0.0)


def _scale_to(size_ml: jax.Array, mask: jax.Array, grid: Grid) -> jax.Array:
    """The factor on lengths that gives a mask this volume."""
    volume = mask.sum() * grid.voxel_ml
    return jnp.clip((size_ml / jnp.maximum(volume, _TINY)) ** (1.0 / grid.ndim), *_SCALES)


def _looked_up(brain: jax.Array, voxel: jax.Array) -> jax.Array:
    """Whether voxels (..., d) lie in the brain; outside the volume they do not."""
    size = jnp.asarray(brain.shape)
    clipped = tuple(jnp.moveaxis(jnp.clip(voxel, 0, size - 1), -1, 0))
    return brain[clipped] & jnp.all((voxel >= 0) & (voxel < size), axis=-1)


def _resample(
    mask: jax.Array, inverse: jax.Array, target: jax.Array, centre: jax.Array, grid: Grid
) -> jax.Array:
    """The mask read at centre + inverse (x - target), linear, zero beyond its faces."""
    places = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in grid.shape), indexing='ij')
    offset = [p - target[k] for k, p in enumerate(places)]
    # Rounded to a fraction of a voxel, so that a mask that is only moved keeps its values exactly.
    at = [
        jnp.round((centre[i] + sum(inverse[i, j] * offset[j] for j in range(grid.ndim))) * 1024.0)
        / 1024.0
        for i in range(grid.ndim)
    ]
    return linear(mask.astype(jnp.float32), at, 'zero')
