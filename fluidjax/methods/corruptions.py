"""Self-supervised corruptions of healthy scans: foreign patch, sink, source, brightness.

A random region of a healthy scan is corrupted in one of several ways (Baugh et al. 2023, "Many
Tasks Make Light Work", MICCAI; Baugh et al. 2024, "Image-Conditioned Diffusion Models for Medical
Anomaly Detection"). All of it is a pure function of a key under jit and vmap, in 3-D.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.spatial.transform import Rotation

from fluidjax.base.errors import UserError
from fluidjax.base.settings import check
from fluidjax.base.share import WHOLE, Share
from fluidjax.fluid import flow_map, painting
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized
from fluidjax.fluid.settings import is_range, is_within

TASKS = ('blend', 'sink', 'source', 'intensity')
_DENTS = 0.3  # largest relative depth of the dents in a region's rim
_WAVES, _WAVE_NUMBER = 6, 2.0  # plane waves that make the dents, and how fast they vary
_PULL = 0.8  # of a sink or source of strength 1; the map would fold from 1 on
_SOFT_RIM = 0.4  # share of the radius over which a soft corruption falls to 0
_CONVERGED = 1e-12  # squared residual, relative to the first, at which the solver stops
_PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class CorruptionSettings:
    """Settings of the corruptions; hashable, static under `jax.jit`. Lengths are in mm.

    Attributes:
        radius_mm: least and greatest semi-axis of the region, each of the three drawn uniformly.
        diseased_probability: share of the pairs that are corrupted; the others are healthy twice.
        shift_mm: largest shift of the foreign patch along each axis.
        intensity: least and greatest change of brightness, in units of the mean intensity in the
            region; brighter or darker at random.
        strength: least and greatest strength of sink and source, at most 1.
        solver_steps: conjugate-gradient iterations of the Poisson solve.
        tasks: one or more of `TASKS`, drawn uniformly; one named twice is drawn twice as often.

    Raises:
        UserError: naming the field that is out of range.
    """

    radius_mm: tuple[float, float] = (8.0, 30.0)
    diseased_probability: float = 0.8
    shift_mm: float = 20.0
    intensity: tuple[float, float] = (0.2, 0.6)
    strength: tuple[float, float] = (0.3, 1.0)
    solver_steps: int = 60
    tasks: tuple[str, ...] = TASKS

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        for name, holds, advice in self._rules():
            check(holds, f'corruptions.{name}', getattr(self, name), advice)

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """For each limit the field, whether it is kept, and what the field must be."""
        for name, most in (('diseased_probability', 1.0), ('shift_mm', 1e3)):
            advice = f'must be a number from 0 to {most:g}'
            yield name, is_within(getattr(self, name), 0.0, most), advice
        limits = {'radius_mm': (0.1, 1e3), 'intensity': (0.0, 1.0), 'strength': (0.0, 1.0)}
        for name, (least, most) in limits.items():
            advice = f'must be the least and the greatest, from {least:g} to {most:g}'
            yield name, is_range(getattr(self, name), least, most), advice
        steps, tasks = self.solver_steps, self.tasks
        whole = isinstance(steps, int) and not isinstance(steps, bool) and steps > 0
        yield 'solver_steps', whole, 'must be a whole number of 1 or more'
        known = isinstance(tasks, tuple) and len(tasks) > 0 and all(t in TASKS for t in tasks)
        yield 'tasks', known, f'must be one or more of {", ".join(TASKS)}'


class Region(NamedTuple):
    """The corrupted region of a scan: star-shaped about its centre, cut to the brain.

    mask: boolean `(x, y, z)`, inside the brain.
    depth: `(x, y, z)`, 0 at the centre, 1 at the rim before the cut, and growing in proportion to
        the distance from the centre along every ray.
    centre: `(3,)` mm from the first voxel.
    """

    mask: jax.Array
    depth: jax.Array
    centre: jax.Array


def _offsets(centre: jax.Array, grid: Grid) -> jax.Array:
    """Places of the voxels relative to a centre: `(x, y, z, 3)` mm."""
    axes = [h * jnp.arange(n) for n, h in zip(grid.shape, grid.spacing)]
    return jnp.stack(jnp.meshgrid(*axes, indexing='ij'), axis=-1) - centre


def random_region(
    key: jax.Array, brain: jax.Array, grid: Grid, settings: CorruptionSettings
) -> Region:
    """A turned ellipsoid about a random voxel of the brain, with dents in its rim.

    The dents depend only on the direction from the centre, so the region is star-shaped and a
    radial map of it (`displacement`) cannot fold.

    Args:
        key: random key.
        brain: `(x, y, z)`, inside where > 0.
        grid, settings: geometry, 3-D, and the `radius_mm`.

    Returns:
        A region that contains at least its centre, or no voxel if the brain is empty.
    """
    k_centre, k_turn, k_radius, k_wave, k_phase = jax.random.split(key, 5)
    inside = brain > 0
    place = jnp.argmax(jnp.where(inside, jax.random.uniform(k_centre, grid.shape), -1.0))
    voxel = jnp.stack(jnp.unravel_index(place, grid.shape))
    centre = voxel * jnp.asarray(grid.spacing)
    low, high = settings.radius_mm
    radii = jax.random.uniform(k_radius, (3,), minval=low, maxval=high)
    to_ball = Rotation.from_quat(jax.random.normal(k_turn, (4,))).as_matrix() / radii
    scaled = jnp.matmul(_offsets(centre, grid), to_ball, precision=_PRECISION)
    distance = jnp.linalg.norm(scaled, axis=-1)  # 1 on the ellipsoid
    direction = scaled / jnp.maximum(distance, 1e-6)[..., None]
    waves = _WAVE_NUMBER * jax.random.normal(k_wave, (3, _WAVES))
    phases = jax.random.uniform(k_phase, (_WAVES,), maxval=2.0 * jnp.pi)
    bumps = jnp.sin(jnp.matmul(direction, waves, precision=_PRECISION) + phases).sum(axis=-1)
    rim = 1.0 - _DENTS * jax.nn.sigmoid(2.0 * bumps * (2.0 / _WAVES) ** 0.5)
    depth = distance / rim
    return Region(mask=inside & (depth <= 1.0), depth=depth, centre=centre)


def soft_weight(region: Region) -> jax.Array:
    """1 in the middle of a region, falling smoothly to 0 at its rim: `(x, y, z)`.

    At the surface of the brain, where the region is cut, it falls at once.
    """
    u = jnp.clip((1.0 - region.depth) / _SOFT_RIM, 0.0, 1.0)
    return jnp.where(region.mask, u * u * (3.0 - 2.0 * u), 0.0)


def _divergence(faces: jax.Array, axis: int) -> jax.Array:
    """Net outflow of the voxels from the flow across the n - 1 faces between n along an axis."""
    closed = [(0, 0)] * faces.ndim
    closed[axis] = (1, 1)
    return jnp.diff(jnp.pad(faces, closed), axis=axis)


def poisson_blend(
    target: jax.Array,
    source: jax.Array,
    region: jax.Array,
    spacing: tuple[float, ...],
    num_steps: int,
    usable: jax.Array | None = None,
) -> jax.Array:
    """Seamless cloning with mixed gradients (Perez et al. 2003, "Poisson Image Editing").

    Solves Laplace f = div v in the region with f = target outside it, where v across each face
    between voxels is the stronger of the two images' gradients. Nothing flows through the faces of
    the volume. The unknown is f - target, found by conjugate gradients.

    Args:
        target, source: `(x, y, z)`; of the source only its gradients matter.
        region: boolean, shaped as target.
        spacing: size of a voxel along each axis, mm.
        num_steps: iterations, static.
        usable: boolean, shaped as target; where a side of a face is not, the target's gradient is
            taken. All are where None.

    Returns:
        f, shaped as target and equal to it outside the region.
    """
    axes = list(enumerate(spacing))
    charge = jnp.zeros_like(target)
    for axis, h in axes:
        of_target, of_source = jnp.diff(target, axis=axis), jnp.diff(source, axis=axis)
        stronger = jnp.abs(of_source) > jnp.abs(of_target)
        if usable is not None:
            first, second = (jnp.delete(usable, i, axis=axis) for i in (-1, 0))
            stronger &= first & second
        excess = jnp.where(stronger, of_source - of_target, 0.0)
        charge = charge - _divergence(excess, axis) / h**2

    def operator(u: jax.Array) -> jax.Array:
        total = sum(_divergence(jnp.diff(u, axis=axis), axis) / h**2 for axis, h in axes)
        return jnp.where(region, -total, 0.0)

    first = jnp.where(region, charge, 0.0)
    enough = _CONVERGED * jnp.sum(first**2)

    def step(state: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], None]:
        u, residual, search, size = state
        moved = operator(search)
        slope = jnp.sum(search * moved)
        active = (size > enough) & (slope > 0.0)
        length = jnp.where(active, size / jnp.where(active, slope, 1.0), 0.0)
        residual = residual - length * moved
        new_size = jnp.sum(residual**2)
        turn = jnp.where(active, new_size / jnp.where(active, size, 1.0), 0.0)
        return (u + length * search, residual, residual + turn * search, new_size), None

    start = (jnp.zeros_like(target), first, first, jnp.sum(first**2))
    return target + jax.lax.scan(step, start, None, length=num_steps)[0][0]


def displacement(
    region: Region, grid: Grid, strength: jax.Array | float, outward: bool
) -> jax.Array:
    """Where each voxel of a deformed region is read from, relative to itself: `(x, y, z, 3)` mm.

    With s the depth, a ray's point at s is read at s (1 -+ a (1 - s^2)^2), a = 0.8 strength:
    nearer the centre for a source, farther for a sink. This grows with s, at a rate of 1 - a or
    more, so the map does not fold, and it joins the identity at the rim with its first derivative.

    Strength is from 0 to 1; outward, content moves away from the centre (source), else towards it.
    """
    factor = _PULL * strength * (1.0 - jnp.minimum(region.depth, 1.0) ** 2) ** 2
    return (-factor if outward else factor)[..., None] * _offsets(region.centre, grid)


def deform(
    image: jax.Array,
    brain: jax.Array,
    region: Region,
    grid: Grid,
    strength: jax.Array | float,
    outward: bool,
) -> jax.Array:
    """Sink or source: the image `(x, y, z)` read at the places of `displacement`, in the region.

    Background is left out of the interpolation. Where the region is cut by the surface of the
    brain, a voxel that would be read from outside the brain keeps its value.
    """
    places = displacement(region, grid, strength, outward)
    tissue = (brain > 0).astype(image.dtype)
    share = flow_map.carry(tissue, places, grid)
    moved = flow_map.carry(image * tissue, places, grid) / jnp.maximum(share, 0.5)
    return jnp.where(region.mask & (share >= 0.5), moved, image)


def change_intensity(image: jax.Array, region: Region, change: jax.Array | float) -> jax.Array:
    """The image `(x, y, z)`, brighter or darker by `change` times its mean in the region.

    The change is whole in the middle of the region and falls smoothly to 0 at its rim.
    """
    mean = painting.mean_inside(image, region.mask)
    return jnp.maximum(image + change * mean * soft_weight(region), 0.0)


def _box_shape(grid: Grid, settings: CorruptionSettings) -> tuple[int, ...]:
    """Voxels of a box that holds every region about its centre, and a voxel all around."""
    reach = [int(settings.radius_mm[1] / h) + 1 for h in grid.spacing]
    return tuple(min(n, 2 * r + 1) for n, r in zip(grid.shape, reach))


def _foreign_box(
    key: jax.Array,
    other: jax.Array,
    start: jax.Array,
    grid: Grid,
    box: Grid,
    shift_mm: float,
    always_mirrored: bool,
) -> jax.Array:
    """The box at `start` of another scan `(x, y, z, c)`, mirrored and shifted at random.

    What is shifted out of the volume comes in on the other side, where background lies.
    """
    k_mirror, k_shift = jax.random.split(key)
    mirrored = always_mirrored | jax.random.bernoulli(k_mirror)
    shift = shift_mm * jax.random.uniform(k_shift, (3,), minval=-1.0)
    first = start + jnp.round(shift / jnp.asarray(grid.spacing)).astype(start.dtype)
    at = [(first[k] + jnp.arange(box.shape[k])) % grid.shape[k] for k in range(3)]
    at[0] = jnp.where(mirrored, grid.shape[0] - 1 - at[0], at[0])
    return other[at[0][:, None, None], at[1][None, :, None], at[2][None, None, :]]


def _corrupt(
    key: jax.Array,
    image: jax.Array,
    brain: jax.Array,
    other: jax.Array,
    grid: Grid,
    settings: CorruptionSettings,
    alone: bool,
) -> Randomized:
    """A pair of one scan `(x, y, z)`, maximum 1; other: a scan and its brain `(x, y, z, 2)`."""
    k_region, k_sick, k_task, k_foreign, k_size, k_sign = jax.random.split(key, 6)
    region = random_region(k_region, brain, grid, settings)
    diseased = jax.random.bernoulli(k_sick, settings.diseased_probability) & region.mask.any()

    # Every task runs for every sample under vmap, so they work on a box and not on the volume.
    box = Grid(_box_shape(grid, settings), grid.spacing)
    spacing, shape = jnp.asarray(grid.spacing), jnp.asarray(box.shape)
    start = jnp.round(region.centre / spacing).astype(shape.dtype) - shape // 2
    start = jnp.clip(start, 0, jnp.asarray(grid.shape) - shape)
    cut = lambda volume: jax.lax.dynamic_slice(volume, start, box.shape)
    inner = Region(cut(region.mask), cut(region.depth), region.centre - start * spacing)
    patch, tissue = cut(image), cut(brain)
    foreign = _foreign_box(k_foreign, other, start, grid, box, settings.shift_mm, alone)
    u = jax.random.uniform(k_size)
    between = lambda limits: limits[0] + (limits[1] - limits[0]) * u
    sign = jax.random.rademacher(k_sign, (), patch.dtype)

    def blend() -> jax.Array:
        blended = poisson_blend(
            patch,
            foreign[..., 0],
            inner.mask,
            grid.spacing,
            settings.solver_steps,
            tissue & (foreign[..., 1] > 0),
        )
        # Gradients add up across a region; a new maximum would darken all the rest of the scan.
        return jnp.minimum(blended, 1.0)

    branches = {
        'blend': blend,
        'sink': lambda: deform(patch, tissue, inner, box, between(settings.strength), False),
        'source': lambda: deform(patch, tissue, inner, box, between(settings.strength), True),
        'intensity': lambda: change_intensity(patch, inner, sign * between(settings.intensity)),
    }
    task = jax.random.randint(k_task, (), 0, len(settings.tasks))
    changed = jax.lax.switch(task, [branches[name] for name in settings.tasks])
    changed = jnp.where(diseased & inner.mask, jnp.maximum(changed, 0.0), patch)
    hard = jnp.asarray([name == 'blend' for name in settings.tasks])[task]
    mask = (diseased & region.mask).astype(image.dtype)
    healthy, other = painting.on_one_scale(
        image, jax.lax.dynamic_update_slice(image, changed, start)
    )
    return Randomized(
        healthy=healthy,
        diseased=other,
        mask=mask,
        probability=mask * jnp.where(hard, 1.0, soft_weight(region)),
    )


def corrupt_batch(
    key: jax.Array,
    images: jax.Array,
    brains: jax.Array,
    grid: Grid,
    settings: CorruptionSettings = CorruptionSettings(),
    share: Share = WHOLE,
) -> Randomized:
    """Pairs of healthy and corrupted images, each sample with its own region and task.

    The foreign patch of the task 'blend' comes from the sample before it in the batch (the last
    one's for the first), mirrored left-right in half of the draws; in a batch of one from the
    image itself, always mirrored.

    Args:
        key: random key; the same key gives the same pairs.
        images: healthy brains `(batch, x, y, z, 1)`, 0 or more, 0 outside the brain.
        brains: masks shaped as images, inside where > 0; an empty one gives a healthy pair.
        grid: geometry, 3-D; static under jit.
        settings: see `CorruptionSettings`; static under jit.
        share: which samples of the batch these are.

    Returns:
        `Randomized`, each `(batch, x, y, z, 1)`. The mask is the region; the probability is 1
        there for 'blend', and falls to 0 at the rim for the tasks that do so.

    Raises:
        UserError: where the grid is not 3-D or a shape differs from it.
    """
    if grid.ndim != 3 or images.shape[1:] != (*grid.shape, 1) or brains.shape != images.shape:
        raise UserError(
            f'config.corruptions: images {images.shape} and brain masks '
            f'{brains.shape} must both be (batch, x, y, z, 1) on a 3-D grid, here '
            f'{grid.shape}'
        )
    keys = share.keys(key, images.shape[0])
    images = jax.vmap(painting.divide_by_maximum)(images)  # so that foreign contrast is comparable
    others = share.predecessors(jnp.concatenate([images, brains.astype(images.dtype)], axis=-1))
    devices = 1 if share.axis is None else jax.lax.axis_size(share.axis)
    alone = len(images) * devices == 1
    one = lambda k, image, brain, other: _corrupt(k, image, brain, other, grid, settings, alone)
    pairs = jax.vmap(one)(keys, images[..., 0], brains[..., 0] > 0, others)
    return jax.tree.map(lambda volume: volume[..., None], pairs)
