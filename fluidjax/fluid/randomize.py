"""Fluid-driven anomaly randomization: a healthy brain -> a pair (healthy, diseased) and its lesion.

P0, a Perlin seed or a real lesion mask, is carried by a random incompressible flow for a random
time, cut to the brain, and painted into the image (arXiv:2506.10233):

    key -> Draw -> seed P0 -> transport -> P -> painted image

All of it is a pure function of a key under jit and vmap.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.base.share import sample_keys
from fluidjax.fluid import flow_map, painting, published
from fluidjax.fluid.bank import place_mask
from fluidjax.fluid.draws import Draw, SeedDraw, draw_pair
from fluidjax.fluid.flow import blurred, node_fractions
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.noise import perlin_noise, voxel_fractions
from fluidjax.fluid.seeds import perlin_seed, upper_threshold
from fluidjax.fluid.settings import FluidSettings
from fluidjax.fluid.transport import displacement, transport

_BRAIN_INTENSITY = 1e-3  # published: voxels below this are outside the brain
_LARGEST_SHARE = 0.5  # of the brain, for a Perlin seed of a wanted volume
_MASS_EFFECT_MM = 4.0  # the push falls by a factor e over this length, and is 0 at three times it


class Randomized(NamedTuple):
    """A pair and its lesion, each shaped as the image: (x, y (, z)), or (batch, x, y (, z), 1).

    healthy, diseased: images in [0, 1], see `painting.on_one_scale`; with `FluidSettings.parity`
      each is divided by its own maximum.
    mask: the lesion, 0 or 1, inside the brain; all 0 in a healthy pair.
    probability: P in [0, 1], zero outside the brain; all 0 in a healthy pair.
    """

    healthy: jax.Array
    diseased: jax.Array
    mask: jax.Array
    probability: jax.Array


def seed_map(
    seeds: SeedDraw,
    count: jax.Array,
    brain: jax.Array,
    grid: Grid,
    settings: FluidSettings,
    lesion_bank: jax.Array | None = None,
) -> jax.Array:
    """P0 (x, y (, z)) in [0, 1], the largest of `count` seeds, with its maximum 1 in the brain.

    Args:
      seeds: `Draw.seeds`, their numbers along a leading axis.
      count: number of seeds used.
      brain, grid, settings, lesion_bank: as in `randomize`.
    """
    first = _one_seed(
        jax.tree.map(lambda field: field[0], seeds), brain, grid, settings, lesion_bank
    )
    if settings.lesion_count[1] == 1:
        return first
    rest = jax.tree.map(lambda field: field[1:], seeds)

    def add(P0: jax.Array, numbered: tuple[jax.Array, SeedDraw]) -> tuple[jax.Array, None]:
        number, seed = numbered
        more = _one_seed(seed, brain, grid, settings, lesion_bank)
        return jnp.maximum(P0, jnp.where(number < count, more, 0.0)), None

    return jax.lax.scan(add, first, (jnp.arange(1, settings.lesion_count[1]), rest))[0]


def _one_seed(
    seed: SeedDraw,
    brain: jax.Array,
    grid: Grid,
    settings: FluidSettings,
    lesion_bank: jax.Array | None,
) -> jax.Array:
    share = 0.0 if lesion_bank is None else settings.bank_probability
    if share < 1.0:
        perlin = _noise_seed(seed, brain, grid, settings)
    if share == 0.0:
        return perlin
    mask = jnp.asarray(lesion_bank)[seed.bank_index] > 0
    real = place_mask(seed, mask, brain, grid, settings)
    return real if share == 1.0 else jnp.where(seed.from_bank, real, perlin)


def _noise_seed(seed: SeedDraw, brain: jax.Array, grid: Grid, settings: FluidSettings) -> jax.Array:
    periods = settings.periods(grid.ndim)
    if settings.parity:
        noise = published.published_noise(seed.key, grid, periods)
    else:
        noise = perlin_noise(
            seed.key,
            voxel_fractions(grid),
            periods,
            settings.perlin_octaves,
            settings.perlin_persistence,
            tiled=grid.periodic,
        )
    brain_ml = jnp.maximum(brain.sum(), 1) * grid.voxel_ml
    wanted = jnp.minimum(seed.size_ml / brain_ml, _LARGEST_SHARE)
    share = jnp.where(seed.size_ml > 0, wanted, seed.share)
    return perlin_seed(noise, share, brain, rescaled=not settings.parity)


def lesion_of(
    draw: Draw,
    brain: jax.Array,
    grid: Grid,
    settings: FluidSettings,
    lesion_bank: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Probability P and mask of a lesion (x, y (, z)): in the brain, and never empty there.

    If the flow carries the lesion out of the brain (`FluidSettings.min_peak`), the seed itself is
    returned, whose maximum is always inside.
    """
    P0 = seed_map(draw.seeds, draw.count, brain, grid, settings, lesion_bank)
    return carried(P0, draw, brain, grid, settings)


