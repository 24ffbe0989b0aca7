"""Healthy variants of a scan: what training scans of young adults from one scanner do not show.

Ventricles are widened and sulci too (age), slices are thick (clinical protocols), the scan is
shaded, blurred, and its brain mask is cut too tight or too wide. Both images of a training pair
share a variant, so a method learns to reproduce it, and not to take it for a lesion.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.interpolation import linear
from fluidjax.base.settings import check
from fluidjax.base.share import sample_keys
from fluidjax.fluid.anatomy import CENTRE_MM, WALL_MM, from_ventricles
from fluidjax.synthesis.resolution import (
    PRECISION,
    applied,
    blur_matrix,
    slice_matrix,
    within_brain,
)

Spacing = tuple[float, float, float]
_REACH_MM = 30.0  # from the wall to tissue that no longer moves
_SURFACE_MM = 8.0  # depth of the cortex whose sulci are widened
_CEREBELLUM_MM = (-10.0, -50.0)  # height, MNI, between which the steep fall of a coil goes on
_FLUID = (0.25, 0.45)  # intensity of fluid, in units of the mean of the brain
_FILL = 0.6  # largest intensity of what a mask cut too wide leaves


@dataclasses.dataclass(frozen=True)
class VariantSettings:
    """How far healthy scans are varied; each variant off at 0.

    Attributes:
        share: probability of each variant, independently of the others.
        ventricle_mm: largest outward movement of the wall of the lateral ventricles, at most 15.
        sulci_mm: largest widening of the sulci, on either side.
        slice_mm: largest thickness of the slices, along one random axis.
        shading: largest standard deviation of the logarithm of a smooth shading.
        fall: largest logarithm of the fall of intensity towards the cerebellum.
        mask_mm: largest distance by which the brain mask is cut too tight or too wide.
        blur_mm: largest full width at half maximum of an isotropic blur, as of motion.
        centre: position of the middle of the grid, mm (MNI152).
    """

    share: float = 0.0
    ventricle_mm: float = 12.0
    sulci_mm: float = 1.5
    slice_mm: float = 6.0
    shading: float = 0.35
    fall: float = 0.7
    mask_mm: float = 5.0
    blur_mm: float = 4.0
    centre: tuple[float, float, float] = CENTRE_MM

    def __post_init__(self) -> None:
        object.__setattr__(self, 'centre', tuple(float(x) for x in self.centre))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != 'centre':
                check(value >= 0, f'variants.{field.name}', value, 'must be 0 or more')
        for name, most in (('share', 1), ('ventricle_mm', 15)):
            value = getattr(self, name)
            check(value <= most, f'variants.{name}', value, f'must be at most {most}')


def vary_batch(
    key: jax.Array,
    images: jax.Array,
    brains: jax.Array,
    spacing: Spacing,
    settings: VariantSettings,
    fluid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Variants of a batch `(batch, x, y, z, 1)` of scans in [0, 1] and brain masks of 0 and 1.

    `key` is one key, or `(batch,)` keys, one per sample; `fluid` is `(batch,)`, see `vary`.
    """
    keys = sample_keys(key, images.shape[0])
    one = lambda k, image, brain, level: vary(k, image, brain, spacing, settings, level)
    images, brains = jax.vmap(one)(keys, images[..., 0], brains[..., 0], fluid)
    return images[..., None], brains[..., None]


