"""Fluid-driven anomaly randomization: a healthy brain -> a pair (healthy, diseased) and its lesion.

P0, a Perlin seed or a real lesion mask, is carried by dP/dt = -V . grad P with V = curl(Psi) for a
random time, cut to the brain, and painted into the image (arXiv:2506.10233). All of it is a pure
function of a key under jit and vmap.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fluidjax.errors import UserError
from fluidjax.fluid import operators
from fluidjax.fluid.bank import bank_seed
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.integrate import SCHEMES, split_time, stable_time_step, trajectory
from fluidjax.fluid.noise import lesion_seed, perlin_noise
from fluidjax.fluid.painting import divide_by_maximum, paint_lesion
from fluidjax.fluid.settings import FluidSettings

_BRAIN_INTENSITY = 1e-3  # published: voxels below this are outside the brain


class Randomized(NamedTuple):
    """A pair and its lesion, each shaped as the image: (x, y, z), or (batch, x, y, z, 1).

    healthy, diseased: images in [0, 1], each divided by its own maximum.
    mask: the lesion, 0 or 1, inside the brain; all 0 in a healthy pair.
    probability: P in [0, 1], zero outside the brain; all 0 in a healthy pair.
    """

    healthy: jax.Array
    diseased: jax.Array
    mask: jax.Array
    probability: jax.Array


def random_velocity(key: jax.Array, grid: Grid, settings: FluidSettings) -> jax.Array:
    """Divergence-free V (x, y, z, 3) in mm per unit time: scaled curl of three Perlin potentials.

    The potentials are independent. (In the published code they come out identical, which confines
    V to the planes orthogonal to (1, 1, 1).)
    """
    potentials = [
        perlin_noise(key_axis, grid.shape, settings.perlin_periods)
        for key_axis in jax.random.split(key, 3)
    ]
    return settings.velocity_scale * operators.curl(jnp.stack(potentials, axis=-1), grid)


def transport(
    P0: jax.Array, V: jax.Array, total_time: jax.Array, grid: Grid, settings: FluidSettings
) -> jax.Array:
    """P0 carried along V for a time, in stable steps; shortened where the loop is too short for it.

    Every value stays within the bounds of P0, whatever the flow.
    """
    max_steps = settings.num_steps(grid)
    dt, num_steps = split_time(total_time, stable_time_step(V, grid, settings.cfl), max_steps)
    scheme, right_hand_side = SCHEMES[settings.scheme], operators.advection_operator(V, grid)
    return trajectory(lambda P: scheme(right_hand_side, P, dt), P0, max_steps, num_steps)


def draw_seed(
    key: jax.Array,
    brain: jax.Array,
    grid: Grid,
    settings: FluidSettings,
    lesion_bank: jax.Array | None = None,
) -> jax.Array:
    """P0 (x, y, z) in [0, 1], with its maximum 1 reached inside the brain: Perlin or bank."""
    key_choice, key_perlin, key_bank = jax.random.split(key, 3)
    share = 0.0 if lesion_bank is None else settings.bank_probability
    periods, percentiles = settings.perlin_periods, settings.seed_percentiles
    if share < 1.0:
        perlin = lesion_seed(key_perlin, grid, periods, percentiles, within=brain)
    if share == 0.0:
        return perlin
    real = bank_seed(key_bank, lesion_bank, brain, grid, settings.bank_shift_mm)
    if share == 1.0:
        return real
    return jnp.where(jax.random.bernoulli(key_choice, share), real, perlin)


def draw_lesion(
    key: jax.Array,
    brain: jax.Array,
    grid: Grid,
    settings: FluidSettings,
    lesion_bank: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Probability P and mask of a random lesion (x, y, z): in the brain, and never empty there.

    Where the flow carries the lesion out of the brain (`FluidSettings.min_peak`), the seed itself
    is taken, which always has its maximum inside.
    """
    key_seed, key_flow, key_time = jax.random.split(key, 3)
    P0 = draw_seed(key_seed, brain, grid, settings, lesion_bank)
    V = random_velocity(key_flow, grid, settings)
    shortest, longest = settings.transport_time
    total_time = jax.random.uniform(key_time, (), minval=shortest, maxval=longest)
    P = jnp.where(brain, transport(P0, V, total_time, grid, settings), 0.0)
    P = jnp.where(jnp.max(P) >= settings.min_peak, P, jnp.where(brain, P0, 0.0))
    P = jnp.clip(P, 0.0, 1.0)  # rounding alone can leave the bounds
    mask = (P > 0.0) & (P >= settings.threshold * jnp.max(P))
    return P, mask.astype(P.dtype)


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
      image: healthy brain (x, y, z), intensities 0 or more, 0 outside the brain.
      brain: mask (x, y, z), inside where > 0; image > 1e-3 (as published) where None. An empty
        brain, or an empty mask drawn from the bank, gives a healthy pair.
      grid: geometry, static under jit.
      settings: what to draw, static under jit.
      lesion_bank: masks (n, x, y, z) on the same grid, uint8, none empty; Perlin seeds alone where
        None.

    Returns:
      `Randomized`, each (x, y, z).

    Raises:
      UserError: where a shape differs from the grid's.
    """
    brain = image > _BRAIN_INTENSITY if brain is None else brain > 0
    _check_shapes(image, brain, grid, lesion_bank)
    key_lesion, key_paint, key_diseased = jax.random.split(key, 3)
    P, mask = draw_lesion(key_lesion, brain, grid, settings, lesion_bank)
    painted = _paint(key_paint, image, P, mask, settings)
    diseased = jax.random.bernoulli(key_diseased, settings.diseased_probability)
    diseased &= jnp.any(mask > 0.0)
    return Randomized(
        healthy=divide_by_maximum(image),
        diseased=divide_by_maximum(jnp.where(diseased, painted, image)),
        mask=jnp.where(diseased, mask, 0.0),
        probability=jnp.where(diseased, P, 0.0),
    )


def randomize_batch(
    key: jax.Array,
    images: jax.Array,
    brains: jax.Array | None,
    grid: Grid,
    settings: FluidSettings = FluidSettings(),
    lesion_bank: jax.Array | None = None,
) -> Randomized:
    """`randomize` for a batch: images and brains (batch, x, y, z, 1), each sample its own draw."""
    _check_batch(images, brains)
    keys = jax.random.split(key, images.shape[0])

    def one(key: jax.Array, image: jax.Array, brain: jax.Array | None) -> Randomized:
        return randomize(key, image, brain, grid, settings, lesion_bank)

    brains = None if brains is None else brains[..., 0]
    axes = (0, 0, None if brains is None else 0)
    pairs = jax.vmap(one, in_axes=axes)(keys, images[..., 0], brains)
    return jax.tree.map(lambda volume: volume[..., None], pairs)


def _paint(
    key: jax.Array, image: jax.Array, P: jax.Array, mask: jax.Array, settings: FluidSettings
) -> jax.Array:
    key_uniform, key_noise, key_bright = jax.random.split(key, 3)
    u_shift, u_spread = jax.random.uniform(key_uniform, (2,))
    noise = jax.random.normal(key_noise, image.shape, image.dtype)
    bright = jax.random.bernoulli(key_bright, settings.bright_probability)
    return paint_lesion(image, P, mask, u_shift, u_spread, noise, bright, settings.painting)


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


def _check_batch(images: jax.Array, brains: jax.Array | None) -> None:
    if images.ndim != 5 or images.shape[-1] != 1:
        raise UserError(f'images have shape {images.shape}: give (batch, x, y, z, 1)')
    if brains is not None and brains.shape != images.shape:
        raise UserError(f'brain masks have shape {brains.shape}, images {images.shape}: '
                        'give one mask an image')