def carried(
    P0: jax.Array, draw: Draw, brain: jax.Array, grid: Grid, settings: FluidSettings
) -> tuple[jax.Array, jax.Array]:
    """The same of a given seed P0 (x, y (, z)), with the flow and the time of a draw."""
    P = jnp.where(brain, transport(P0, draw.key_flow, draw.time, grid, settings, brain), 0.0)
    seeded = jnp.where(brain, P0, 0.0)
    P = jnp.where(jnp.max(P) >= settings.min_peak * jnp.max(seeded), P, seeded)
    P = jnp.clip(P, 0.0, 1.0)  # rounding can leave the bounds
    mask = (P > 0.0) & (P >= settings.threshold * jnp.max(P))
    return P, mask.astype(P.dtype)


def randomize_drawn(
    draw: Draw,
    image: jax.Array,
    brain: jax.Array | None,
    grid: Grid,
    settings: FluidSettings = FluidSettings(),
    lesion_bank: jax.Array | None = None,
) -> Randomized:
    """`randomize` with its random numbers given."""
    image = jnp.asarray(image)
    brain = image > _BRAIN_INTENSITY if brain is None else jnp.asarray(brain) > 0
    _check_shapes(image, brain, grid, lesion_bank)
    P, mask = lesion_of(draw, brain, grid, settings, lesion_bank)
    painted = paint_drawn(draw, image, brain, P, mask, grid, settings)
    pair = pair_of(draw.diseased, image, painted, P, mask)
    if settings.parity:
        return pair._replace(healthy=painting.divide_by_maximum(image))
    return pair


def pair_of(
    diseased: jax.Array, image: jax.Array, painted: jax.Array, P: jax.Array, mask: jax.Array
) -> Randomized:
    """The pair of an image and the painted one; healthy twice where not diseased or unmarked."""
    diseased = diseased & jnp.any(mask > 0.0)
    healthy, other = painting.on_one_scale(image, jnp.where(diseased, painted, image))
    return Randomized(
        healthy=healthy,
        diseased=other,
        mask=jnp.where(diseased, mask, 0.0),
        probability=jnp.where(diseased, P, 0.0),
    )


def randomize(
    key: jax.Array,
    image: jax.Array,
    brain: jax.Array | None,
    grid: Grid,
    settings: FluidSettings = FluidSettings(),
    lesion_bank: jax.Array | None = None,
) -> Randomized:
    """A pair (healthy, diseased) from one healthy image.

    Args:
      key: PRNG key; the same key gives the same pair.
      image: healthy brain (x, y (, z)), intensities 0 or more, 0 outside the brain.
      brain: mask (x, y (, z)), inside where > 0; image > 1e-3 (as published) where None. An empty
        brain, or an empty mask drawn from the bank, gives a healthy pair.
      grid: geometry, static under jit.
      settings: what to draw, static under jit.
      lesion_bank: masks (n, x, y (, z)) on the same grid, uint8, none empty; only Perlin
        seeds where None.

    Returns:
      `Randomized`, each (x, y (, z)).

    Raises:
      UserError: where a shape differs from the grid's.
    """
    draw = draw_pair(key, settings, 0 if lesion_bank is None else lesion_bank.shape[0])
    return randomize_drawn(draw, image, brain, grid, settings, lesion_bank)


