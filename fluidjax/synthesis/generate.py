"""Scans from tissue fractions: random means, partial volume, texture, slices, field of view.

A voxel is the sum of its tissues' intensities, weighted by their fractions, which is what partial
volume does to a scan. Means and spreads are drawn anew for each scan (SynthSeg, arXiv:2107.09559;
`fluidjax.synthesis.contrasts`). Shading, gamma and noise of the scanner follow with the
augmentation of all training scans (`fluidjax.methods.augment`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fluidjax.base.settings import check
from fluidjax.base.share import sample_keys
from fluidjax.synthesis.contrasts import CONTRASTS, Drawn, draw_contrast
from fluidjax.synthesis.resolution import slice_matrix, within_brain

Spacing = tuple[float, float, float]
LEVELS = 255.0  # a fraction of 1, as stored


@dataclasses.dataclass(frozen=True)
class SynthesisSettings:
    """How scans are made from tissue fractions; hashable, static under `jax.jit`.

    Attributes:
        contrasts: names of `contrasts.CONTRASTS`, one of which is drawn for each scan.
        spread: largest standard deviation of a tissue's intensity, in units of its mean.
        texture_mm: correlation length of half of that; the other half differs in every voxel.
        sliced: probability of thick slices, for each axis.
        slice_mm: greatest thickness of slices.
        cut: probability that the field of view cuts the brain, from above or below.
        cut_mm: the most that is cut off.

    Raises:
        UserError: naming the field that is out of range.
    """

    contrasts: tuple[str, ...] = tuple(CONTRASTS)
    spread: float = 0.1
    texture_mm: float = 10.0
    sliced: float = 0.25
    slice_mm: float = 6.0
    cut: float = 0.1
    cut_mm: float = 30.0

    def __post_init__(self) -> None:
        known = bool(self.contrasts) and set(self.contrasts) <= set(CONTRASTS)
        advice = f'must be names of {", ".join(CONTRASTS)}'
        check(known, 'synthesis.contrasts', self.contrasts, advice)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != 'contrasts':
                check(value >= 0, f'synthesis.{field.name}', value, 'must be 0 or more')
        for name in ('spread', 'sliced', 'cut'):
            value = getattr(self, name)
            check(value <= 1, f'synthesis.{name}', value, 'must be at most 1')
        check(self.texture_mm > 0, 'synthesis.texture_mm', self.texture_mm, 'must be more than 0')


def synthesise_batch(
    key: jax.Array,
    tissues: jax.Array,
    brains: jax.Array,
    spacing: Spacing,
    settings: SynthesisSettings,
) -> tuple[jax.Array, jax.Array, Drawn]:
    """`synthesise` for a batch: fractions `(batch, x, y, z, tissues)`, masks `(batch, x, y, z, 1)`.

    `key` is one key, or `(batch,)` keys, one per sample.
    """
    keys = sample_keys(key, tissues.shape[0])
    one = lambda k, tissue, brain: synthesise(k, tissue, brain, spacing, settings)
    images, brains, drawn = jax.vmap(one)(keys, tissues, brains[..., 0])
    return images[..., None], brains[..., None], drawn


def synthesise(
    key: jax.Array,
    tissue: jax.Array,
    brain: jax.Array,
    spacing: Spacing,
    settings: SynthesisSettings,
) -> tuple[jax.Array, jax.Array, Drawn]:
    """A scan of a random contrast.

    Args:
        key: random key.
        tissue: fractions of `base.subject.TISSUES`, `(x, y, z, tissues)` uint8, 255 for 1.
        brain: `(x, y, z)`, 1 in the brain.
        spacing: voxel size, mm.
        settings: static under jit.

    Returns:
        image: `(x, y, z)` float32 in [0, 1], 0 outside the brain.
        brain: `(x, y, z)` float32, less what the field of view cuts off.
        drawn: the contrast.
    """
    k_contrast, k_texture, k_slices, k_cut = jax.random.split(key, 4)
    drawn = draw_contrast(k_contrast, settings.contrasts)
    fractions = tissue.astype(jnp.float32) / LEVELS
    brain = (brain > 0).astype(jnp.float32)
    image = _textured(k_texture, fractions, drawn.means, spacing, settings)
    image = within_brain(image, brain, _slices(k_slices, image.shape, spacing, settings))
    brain = brain * _field_of_view(k_cut, brain, spacing, settings)
    return jnp.clip(image, 0.0, 1.0) * brain, brain, drawn


def _textured(
    key: jax.Array,
    fractions: jax.Array,
    means: jax.Array,
    spacing: Spacing,
    settings: SynthesisSettings,
) -> jax.Array:
    """Means of the tissues with a spread of each, half of it smooth."""
    k_spread, k_smooth, k_white = jax.random.split(key, 3)
    spreads = means * settings.spread * jax.random.uniform(k_spread, means.shape)
    mean, spread = (
        jnp.sum(fractions * values, axis=-1)  # not a matrix product, which accelerators round
        for values in (means, spreads)
    )
    shape = mean.shape
    nodes = tuple(max(2, round(n * h / settings.texture_mm)) for n, h in zip(shape, spacing))
    smooth = jax.image.resize(jax.random.normal(k_smooth, nodes), shape, 'linear')
    for axis, (n, k) in enumerate(zip(shape, nodes)):
        # Between nodes an interpolated value has a smaller variance than at them.
        weights = jax.image.resize(jnp.eye(k), (n, k), 'linear')
        norms = jnp.linalg.norm(weights, axis=1)
        smooth = smooth / jnp.expand_dims(norms, [i for i in range(3) if i != axis])
    noise = (smooth + jax.random.normal(k_white, shape)) / jnp.sqrt(2.0)
    return mean + spread * noise


def _slices(
    key: jax.Array, shape: tuple[int, ...], spacing: Spacing, settings: SynthesisSettings
) -> list[jax.Array]:
    """The matrix of slices of a random thickness along each axis."""
    k_on, k_mm = jax.random.split(key)
    on = jax.random.bernoulli(k_on, settings.sliced, (3,))
    thickness = on * jax.random.uniform(k_mm, (3,), maxval=settings.slice_mm)
    return [slice_matrix(n, h, t) for n, h, t in zip(shape, spacing, thickness)]


def _field_of_view(
    key: jax.Array, brain: jax.Array, spacing: Spacing, settings: SynthesisSettings
) -> jax.Array:
    """1 within the field of view, 0 in what it cuts off above or below, `(z,)`."""
    k_on, k_mm, k_above = jax.random.split(key, 3)
    cut = jax.random.bernoulli(k_on, settings.cut) * jax.random.uniform(k_mm) * settings.cut_mm
    height = jnp.arange(brain.shape[2]) * spacing[2]
    there = brain.any(axis=(0, 1))
    lowest = jnp.min(jnp.where(there, height, jnp.inf))
    highest = jnp.max(jnp.where(there, height, -jnp.inf))
    above = jax.random.bernoulli(k_above)
    return jnp.where(above, height <= highest - cut, height >= lowest + cut).astype(jnp.float32)