def vary(
    key: jax.Array,
    image: jax.Array,
    brain: jax.Array,
    spacing: Spacing,
    settings: VariantSettings,
    fluid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A variant of one scan `(x, y, z)` and its brain mask, shaped alike; see `VariantSettings`.

    `fluid` is the intensity of CSF; None for a T1w scan, in which it is dark.
    """
    names = ('ventricles', 'sulci', 'resolution', 'shading', 'mask')
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    on = {
        name: jax.random.bernoulli(jax.random.fold_in(own, 0), settings.share)
        for name, own in keys.items()
    }

    def amount(name: str, most: float) -> jax.Array:
        return on[name] * most * jax.random.uniform(jax.random.fold_in(keys[name], 1))

    own = lambda name: jax.random.fold_in(keys[name], 2)
    moved = amount('ventricles', settings.ventricle_mm)
    image = widen_ventricles(own('ventricles'), image, moved, spacing, settings.centre, fluid)
    widened = amount('sulci', settings.sulci_mm)
    image = widen_sulci(image, brain, widened, spacing, fluid, settings.sulci_mm)
    image = _less_resolved(own('resolution'), image, brain, on['resolution'], spacing, settings)
    image = _shaded(own('shading'), image, brain, on['shading'], spacing, settings)
    cut = amount('mask', settings.mask_mm)
    return cut_mask(own('mask'), image, brain, cut, spacing)


def widen_ventricles(
    key: jax.Array,
    image: jax.Array,
    moved_mm: jax.Array,
    spacing: Spacing,
    centre: tuple[float, float, float],
    fluid: jax.Array | None = None,
) -> jax.Array:
    """The scan `(x, y, z)` with the walls of the lateral ventricles moved outwards.

    What lies within the wall is stretched, the tissue around it compressed over `_REACH_MM`. Where
    the ventricle of the scan is thinner than the template's, tissue is stretched too, so within the
    new wall all that is brighter than fluid (or is not fluid, where its intensity is given) becomes
    fluid. Left and right differ, and the movement
    varies along the ventricle, from a sixth of the largest to all of it.

    Args:
        key: of what differs.
        image: in MNI152 space, 0 outside the brain.
        moved_mm: largest movement of the wall.
        spacing: voxel size, mm.
        centre: position of the middle of the grid, mm.
        fluid: intensity of CSF; None for a T1w scan, in which it is dark.
    """
    distance, outward, side = from_ventricles(image.shape, spacing, centre)
    k_side, k_field, k_fluid = jax.random.split(key, 3)
    uneven = (1.0 + 0.5 * side * jax.random.uniform(k_side, minval=-1.0)) / 1.5
    field = jax.random.uniform(k_field, (4, 4, 4), minval=0.5)
    moved = moved_mm * uneven * jax.image.resize(field, image.shape, 'linear')
    wall, end = WALL_MM + moved, WALL_MM + _REACH_MM
    within = distance * WALL_MM / wall
    beyond = WALL_MM + (distance - wall) * _REACH_MM / (end - wall)
    source = jnp.where(distance < wall, within, jnp.where(distance < end, beyond, distance))
    shift = (source - distance)[..., None] * outward  # mm
    at = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in image.shape), indexing='ij')
    places = [a + shift[..., i] / spacing[i] for i, a in enumerate(at)]
    widened = linear(image, places, 'nearest')
    filled = jax.nn.sigmoid(2.0 * (wall - 1.0 - distance)) * jnp.minimum(moved / 2.0, 1.0)
    if fluid is not None:
        return widened + jnp.where(image > 0, filled, 0.0) * (fluid - widened)
    mean = jnp.sum(image) / jnp.maximum(jnp.sum(image > 0), 1)
    dark = mean * jax.random.uniform(k_fluid, minval=_FLUID[0], maxval=_FLUID[1])
    return widened + filled * (jnp.minimum(widened, dark) - widened)


def widen_sulci(
    image: jax.Array,
    brain: jax.Array,
    widened_mm: jax.Array,
    spacing: Spacing,
    fluid: jax.Array | None = None,
    most_mm: float = 0.0,
) -> jax.Array:
    """The scan `(x, y, z)` with what is dark near the surface of the brain widened.

    It is mixed with its minimum over the neighbouring voxels of the brain, by the share of a voxel
    that a sulcus is widened by, less with the depth; and again for every further voxel of
    `most_mm`, the largest widening that is possible (0: one voxel). Where CSF has the intensity
    `fluid`, and that is above the mean of the brain, what is bright is widened.
    """
    if fluid is not None:
        mean = jnp.sum(image * brain) / jnp.maximum(brain.sum(), 1.0)
        bright = fluid > mean
        turned = jnp.where(bright, brain * (1.0 - image), image)
        turned = widen_sulci(turned, brain, widened_mm, spacing, None, most_mm)
        return jnp.where(brain > 0, jnp.where(bright, 1.0 - turned, turned), image)
    inside = brain > 0
    deep = _smoothed(brain, [_SURFACE_MM / 2.0] * 3, spacing)  # 1/2 at the surface
    shallow, voxels = jnp.clip(2.0 * (1.0 - deep), 0.0, 1.0), widened_mm / min(spacing)
    for voxel in range(max(1, math.ceil(most_mm / min(spacing) - 1e-6))):
        darkest = jax.lax.reduce_window(
            jnp.where(inside, image, jnp.inf), jnp.inf, jax.lax.min, (3, 3, 3), (1, 1, 1), 'SAME'
        )
        share = jnp.clip(voxels - voxel, 0.0, 1.0) * shallow
        image = jnp.where(inside, image + share * (jnp.minimum(darkest, image) - image), image)
    return image


def _less_resolved(
    key: jax.Array,
    image: jax.Array,
    brain: jax.Array,
    on: jax.Array,
    spacing: Spacing,
    settings: VariantSettings,
) -> jax.Array:
    """Thick slices along a random axis, or a blur in all directions."""
    k_kind, k_axis, k_slice, k_blur = jax.random.split(key, 4)
    sliced = on & jax.random.bernoulli(k_kind)
    axis = jax.random.randint(k_axis, (), 0, 3)
    thickness = sliced * jax.random.uniform(k_slice, maxval=settings.slice_mm)
    blur = (on & ~sliced) * jax.random.uniform(k_blur, maxval=settings.blur_mm)
    return less_resolved(image, brain, axis, thickness, blur, spacing)


def less_resolved(
    image: jax.Array,
    brain: jax.Array,
    axis: jax.Array | int,
    slice_mm: jax.Array | float,
    blur_mm: jax.Array | float,
    spacing: Spacing,
) -> jax.Array:
    """The scan `(x, y, z)` with thick slices along an axis, and blurred; within the brain.

    Args:
        image: the scan.
        brain: 1 in the brain, whose surroundings are not mixed into it.
        axis: 0, 1 or 2.
        slice_mm: thickness of the slices; no thicker than voxels changes nothing.
        blur_mm: full width at half maximum of the blur; 0 changes nothing.
        spacing: voxel size, mm.
    """
    matrices = [
        jnp.matmul(
            slice_matrix(n, h, jnp.where(axis == i, slice_mm, 0.0)),
            blur_matrix(n, h, jnp.float32(blur_mm) / 2.355),
            precision=PRECISION,
        )
        for i, (n, h) in enumerate(zip(image.shape, spacing))
    ]
    return within_brain(image, brain, matrices)


def _smoothed(volume: jax.Array, sigmas_mm: list[float], spacing: Spacing) -> jax.Array:
    pairs = zip(volume.shape, spacing, sigmas_mm, strict=True)
    return applied(volume, [blur_matrix(n, h, jnp.float32(s)) for n, h, s in pairs])


def _shaded(
    key: jax.Array,
    image: jax.Array,
    brain: jax.Array,
    on: jax.Array,
    spacing: Spacing,
    settings: VariantSettings,
) -> jax.Array:
    """A smooth shading, or that with a steep fall towards the cerebellum."""
    k_size, k_field, k_fall, k_kind = jax.random.split(key, 4)
    level = settings.shading * jax.random.uniform(k_size)
    steep = jax.random.bernoulli(k_kind) * settings.fall * jax.random.uniform(k_fall)
    low = cerebellum(image.shape, spacing, settings.centre)
    return shade(image, brain, on * (level * smooth_field(k_field, image.shape) - steep * low))


def smooth_field(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A random field of a shading: three normal numbers along each axis, interpolated."""
    return jax.image.resize(jax.random.normal(key, (3, 3, 3)), shape, 'cubic')


def cerebellum(
    shape: tuple[int, ...], spacing: Spacing, centre: tuple[float, float, float]
) -> np.ndarray:
    """0 above the cerebellum and 1 below it, `(z,)`, linear between `_CEREBELLUM_MM`."""
    top, bottom = _CEREBELLUM_MM
    height = (np.arange(shape[2]) - (shape[2] - 1) / 2) * spacing[2] + centre[2]
    return np.clip((top - height) / (top - bottom), 0.0, 1.0).astype(np.float32)


def shade(image: jax.Array, brain: jax.Array, logarithm: jax.Array) -> jax.Array:
    """The scan `(x, y, z)` times a shading of this logarithm; the mean in the brain is kept."""
    shaded = image * jnp.exp(logarithm)
    voxels = jnp.maximum(brain.sum(), 1.0)
    before, after = (jnp.sum(v * brain) / voxels for v in (image, shaded))
    return jnp.clip(shaded * before / jnp.maximum(after, 1e-6), 0.0, 1.0)


def cut_mask(
    key: jax.Array, image: jax.Array, brain: jax.Array, cut_mm: jax.Array, spacing: Spacing
) -> tuple[jax.Array, jax.Array]:
    """The scan and its brain mask, cut too tight or too wide by up to a distance, unevenly.

    What a wide mask keeps of the surroundings has a random intensity that varies smoothly.

    Args:
        key: of where, and of tight or wide.
        image: `(x, y, z)`, 0 outside the brain.
        brain: 1 in the brain.
        cut_mm: the largest distance; 0 changes nothing.
        spacing: voxel size, mm.
    """
    k_wide, k_field, k_level, k_fill = jax.random.split(key, 4)
    wide = jax.random.bernoulli(k_wide)
    sigma = 4.0
    near = _smoothed(brain, [sigma] * 3, spacing)  # about Phi(depth / sigma)
    field = jax.image.resize(jax.random.uniform(k_field, (5, 5, 5)), image.shape, 'linear')
    depth = cut_mm * field
    level = jax.scipy.stats.norm.cdf(jnp.where(wide, -depth, depth) / sigma)
    kept = jnp.where(wide, (brain > 0) | (near > level), (brain > 0) & (near > level))
    kept = jnp.where(cut_mm > 0, kept, brain > 0)
    texture = jax.image.resize(jax.random.uniform(k_fill, (12, 12, 12)), image.shape, 'linear')
    fill = _FILL * jax.random.uniform(k_level) * texture
    filled = jnp.where(kept & (brain == 0), fill, image)
    return jnp.where(kept, filled, 0.0), kept.astype(brain.dtype)
