"""Lesion seeds from thresholded Perlin noise, and the threshold for a share of a region."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_TINY = 1e-6
_ENOUGH_VOXELS = 64  # along the shortest axis; finer volumes are thinned to find a threshold


def upper_threshold(
    values: jax.Array, share: jax.Array, within: jax.Array, num_bisections: int = 16
) -> jax.Array:
    """The level that a share of the voxels of `within` reaches, at most their maximum.

    By bisection of the range, to 1 / 65,536 of it: a sort of the volume costs ten times as much.
    """
    low = jnp.min(jnp.where(within, values, jnp.inf))
    high = jnp.max(jnp.where(within, values, -jnp.inf))
    wanted = share * jnp.sum(within)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        lower, upper = bounds
        middle = 0.5 * (lower + upper)
        too_many = jnp.sum((values >= middle) & within) > wanted
        return jnp.where(too_many, middle, lower), jnp.where(too_many, upper, middle)

    # The upper end is reached by no more voxels than asked for, except by the maximum itself.
    return jax.lax.fori_loop(0, num_bisections, halve, (low, high))[1]


def perlin_seed(
    noise: jax.Array, share: jax.Array, within: jax.Array, rescaled: bool = True
) -> jax.Array:
    """A lesion's probability map P0 before transport: noise above the level a share reaches.

    The share is counted over the voxels of `within`, the brain (published: over the volume). The
    published map is the masked noise as it is and peaks near 0.5; here its peak in `within` is 1.

    Args:
      noise: Perlin noise (x, y (, z)).
      share: share of the voxels of `within` that become lesion, in (0, 1).
      within: boolean (x, y (, z)), not empty.
      rescaled: whether the peak is scaled to 1; False as published.

    Returns:
      P0 (x, y (, z)) in [0, 1], zero below the level.
    """
    # Noise is smooth: in a fine volume every second voxel gives the same level.
    thin = tuple(slice(None, None, max(1, min(noise.shape) // _ENOUGH_VOXELS)) for _ in noise.shape)
    peak = jnp.max(jnp.where(within, noise, -jnp.inf))
    level = jnp.minimum(upper_threshold(noise[thin], share, within[thin]), peak)
    level = jnp.where(
        jnp.any(within[thin]), level, peak
    )  # thinning can remove a few voxels completely
    # The floor keeps a seed where the noise is negative in all of a very small brain.
    if not rescaled:
        return jnp.where(noise >= level, jnp.maximum(noise, _TINY), 0.0)
    scaled = jnp.maximum(noise, _TINY) / jnp.maximum(peak, _TINY)
    return jnp.where(noise >= level, jnp.minimum(scaled, 1.0), 0.0)
