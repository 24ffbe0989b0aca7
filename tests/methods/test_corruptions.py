"""Corruptions: each task against what it should do, and pairs against what was asked for."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from fluidjax.base.errors import UserError
from fluidjax.base.share import Share
from fluidjax.fluid.grid import Grid
from fluidjax.methods.corruptions import (
    TASKS,
    CorruptionSettings,
    Region,
    change_intensity,
    corrupt_batch,
    deform,
    displacement,
    poisson_blend,
    random_region,
    soft_weight,
)

GRID = Grid((16, 16, 16), (8.0, 8.0, 8.0))
FLAT = Grid((20, 20, 10), (4.0, 4.0, 8.0))
FINE = Grid((24, 24, 24), (2.0, 2.0, 2.0))
SETTINGS = CorruptionSettings()
MANY = 160
batch_jit = jax.jit(corrupt_batch, static_argnums=(3, 4))


def places(grid):
    axes = [h * np.arange(n) for n, h in zip(grid.shape, grid.spacing)]
    return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)


def head():
    """A brain in the middle, brighter to the right: image and mask (x, y, z)."""
    offset = (places(GRID) - 60.0) / 64.0
    brain = (offset**2).sum(-1) < 0.8
    return np.float32(brain * (0.5 + 0.4 * offset[..., 0])), brain


def ball(grid, radius):
    """A region that is a ball about a voxel near the middle."""
    centre = np.asarray([n // 2 * h for n, h in zip(grid.shape, grid.spacing)], np.float32)
    depth = np.linalg.norm(places(grid) - centre, axis=-1) / radius
    return Region(jnp.asarray(depth <= 1.0), jnp.asarray(depth, jnp.float32), jnp.asarray(centre))


# The Poisson solve -------------------------------------------------------------------------------

SHAPE, SPACING = (7, 8, 6), (1.0, 2.0, 3.0)


@functools.cache
def blend_inputs():
    rng = np.random.default_rng(0)
    target, source = np.float32(rng.random((2, *SHAPE)))
    region = np.zeros(SHAPE, bool)
    region[1:5, 2:7, 2:] = True  # touches a face of the volume
    region[2, 3, 3] = False  # and has a hole
    return target, source, region


blend_jit = jax.jit(lambda t, s, r, usable: poisson_blend(t, s, r, SPACING, 60, usable))
EVERYWHERE = np.ones(SHAPE, bool)


def solved_sparsely(target, source, region):
    """f from an assembled matrix and a direct solve, face by face."""
    number = np.full(SHAPE, -1)
    number[region] = np.arange(region.sum())
    matrix = scipy.sparse.lil_matrix((region.sum(), region.sum()))
    right = np.zeros(region.sum())
    for p in np.argwhere(region):
        row = number[tuple(p)]
        for axis, side in ((a, s) for a in range(3) for s in (-1, 1)):
            q = p.copy()
            q[axis] += side
            if not 0 <= q[axis] < SHAPE[axis]:
                continue
            p_, q_, weight = tuple(p), tuple(q), 1.0 / SPACING[axis] ** 2
            steps = float(target[p_] - target[q_]), float(source[p_] - source[q_])
            matrix[row, row] += weight
            right[row] += weight * max(steps, key=abs)
            if region[q_]:
                matrix[row, number[q_]] -= weight
            else:
                right[row] += weight * target[q_]
    f = target.astype(float)
    f[region] = scipy.sparse.linalg.spsolve(matrix.tocsr(), right)
    return f


def test_blend_solves_the_poisson_equation_and_leaves_the_outside_untouched():
    target, source, region = blend_inputs()
    f = np.asarray(blend_jit(target, source, region, EVERYWHERE))
    np.testing.assert_allclose(f, solved_sparsely(target, source, region), atol=1e-4)
    np.testing.assert_array_equal(f[~region], target[~region])
    assert np.abs(f - target)[region].mean() > 0.05


def test_blend_of_the_target_plus_a_constant_is_the_target():
    target, _, region = blend_inputs()
    np.testing.assert_allclose(
        blend_jit(target, target + 0.5, region, EVERYWHERE), target, atol=1e-4
    )


def test_blend_takes_no_gradient_from_where_the_source_is_not_usable():
    target, source, region = blend_inputs()
    half = EVERYWHERE.copy()
    half[:, 4:] = False
    beyond = np.where(half, source, 100.0)
    np.testing.assert_allclose(
        blend_jit(target, beyond, region, half),
        blend_jit(target, np.where(half, source, 0.0), region, half),
    )
    np.testing.assert_array_equal(blend_jit(target, source, region, ~EVERYWHERE), target)


def test_blend_of_nothing_is_finite():
    target, source, region = blend_inputs()
    np.testing.assert_array_equal(blend_jit(target, source, ~EVERYWHERE, EVERYWHERE), target)


# Sink and source ---------------------------------------------------------------------------------


@functools.cache
def deformed(outward):
    """A blob beside the centre of a ball, before and after; and what a bright ball becomes."""
    region = ball(FINE, 20.0)
    beside = np.asarray(region.centre) + [8.0, 0.0, 0.0]
    blob = np.exp(-((places(FINE) - beside) ** 2).sum(-1) / 4.0**2).astype(np.float32)
    core = np.float32(np.asarray(region.depth) < 0.4)
    everywhere = np.ones(FINE.shape, bool)
    one = jax.jit(jax.vmap(lambda v: deform(v, everywhere, region, FINE, 1.0, outward)))
    return region, (blob, core), np.asarray(one(np.stack([blob, core])))


@pytest.mark.parametrize(('outward', 'sign'), [(False, -1), (True, 1)])
def test_sink_draws_content_to_the_centre_and_source_pushes_it_away(outward, sign):
    region, (blob, core), (moved, grown) = deformed(outward)
    x = places(FINE)[..., 0]
    shift = (x * moved).sum() / moved.sum() - (x * blob).sum() / blob.sum()
    assert sign * shift > 1.0  # mm
    assert (grown.sum() / core.sum()) ** sign > 1.5
    outside = ~np.asarray(region.mask)
    np.testing.assert_array_equal(moved[outside], blob[outside])


@functools.cache
def fine_regions():
    """Random regions on a fine grid, one a key along the first axis."""
    settings = CorruptionSettings(radius_mm=(10.0, 22.0))
    find = jax.jit(jax.vmap(lambda k: random_region(k, jnp.ones(FINE.shape), FINE, settings)))
    return find(jax.random.split(jax.random.key(5), 12))


@pytest.mark.parametrize('outward', [False, True])
def test_the_strongest_deformation_does_not_fold_and_is_continuous(outward):
    for n in range(12):
        region = jax.tree.map(lambda field: field[n], fine_regions())
        moved = np.asarray(displacement(region, FINE, 1.0, outward))
        slopes = np.stack(np.gradient(moved, 2.0, axis=(0, 1, 2)), axis=-1)
        assert np.linalg.det(np.eye(3) + slopes).min() > 0.0
        assert np.abs(slopes).max() < 2.5  # a tear would be a jump of some voxels
        assert np.abs(moved).max() > 1.0
        np.testing.assert_array_equal(moved[np.asarray(region.depth) >= 1.0], 0.0)


def test_deformation_reads_nothing_from_outside_the_brain():
    region = ball(FINE, 20.0)
    brain = places(FINE)[..., 0] <= 30.0  # cuts the ball
    moved = deform(
        jnp.where(brain, 0.7, 0.0),
        brain,
        region._replace(mask=region.mask & brain),
        FINE,
        1.0,
        False,
    )
    np.testing.assert_allclose(moved, np.where(brain, 0.7, 0.0), atol=1e-6)


# Intensity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('change', [-0.5, 0.5])
def test_intensity_changes_by_a_share_of_the_mean_and_falls_smoothly_to_the_rim(change):
    region = ball(FINE, 20.0)
    image = jnp.full(FINE.shape, 0.4)
    difference = np.asarray(change_intensity(image, region, change) - image)
    depth = np.asarray(region.depth)
    np.testing.assert_array_equal(difference[depth > 1.0], 0.0)
    np.testing.assert_allclose(difference[depth < 0.6], change * 0.4, atol=1e-5)
    assert np.all(difference[depth < 1.0] * np.sign(change) > 0.0)
    assert np.abs(difference[(depth > 0.97) & (depth < 1.0)]).max() < 0.02 * 0.4
    np.testing.assert_array_equal(change_intensity(0.0 * image, region, change), 0.0)


# Regions -----------------------------------------------------------------------------------------


def test_regions_lie_in_the_brain_about_their_centre_within_the_radii():
    low, high = 10.0, 14.0
    settings = CorruptionSettings(radius_mm=(low, high))
    brain = np.linalg.norm(places(FLAT) - 38.0, axis=-1) < 36.0
    find = jax.jit(jax.vmap(lambda k, b: random_region(k, b, FLAT, settings), (0, None)))
    keys = jax.random.split(jax.random.key(1), 64)
    regions = jax.tree.map(np.asarray, find(keys, brain))
    distance = np.linalg.norm(places(FLAT) - regions.centre[:, None, None, None], axis=-1)
    assert not np.any(regions.mask & ~brain)
    assert np.all(regions.mask.any(axis=(1, 2, 3)))
    assert np.all(distance[regions.mask] <= high)
    assert np.all(regions.mask[(distance < 0.7 * low) & brain])  # dents are no deeper
    ml = 0.128 * regions.mask.sum(axis=(1, 2, 3))
    deep = np.array([brain[d <= high].all() for d in distance])  # not cut by the surface
    ball_ml = 4.0 / 3.0 * np.pi * np.array([low, high]) ** 3 / 1000.0
    assert deep.sum() > 3 and ml[deep].min() > 0.343 * ball_ml[0] * 0.9
    assert ml.max() < 1.1 * ball_ml[1] and ml[deep].max() > 1.5 * ml[deep].min()
    weights = jax.vmap(soft_weight)(Region(*regions))
    assert np.all(np.asarray(weights)[~regions.mask] == 0.0) and float(weights.max()) == 1.0
    empty = find(keys, np.zeros_like(brain))
    assert not np.any(empty.mask) and np.all(np.isfinite(empty.depth))


# Pairs -------------------------------------------------------------------------------------------


@functools.cache
def pairs(seed):
    image, brain = head()
    images, brains = (jnp.asarray(np.repeat(v[None, ..., None], MANY, 0)) for v in head())
    drawn = batch_jit(jax.random.key(seed), 3.0 * images, brains, GRID, SETTINGS)
    return image / image.max(), brain, jax.tree.map(lambda v: np.asarray(v)[..., 0], drawn)


def test_pairs_are_in_range_change_nothing_outside_the_mask_and_keep_the_background():
    image, brain, drawn = pairs(0)
    scales = drawn.healthy.max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(drawn.healthy, scales * image, atol=1e-6)
    assert scales.min() < 0.95  # a corruption that is brighter than all of the scan
    np.testing.assert_allclose(drawn.diseased.max(axis=(1, 2, 3)), 1.0, atol=1e-6)
    assert drawn.diseased.min() == 0.0 and np.all(drawn.diseased[:, ~brain] == 0.0)
    assert set(np.unique(drawn.mask)) == {0.0, 1.0} and np.all(drawn.mask[:, ~brain] == 0.0)
    assert np.all((drawn.probability >= 0.0) & (drawn.probability <= drawn.mask))
    for healthy, diseased, mask in zip(*drawn[:3]):
        outside = brain & (mask == 0.0)
        scale = healthy[outside].sum() / diseased[outside].sum()
        assert scale == pytest.approx(1.0, abs=1e-3)  # what is no lesion stays as it is
        np.testing.assert_allclose(scale * diseased[outside], healthy[outside], atol=1e-5)


def task_of(healthy, diseased, mask, probability, brain):
    """Which task made a pair of the head, whose brightness grows along x."""
    region = mask > 0
    if np.array_equal(probability, mask):
        return 'blend'
    outside = brain & ~region
    change = (diseased * healthy[outside].sum() / diseased[outside].sum() - healthy)[region]
    if np.abs(change.sum()) > 0.9 * np.abs(change).sum():
        return 'intensity'
    x = places(GRID)[..., 0][region]
    weight = probability[region]
    inward = np.sum(change * (x - np.average(x, weights=weight)))
    return 'sink' if inward > 0 else 'source'


def test_shares_of_healthy_pairs_and_of_tasks():
    _, brain, drawn = pairs(0)
    sick = drawn.mask.any(axis=(1, 2, 3))
    assert abs(sick.mean() - SETTINGS.diseased_probability) < 0.1
    np.testing.assert_array_equal(drawn.diseased[~sick], drawn.healthy[~sick])
    large = drawn.mask.sum(axis=(1, 2, 3)) > 20
    tasks = [task_of(*sample, brain) for sample in zip(*(v[large] for v in drawn))]
    assert len(tasks) > 60
    for task in TASKS:
        assert 0.13 < tasks.count(task) / len(tasks) < 0.37, task
    different = np.abs(drawn.diseased - drawn.healthy).max(axis=(1, 2, 3))
    assert np.all(different[large & ~np.all(drawn.probability == drawn.mask, (1, 2, 3))] > 1e-3)


def test_the_key_alone_decides():
    first, again, other = (pairs.__wrapped__(seed)[2] for seed in (0, 0, 1))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert np.mean([not np.array_equal(a, b) for a, b in zip(first.mask, other.mask)]) > 0.9


def test_the_patch_is_of_the_sample_before_and_an_empty_brain_gives_a_healthy_pair():
    _, brain = head()
    texture = brain * (0.5 + 0.4 * np.sin(places(GRID).sum(-1)))
    images = np.stack([texture, 0.5 * brain, texture])[..., None].astype(np.float32)
    brains = np.stack([brain, brain, np.zeros_like(brain)])[..., None]
    settings = CorruptionSettings((20.0, 30.0), 1.0, tasks=('blend',))
    for seed in range(3):
        drawn = batch_jit(jax.random.key(seed), images, brains, GRID, settings)
        assert all(np.all(np.isfinite(volume)) for volume in drawn)
        change = np.abs(drawn.diseased - drawn.healthy).max(axis=(1, 2, 3, 4))
        assert change[0] == 0.0  # there is no brain to take a patch from
        assert change[1] > 0.1  # none is brighter, so it is not a change of scale
        assert change[2] == 0.0 and not np.any(drawn.mask[2]) and np.any(drawn.mask[1])


def test_a_batch_of_one_takes_its_own_mirror_image():
    image, brain = head()
    settings = CorruptionSettings((20.0, 30.0), 1.0, 0.0, tasks=('blend',))
    steep = image * (0.6 + 0.4 * np.sin(places(GRID)[..., 0] / 9.0))
    mask = (brain & brain[::-1])[None, ..., None]
    for one, changes in ((steep, True), (steep + steep[::-1], False)):
        one = one[None, ..., None].astype(np.float32)
        drawn = [batch_jit(jax.random.key(seed), one, mask, GRID, settings) for seed in range(3)]
        assert all(np.any(pair.mask) for pair in drawn)
        # Where the target's gradients are all the stronger, nothing changes: one of three may.
        change = sorted(float(jnp.abs(pair.diseased - pair.healthy).max()) for pair in drawn)
        assert change[1] > 0.1 if changes else change[2] < 1e-5


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('radius_mm', (30.0, 8.0)),
        ('radius_mm', (0.0, 8.0)),
        ('radius_mm', 8.0),
        ('diseased_probability', 1.1),
        ('diseased_probability', None),
        ('shift_mm', -1.0),
        ('shift_mm', float('nan')),
        ('intensity', (0.2, 1.5)),
        ('intensity', ('a', 'b')),
        ('strength', (0.5, 1.2)),
        ('solver_steps', 0),
        ('solver_steps', 2.5),
        ('solver_steps', True),
        ('tasks', ()),
        ('tasks', ('blend', 'blur')),
        ('tasks', 'blend'),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(UserError, match=rf'^config\.corruptions\.{field}: ') as caught:
        CorruptionSettings(**{field: value})
    assert '\n' not in str(caught.value)


def test_lists_are_taken_and_settings_are_hashable():
    settings = CorruptionSettings(tasks=['sink'], radius_mm=[5, 6])
    assert settings.tasks == ('sink',) and hash(settings)


def test_shapes_that_differ_from_the_grid_are_refused():
    images = jnp.zeros((2, 8, 8, 8, 1))
    for brains, grid in ((images, GRID), (images[..., 0], Grid((8, 8, 8))), (images, Grid((8, 8)))):
        with pytest.raises(UserError, match='config.corruptions: images'):
            corrupt_batch(jax.random.key(0), images, brains, grid)


def test_a_part_of_a_batch_on_one_device_takes_its_patch_from_the_mirrored_scan():
    _, brain = head()
    image = (brain * (0.5 + 0.4 * np.sin(places(GRID).sum(-1))))[None, ..., None]
    image, brain = image.astype(np.float32), brain[None, ..., None]
    settings = CorruptionSettings((20.0, 30.0), 1.0, tasks=('blend',))
    whole = batch_jit(jax.random.key(0), image, brain, GRID, settings)
    part = batch_jit(jax.random.key(0), image, brain, GRID, settings, Share(0, 16))
    np.testing.assert_array_equal(part.diseased, whole.diseased)
