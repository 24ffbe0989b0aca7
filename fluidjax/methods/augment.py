"""Augmentation of healthy scans on the device, in geometry and intensity.

A scan and its brain mask are mirrored, rotated, scaled, sheared and warped, and the scan gets
another contrast, a bias field and noise. It happens inside the training step, before the
randomization, so both images of a pair share it. The published ranges are those of UNA
(arXiv:2501.13370).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.base.interpolation import linear
from fluidjax.base.settings import check
from fluidjax.base.share import sample_keys

Spacing = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """How much a training scan is changed; 0 turns a change off.

    Attributes:
        flip_probability: of a left-right mirroring.
        rotation_degrees: largest rotation about each axis.
        scaling: largest relative change of size, per axis.
        shear: largest shear.
        displacement_mm: standard deviation of the elastic displacement's control points.
        control_spacing_mm: distance of the control points of the displacement; those of the bias
            field are twice as far apart.
        gamma: standard deviation of the logarithm of the exponent.
        bias: standard deviation of the logarithm of the bias field.
        noise: largest standard deviation of the noise.
    """

    flip_probability: float = 0.5
    rotation_degrees: float = 15.0
    scaling: float = 0.2
    shear: float = 0.2
    displacement_mm: float = 4.0
    control_spacing_mm: float = 32.0
    gamma: float = 0.1
    bias: float = 0.1
    noise: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check(value >= 0, f'augment.{field.name}', value, 'must be 0 or more')
        spacing = self.control_spacing_mm
        check(spacing > 0, 'augment.control_spacing_mm', spacing, 'must be more than 0')

    @property
    def moves(self) -> bool:
        """Whether voxels are moved by more than mirroring."""
        return any((self.rotation_degrees, self.scaling, self.shear, self.displacement_mm))


def _smooth_field(key: jax.Array, shape: tuple[int, ...], points: tuple[int, ...]) -> jax.Array:
    """A random field of unit variance at its control points, cubic in between: `(x, y, z)`."""
    return jax.image.resize(jax.random.normal(key, points), shape, 'cubic')


def _control_points(shape: tuple[int, ...], spacing: Spacing, distance: float) -> tuple[int, ...]:
    return tuple(max(2, round(n * h / distance)) for n, h in zip(shape, spacing))


def random_affine(key: jax.Array, settings: AugmentSettings) -> jax.Array:
    """A rotation, shear and scaling about the centre: `(3, 3)`."""
    k_rotation, k_scale, k_shear = jax.random.split(key, 3)
    limit = np.deg2rad(settings.rotation_degrees)
    a, b, c = jax.random.uniform(k_rotation, (3,), minval=-limit, maxval=limit)
    one, zero = jnp.ones(()), jnp.zeros(())
    about_x = jnp.stack(
        [one, zero, zero, zero, jnp.cos(a), -jnp.sin(a), zero, jnp.sin(a), jnp.cos(a)]
    ).reshape(3, 3)
    about_y = jnp.stack(
        [jnp.cos(b), zero, jnp.sin(b), zero, one, zero, -jnp.sin(b), zero, jnp.cos(b)]
    ).reshape(3, 3)
    about_z = jnp.stack(
        [jnp.cos(c), -jnp.sin(c), zero, jnp.sin(c), jnp.cos(c), zero, zero, zero, one]
    ).reshape(3, 3)
    scale = 1.0 + settings.scaling * jax.random.uniform(k_scale, (3,), minval=-1.0)
    shear = jnp.eye(3) + settings.shear * jnp.triu(
        jax.random.uniform(k_shear, (3, 3), minval=-1.0), k=1
    )
    return about_x @ about_y @ about_z @ shear @ jnp.diag(scale)


def move(
    key: jax.Array, image: jax.Array, brain: jax.Array, spacing: Spacing, settings: AugmentSettings
) -> tuple[jax.Array, jax.Array]:
    """Affine and elastic change of one scan `(x, y, z)` and its brain mask."""
    k_affine, k_elastic = jax.random.split(key)
    shape = image.shape
    half = [(n - 1) / 2 for n in shape]
    axes = [(jnp.arange(n) - c) * h for n, c, h in zip(shape, half, spacing)]
    position = jnp.stack(jnp.meshgrid(*axes, indexing='ij'))  # (3, x, y, z) mm from the centre
    points = _control_points(shape, spacing, settings.control_spacing_mm)
    fields = jax.vmap(lambda k: _smooth_field(k, shape, points))(jax.random.split(k_elastic, 3))
    # Accelerators would round the positions.
    exact = jax.lax.Precision.HIGHEST
    affine = random_affine(k_affine, settings)
    moved = jnp.einsum('ij,jxyz->ixyz', affine, position, precision=exact)
    moved = moved + settings.displacement_mm * fields
    voxel = [moved[i] / spacing[i] + half[i] for i in range(3)]
    both = jnp.stack([image, brain.astype(image.dtype)])
    image, brain = jax.vmap(lambda volume: linear(volume, voxel, 'zero'))(both)
    return image, (brain > 0.5).astype(image.dtype)


def recolour(
    key: jax.Array, image: jax.Array, brain: jax.Array, spacing: Spacing, settings: AugmentSettings
) -> jax.Array:
    """Gamma, bias field and noise inside the brain of one scan `(x, y, z)`; stays in [0, 1]."""
    k_gamma, k_bias, k_level, k_noise = jax.random.split(key, 4)
    exponent = jnp.exp(settings.gamma * jax.random.normal(k_gamma))
    points = _control_points(image.shape, spacing, 2.0 * settings.control_spacing_mm)
    bias = jnp.exp(settings.bias * _smooth_field(k_bias, image.shape, points))
    level = settings.noise * jax.random.uniform(k_level)
    noise = level * jax.random.normal(k_noise, image.shape)
    # The tiny floor keeps the power's derivative and value finite at zero.
    return jnp.clip(jnp.maximum(image, 1e-6) ** exponent * bias + noise, 0.0, 1.0) * brain


def augment(
    key: jax.Array, image: jax.Array, brain: jax.Array, spacing: Spacing, settings: AugmentSettings
) -> tuple[jax.Array, jax.Array]:
    """One augmented scan and its brain mask.

    Args:
        key: random key.
        image: `(x, y, z)` in [0, 1], background 0.
        brain: `(x, y, z)`, 1 inside the brain.
        spacing: voxel size in mm.
        settings: see `AugmentSettings`.

    Returns:
        image and brain mask, shaped as given.
    """
    k_flip, k_move, k_colour = jax.random.split(key, 3)
    mirrored = jax.random.bernoulli(k_flip, settings.flip_probability)
    image, brain = jax.tree.map(lambda v: jnp.where(mirrored, v[::-1], v), (image, brain))
    if settings.moves:
        image, brain = move(k_move, image, brain, spacing, settings)
    return recolour(k_colour, image, brain, spacing, settings), brain


def augment_batch(
    key: jax.Array,
    images: jax.Array,
    brains: jax.Array,
    spacing: Spacing,
    settings: AugmentSettings,
) -> tuple[jax.Array, jax.Array]:
    """`augment` over a batch `(batch, x, y, z, 1)`.

    `key` is one key, or `(batch,)` keys, one per sample. Masks may be of any type and are returned
    as floats: a batch brings them as uint8, and this is where they are converted.
    """
    keys, brains = sample_keys(key, images.shape[0]), brains.astype(images.dtype)
    one = lambda k, image, brain: augment(k, image, brain, spacing, settings)
    image, brain = jax.vmap(one)(keys, images[..., 0], brains[..., 0])
    return image[..., None], brain[..., None]
