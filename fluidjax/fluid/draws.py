"""The random numbers of a pair, drawn before anything is computed.

A `Draw` is small: scalars, and the keys of the fields (noise, flow, texture). The same draw gives
the same pair, so it can be saved, loaded and changed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fluidjax.fluid.settings import FluidSettings

_FLIPPED = 0.2  # UNA's equation flips the sign of a fifth of its lesions


class SeedDraw(NamedTuple):
    """The random numbers of one lesion seed; in a `Draw` each field has a leading axis of seeds.

    from_bank: whether it is a mask of the bank, not Perlin noise.
    share: share of the brain that a Perlin seed covers.
    size_ml: the wanted volume; 0 leaves it to `share` and `scale`.
    bank_index: which mask of the bank.
    mirrored: whether left and right are exchanged.
    angles: rotations about each axis, radians; (3,), of which 2-D uses the last.
    scale: factor on the mask's lengths.
    key: key of the noise and of the places tried.
    """

    from_bank: jax.Array
    share: jax.Array
    size_ml: jax.Array
    bank_index: jax.Array
    mirrored: jax.Array
    angles: jax.Array
    scale: jax.Array
    key: jax.Array


class Draw(NamedTuple):
    """The random numbers of one pair.

    diseased: whether the pair has a lesion.
    count: number of seeds used.
    seeds: `SeedDraw` with a leading axis of `FluidSettings.lesion_count[1]`.
    time: transport time.
    bright, flipped: sign of the painted shift, in the published code and in UNA's equation.
    u_shift, n_shift, u_spread: uniform, normal and uniform draw of the painted shift and spread.
    strength: factor on the shift and on the spread.
    key_flow, key_texture: of the flow and of the lesion's texture.
    """

    diseased: jax.Array
    count: jax.Array
    seeds: SeedDraw
    time: jax.Array
    bright: jax.Array
    flipped: jax.Array
    u_shift: jax.Array
    n_shift: jax.Array
    u_spread: jax.Array
    strength: jax.Array
    key_flow: jax.Array
    key_texture: jax.Array


def _uniform(key: jax.Array, limits: tuple[float, float]) -> jax.Array:
    return jax.random.uniform(key, (), minval=limits[0], maxval=limits[1])


def draw_seed(key: jax.Array, settings: FluidSettings, bank_size: int) -> SeedDraw:
    """The numbers of one seed; `bank_size` is the number of masks, 0 for Perlin seeds only."""
    keys = dict(zip(SeedDraw._fields, jax.random.split(key, len(SeedDraw._fields))))
    limit = jnp.deg2rad(settings.bank_rotation_degrees)
    low, high = settings.size_ml
    size = jnp.exp(_uniform(keys['size_ml'], (jnp.log(low), jnp.log(high)))) if low > 0 else 0.0
    least, most = (jnp.log(factor) for factor in settings.bank_scale)
    return SeedDraw(
        from_bank=jax.random.bernoulli(
            keys['from_bank'], settings.bank_probability if bank_size else 0.0
        ),
        share=1.0 - _uniform(keys['share'], settings.seed_percentiles) / 100.0,
        size_ml=jnp.float32(size),
        bank_index=jax.random.randint(keys['bank_index'], (), 0, max(bank_size, 1)),
        mirrored=jax.random.bernoulli(keys['mirrored']),
        angles=jax.random.uniform(keys['angles'], (3,), minval=-limit, maxval=limit),
        scale=jnp.exp(_uniform(keys['scale'], (least, most))),
        key=keys['key'],
    )


def draw_pair(key: jax.Array, settings: FluidSettings, bank_size: int = 0) -> Draw:
    """The numbers of one pair, a pure function of the key."""
    keys = dict(zip(Draw._fields, jax.random.split(key, len(Draw._fields))))
    least, most = settings.lesion_count
    seed_keys = jax.vmap(lambda i: jax.random.fold_in(keys['seeds'], i))(jnp.arange(most))
    return Draw(
        diseased=jax.random.bernoulli(keys['diseased'], settings.diseased_probability),
        count=jax.random.randint(keys['count'], (), least, most + 1),
        seeds=jax.vmap(lambda k: draw_seed(k, settings, bank_size))(seed_keys),
        time=_uniform(keys['time'], settings.transport_time),
        bright=jax.random.bernoulli(keys['bright'], settings.bright_probability),
        flipped=jax.random.bernoulli(keys['flipped'], _FLIPPED),
        u_shift=jax.random.uniform(keys['u_shift']),
        n_shift=jax.random.normal(keys['n_shift']),
        u_spread=jax.random.uniform(keys['u_spread']),
        strength=_uniform(keys['strength'], settings.strength),
        key_flow=keys['key_flow'],
        key_texture=keys['key_texture'],
    )
