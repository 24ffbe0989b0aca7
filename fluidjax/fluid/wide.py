"""A wider law of lesions than the published one: many sizes, places, edges, textures and contents.

A scan gets one or several lesions of any size, deep, beside the ventricles or in the cortex, darker
or brighter than the tissue or alike in all but texture, with soft or sharp edges, some with a core
of fluid or a rim. All are carried by the flow of `fluidjax.fluid.randomize`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.settings import check
from fluidjax.base.share import sample_keys
from fluidjax.fluid import painting
from fluidjax.fluid.anatomy import CENTRE_MM, from_ventricles
from fluidjax.fluid.bank import place_mask, random_voxels, turn
from fluidjax.fluid.draws import Draw, draw_pair
from fluidjax.fluid.flow import blurred
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.noise import perlin_noise, voxel_fractions
from fluidjax.fluid.randomize import Randomized, carried, pair_of
from fluidjax.fluid.seeds import upper_threshold
from fluidjax.fluid.settings import FluidSettings, is_count, is_range

_BUMP_MM = 25.0  # cells of the noise that makes seeds irregular
_BUMPS = 0.8  # its size, in units of the logarithm of a seed's radius
_LONG = 0.3  # standard deviation of the logarithm of a seed's semi-axes
_BESIDE_MM = (4.0, 16.0)  # of periventricular seats, from the middle line of a ventricle
_CORTEX_MM = 6.0  # depth of cortical seats, about
_RAMP_MM = 6.0  # over which the probability of a mask of the bank rises from its edge
_TEXTURE_MM = 8.0
_WHITE = 0.25  # share of the brain, from above, whose least intensity stands for white matter
_FLUID = (0.1, 0.4)  # intensity of fluid, in units of that of white matter
_ALIKE_SPREAD = 0.25  # of the texture of a lesion as bright as the tissue, in units of its mean
_SOFTEST = 0.8  # part of the probability over which the softest edge rises


@dataclasses.dataclass(frozen=True)
class WideSettings:
    """The wide law; hashable, static under `jax.jit`.

    Attributes:
        fluid: the flow, the share of diseased pairs, the lesion bank with the sizes of its masks,
            and the mask's threshold. Its painting law, its strength and its mass effect, and what
            concerns Perlin seeds, are not used.
        count: least and greatest number of lesions.
        size_ml: least and greatest volume of a scan's largest lesion, log-uniform; the others are
            log-uniform between the least and that. All together are at most the greatest.
        strength: least and greatest change of intensity, in units of the mean under the lesion; of
            bright lesions in given T1w scans half of it, in synthesised scans all.
        bright, alike: shares of scans whose lesions are brighter than the tissue, and as bright.
        core, rim: shares with a core of fluid, and with a rim of another intensity.
        centre: position of the middle of the grid, mm (MNI152).

    Raises:
        UserError: naming the field that is out of range.
    """

    fluid: FluidSettings = FluidSettings()
    count: tuple[int, int] = (1, 8)
    size_ml: tuple[float, float] = (0.05, 150.0)
    strength: tuple[float, float] = (0.1, 1.0)
    bright: float = 0.1
    alike: float = 0.1
    core: float = 0.25
    rim: float = 0.2
    centre: tuple[float, float, float] = CENTRE_MM

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        counts = isinstance(self.count, tuple) and all(map(is_count, self.count))
        advice = 'must be the least and the greatest, two whole numbers of 1 or more'
        check(counts and is_range(self.count, 1, 64), 'wide.count', self.count, advice)
        for name, least, most in (('size_ml', 1e-3, 1e4), ('strength', 0.0, 1.0)):
            value = getattr(self, name)
            advice = f'must be the least and the greatest, from {least:g} to {most:g}'
            check(is_range(value, least, most), f'wide.{name}', value, advice)
        for name in ('bright', 'alike', 'core', 'rim'):
            value = getattr(self, name)
            check(0 <= value <= 1, f'wide.{name}', value, 'must be a number from 0 to 1')
        check(self.bright + self.alike <= 1, 'wide.alike', self.alike, 'bright + alike exceed 1')

    @property
    def diseased_probability(self) -> float:
        """Share of the pairs that are diseased."""
        return self.fluid.diseased_probability


class Look(NamedTuple):
    """How the lesions of a scan are painted; scalars.

    shift: change of intensity in the lesion, in units of its mean.
    spread: standard deviation of the texture, in the same units.
    flattened: how much of the anatomy under the lesion is gone, 0 to 1.
    softness: part of the probability over which the lesion fades in.
    core: probability from which it is fluid; above 1 there is no core.
    fluid: intensity of fluid, in units of that of white matter.
    rim: change of intensity of the rim, in units of the mean.
    smooth: whether the texture is smooth, not white.
    """

    shift: jax.Array
    spread: jax.Array
    flattened: jax.Array
    softness: jax.Array
    core: jax.Array
    fluid: jax.Array
    rim: jax.Array
    smooth: jax.Array


class Appearance(NamedTuple):
    """How lesions look in the contrast of a scan; scalars.

    bright: probability that a lesion is brighter than the tissue around it.
    enhancing: probability that its rim is bright.
    white, fluid: intensity of white matter and of fluid.
    """

    bright: jax.Array
    enhancing: jax.Array
    white: jax.Array
    fluid: jax.Array


def draw_look(key: jax.Array, settings: WideSettings, appearance: Appearance | None = None) -> Look:
    """A random look.

    Args:
        key: random key.
        settings: `bright` is the share of scans whose lesions are brighter in T1w; in other
            contrasts it is the share in which they are not as the contrast calls for.
        appearance: of the scan's contrast; None for T1w.
    """
    if appearance is not None:
        return _look_in(appearance, key, settings)
    keys = dict(zip((*Look._fields, 'kind', 'has'), jax.random.split(key, 10), strict=True))
    u = {name: jax.random.uniform(own) for name, own in keys.items()}
    least, most = settings.strength
    strength = least + (most - least) * u['shift']
    brighter = u['kind'] < settings.bright
    alike = ~brighter & (u['kind'] < settings.bright + settings.alike)
    shift = jnp.where(alike, 0.0, jnp.where(brighter, 0.5 * strength, -strength))
    k_core, k_rim = jax.random.split(keys['has'])
    cored = jax.random.bernoulli(k_core, settings.core) & ~brighter
    rimmed = jax.random.bernoulli(k_rim, settings.rim)
    return Look(
        shift=shift,
        spread=jnp.where(alike, _ALIKE_SPREAD, 0.25 * strength * u['spread']),
        flattened=jnp.where(alike, 1.0, u['flattened']),
        softness=0.02 * (_SOFTEST / 0.02) ** u['softness'],
        core=jnp.where(cored, 0.4 + 0.4 * u['core'], 2.0),
        fluid=_FLUID[0] + (_FLUID[1] - _FLUID[0]) * u['fluid'],
        rim=rimmed * 0.8 * (u['rim'] - 0.5),
        smooth=u['smooth'] < 0.5,
    )


def _look_in(appearance: Appearance, key: jax.Array, settings: WideSettings) -> Look:
    """A random look in a contrast."""
    k_usual, k_kind, k_core, k_fluid, k_rim = jax.random.split(key, 5)
    usual = draw_look(k_usual, dataclasses.replace(settings, bright=0.0))
    as_called_for = jax.random.bernoulli(k_kind, 1.0 - settings.bright)
    brighter = jax.random.bernoulli(jax.random.fold_in(k_kind, 1), appearance.bright)
    brighter = brighter == as_called_for
    cored = jax.random.bernoulli(k_core, settings.core)
    u = jax.random.uniform(k_rim)
    enhancing = jax.random.bernoulli(jax.random.fold_in(k_rim, 1), appearance.enhancing)
    level = appearance.fluid / jnp.maximum(appearance.white, 1e-3)
    return usual._replace(
        shift=jnp.where(brighter, -usual.shift, usual.shift),
        core=jnp.where(cored, 0.4 + 0.4 * jax.random.uniform(jax.random.fold_in(k_core, 1)), 2.0),
        fluid=level * jax.random.uniform(k_fluid, minval=0.8, maxval=1.2),
        rim=jnp.where(enhancing, 0.3 + 0.7 * u, usual.rim),
    )


def seeds(
    key: jax.Array,
    brain: jax.Array,
    grid: Grid,
    settings: WideSettings,
    tissue: jax.Array | None = None,
) -> jax.Array:
    """P0 (x, y, z): irregular ellipsoids, 1 in their middles and `fluid.threshold` at their edges.

    A third each lies anywhere, beside the ventricles, and in the cortex. Ventricles may be wider
    than those of the atlas: with `tissue`, boolean, middles beside the ventricles lie in it.
    """
    k_count, k_size, k_noise, k_each = jax.random.split(key, 4)
    least, most = settings.count
    count = jax.random.randint(k_count, (), least, most + 1)
    low, high = np.log(settings.size_ml)
    u = jax.random.uniform(k_size, (most,))
    sizes = jnp.exp(low + (high - low) * u * u[0] ** (jnp.arange(most) > 0))
    sizes = jnp.where(jnp.arange(most) < count, sizes, 0.0)
    sizes *= jnp.minimum(1.0, settings.size_ml[1] / sizes.sum())
    radii = (3.0 / (4.0 * np.pi) * 1000.0 * sizes) ** (1.0 / 3.0)  # mm
    cells = tuple(max(2, round(length / _BUMP_MM)) for length in grid.extent)
    bumps = jnp.exp(_BUMPS * perlin_noise(k_noise, voxel_fractions(grid), cells))
    regions = _regions(brain, grid, settings.centre, tissue)

    def add(P0: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        key, radius = one
        return jnp.maximum(P0, _ellipsoid(key, radius, grid, bumps, regions, settings)), None

    keys = jax.random.split(k_each, most)
    return jax.lax.scan(add, jnp.zeros(grid.shape), (keys, radii))[0]


def _ellipsoid(
    key: jax.Array,
    radius: jax.Array,
    grid: Grid,
    bumps: jax.Array,
    regions: jax.Array,
    settings: WideSettings,
) -> jax.Array:
    k_seat, k_place, k_axes, k_turn = jax.random.split(key, 4)
    region = regions[jax.random.randint(k_seat, (), 0, len(regions))]
    region = jnp.where(region.any(), region, regions[0])
    middle = random_voxels(k_place, region, 1)[0]
    lengths = jnp.exp(_LONG * jax.random.normal(k_axes, (3,)))
    lengths = radius * lengths / jnp.prod(lengths) ** (1.0 / 3.0)
    angles = jax.random.uniform(k_turn, (3,), minval=-np.pi, maxval=np.pi)
    to_unit = turn(angles, 3) / jnp.maximum(lengths, 1e-3)[:, None]
    axes = zip(grid.shape, grid.spacing, middle)
    away = [(jnp.arange(n) - place) * h for n, h, place in axes]
    x, y, z = jnp.meshgrid(*away, indexing='ij', sparse=True)
    turned = [row[0] * x + row[1] * y + row[2] * z for row in to_unit]
    # 0 in the middle: a lesion smaller than a voxel still has one voxel.
    distance = jnp.sqrt(sum(t**2 for t in turned)) * bumps
    falling = jnp.clip(1.0 - (1.0 - settings.fluid.threshold) * distance, 0.0, 1.0)
    return jnp.where((radius > 0) & (distance <= 1.0), falling, 0.0)


def _tissue(image: jax.Array, white: jax.Array, fluid: jax.Array) -> jax.Array:
    """The voxels whose intensity is nearer to white matter's than to CSF's."""
    return jnp.abs(image - white) < jnp.abs(image - fluid)


def _regions(
    brain: jax.Array,
    grid: Grid,
    centre: tuple[float, float, float],
    tissue: jax.Array | None = None,
) -> jax.Array:
    """Where seeds may lie, boolean (3, x, y, z): anywhere, beside the ventricles, in the cortex."""
    distance = from_ventricles(grid.shape, grid.spacing, centre)[0]
    beside = brain & (distance > _BESIDE_MM[0]) & (distance < _BESIDE_MM[1])
    beside = beside if tissue is None else beside & tissue
    inner = blurred(brain.astype(jnp.float32), grid, voxel_fractions(grid), _CORTEX_MM)
    return jnp.stack([brain, beside, brain & (inner < 0.8 * inner.max())])


def paint_look(
    key: jax.Array,
    image: jax.Array,
    P: jax.Array,
    mask: jax.Array,
    look: Look,
    grid: Grid,
    threshold: float,
    white: jax.Array,
) -> jax.Array:
    """The image (x, y, z) with the lesions painted into it; not rescaled.

    Args:
        key: of the texture.
        image: intensities (x, y, z) in [0, 1].
        P, mask: of the lesions, see `randomize.lesion_of`.
        look: how.
        grid: geometry.
        threshold: share of the largest P at which the mask ends.
        white: intensity of white matter.
    """
    level = P / jnp.maximum(P.max(), 1e-6)
    fading = jnp.clip((level - threshold) / look.softness + 0.5, 0.0, 1.0) * mask
    mu = painting.mean_inside(image, mask)
    texture = jnp.where(
        look.smooth,
        painting.lesion_texture(key, grid, _TEXTURE_MM),
        painting.lesion_texture(key, grid),
    )
    flat = image + look.flattened * (mu - image)
    content = flat + mu * (look.shift + look.spread * texture)
    in_core = jnp.clip((level - look.core) / 0.1, 0.0, 1.0)
    fluid = white * look.fluid * (1.0 + 0.1 * texture)
    filled = jnp.where(look.fluid < 1.0, jnp.minimum(content, fluid), jnp.maximum(content, fluid))
    content = content + in_core * (filled - content)
    in_rim = jnp.exp(-0.5 * ((level - threshold - 0.1) / 0.08) ** 2)
    content = content + in_rim * look.rim * mu
    return jnp.clip(image + fading * (content - image), 0.0, 1.0)


def randomize_wide(
    key: jax.Array,
    image: jax.Array,
    brain: jax.Array,
    grid: Grid,
    settings: WideSettings,
    lesion_bank: jax.Array | None = None,
    appearance: Appearance | None = None,
) -> Randomized:
    """A pair (healthy, diseased) by the wide law.

    Args:
        key: the same key gives the same pair.
        image: healthy brain (x, y, z), 0 outside.
        brain: mask (x, y, z).
        grid: geometry, static under jit.
        settings: static under jit.
        lesion_bank: masks (n, x, y, z) as in `randomize`; a share `fluid.bank_probability` of the
            pairs has one of them instead of ellipsoids.
        appearance: of lesions in the scan's contrast; None for T1w.
    """
    k_draw, k_seeds, k_look = jax.random.split(key, 3)
    brain = brain > 0
    draw = draw_pair(k_draw, settings.fluid, 0 if lesion_bank is None else len(lesion_bank))
    if appearance is None:
        white = upper_threshold(image, _WHITE, brain)
        fluid = np.mean(_FLUID) * white
    else:
        white, fluid = appearance.white, appearance.fluid
    P0 = seeds(k_seeds, brain, grid, settings, _tissue(image, white, fluid))
    if lesion_bank is not None:
        P0 = jnp.where(draw.seeds.from_bank[0], _real(draw, brain, grid, settings, lesion_bank), P0)
    P, mask = carried(P0, draw, brain, grid, settings.fluid)
    look = draw_look(k_look, settings, appearance)
    threshold = settings.fluid.threshold
    painted = paint_look(draw.key_texture, image, P, mask, look, grid, threshold, white)
    return pair_of(draw.diseased, image, painted, P, mask)


def _real(
    draw: Draw, brain: jax.Array, grid: Grid, settings: WideSettings, bank: jax.Array
) -> jax.Array:
    """A mask of the bank as P0, which rises from its edge to its middle as that of an ellipsoid."""
    seed = jax.tree.map(lambda field: field[0], draw.seeds)
    mask = jnp.asarray(bank)[seed.bank_index] > 0
    placed = place_mask(seed, mask, brain, grid, settings.fluid)
    inner = blurred(placed, grid, voxel_fractions(grid), _RAMP_MM)
    inner = jnp.where(placed > 0, inner, 0.0)
    edge = settings.fluid.threshold
    return jnp.where(placed > 0, edge + (1.0 - edge) * inner / jnp.maximum(inner.max(), 1e-6), 0.0)


def randomize_wide_batch(
    key: jax.Array,
    images: jax.Array,
    brains: jax.Array,
    grid: Grid,
    settings: WideSettings,
    lesion_bank: jax.Array | None = None,
    appearances: Appearance | None = None,
) -> Randomized:
    """`randomize_wide` for a batch: images and brains (batch, x, y, z, 1), each its own draw.

    `key` is one key, or `(batch,)` keys, one per sample; fields of `appearances` are `(batch,)`.
    """

    def one(key: jax.Array, image: jax.Array, brain: jax.Array, look: Any) -> Randomized:
        return randomize_wide(key, image, brain, grid, settings, lesion_bank, look)

    keys = sample_keys(key, images.shape[0])
    pairs = jax.vmap(one)(keys, images[..., 0], brains[..., 0], appearances)
    return jax.tree.map(lambda volume: volume[..., None], pairs)