def randomize_batch(
    key: jax.Array,
    images: jax.Array,
    brains: jax.Array | None,
    grid: Grid,
    settings: FluidSettings = FluidSettings(),
    lesion_bank: jax.Array | None = None,
) -> Randomized:
    """`randomize` for a batch: images and brains (batch, x, y (, z), 1), each its own draw.

    `key` is one key, or `(batch,)` keys, one per sample.
    """
    _check_batch(images, brains, grid)
    keys = sample_keys(key, images.shape[0])

    def one(key: jax.Array, image: jax.Array, brain: jax.Array | None) -> Randomized:
        return randomize(key, image, brain, grid, settings, lesion_bank)

    brains = None if brains is None else brains[..., 0]
    axes = (0, 0, None if brains is None else 0)
    pairs = jax.vmap(one, in_axes=axes)(keys, images[..., 0], brains)
    return jax.tree.map(lambda volume: volume[..., None], pairs)


def paint_drawn(
    draw: Draw,
    image: jax.Array,
    brain: jax.Array,
    P: jax.Array,
    mask: jax.Array,
    grid: Grid,
    settings: FluidSettings,
) -> jax.Array:
    """The image (x, y (, z)) with the lesion P painted into it; neither is rescaled.

    Shift and spread are multiplied by the draw's strength.
    """
    if settings.mass_effect > 0.0:
        image = _pushed(draw, image, brain, mask, grid, settings)
    mu = painting.mean_inside(image, mask)
    if settings.painting == 'una_equation':
        white = 0.25 if settings.white_matter_bright else 0.75  # its share of the brain, from above
        level = upper_threshold(image, white, brain)
        shift = painting.equation_shift(
            level, draw.n_shift, draw.flipped, settings.white_matter_bright
        )
    else:
        shift = painting.lesion_shift(settings.painting, mu, draw.u_shift, draw.bright)
    texture = painting.lesion_texture(draw.key_texture, grid, settings.texture_mm)
    spread = 0.25 * mu * draw.u_spread
    return painting.paint(image, P, draw.strength * shift, draw.strength * spread, texture)


def _pushed(
    draw: Draw,
    image: jax.Array,
    brain: jax.Array,
    mask: jax.Array,
    grid: Grid,
    settings: FluidSettings,
) -> jax.Array:
    """Mass effect: the tissue around a lesion follows its flow, less with the distance.

    The displacement is that of the flow times a weight, 1 where the lesion is densest and 0 about
    12 mm away from it. What comes from outside the brain is left out of the interpolation.
    """
    moved, nodes = displacement(draw.key_flow, draw.time, grid, settings, brain)
    near = blurred(mask, grid, node_fractions(nodes, grid), _MASS_EFFECT_MM)
    far = 0.05  # exp(-3)
    near = jnp.maximum(near / jnp.maximum(near.max(), 1e-6) - far, 0.0) / (1.0 - far)
    near = settings.mass_effect * near
    fine = flow_map.to_voxels(moved * near[..., None], nodes, grid)
    tissue = brain.astype(image.dtype)
    share = flow_map.carry(tissue, fine, grid)
    pushed = flow_map.carry(image * tissue, fine, grid) / jnp.maximum(share, 0.5)
    return jnp.where(brain & (share >= 0.5) & jnp.any(fine != 0.0, axis=-1), pushed, image)


def _check_shapes(
    image: jax.Array, brain: jax.Array, grid: Grid, lesion_bank: jax.Array | None
) -> None:
    shapes = {'image': image.shape, 'brain mask': brain.shape}
    if lesion_bank is not None:
        shapes['lesion bank, after its first axis,'] = lesion_bank.shape[1:]
    for name, shape in shapes.items():
        if shape != grid.shape:
            raise UserError(f'{name} has shape {shape}, the grid {grid.shape}: resample it')
    if lesion_bank is not None and lesion_bank.shape[0] == 0:
        raise UserError('lesion bank has no mask: give at least one, or no bank')


def _check_batch(images: jax.Array, brains: jax.Array | None, grid: Grid) -> None:
    axes = 'x, y, z' if grid.ndim == 3 else 'x, y'
    if images.ndim != grid.ndim + 2 or images.shape[-1] != 1:
        raise UserError(f'images have shape {images.shape}: give (batch, {axes}, 1)')
    if brains is not None and brains.shape != images.shape:
        raise UserError(
            f'brain masks have shape {brains.shape}, images {images.shape}: give one per image'
        )
