"""Random flows: free of divergence, confined to the brain, one flow whatever the grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import head, orders, split

from fluidjax.fluid import FluidSettings, Grid
from fluidjax.fluid.flow import (
    blurred,
    border_ramp,
    coarse_grid,
    face_flow,
    node_fractions,
    node_velocity,
)
from fluidjax.fluid.published import published_velocity

GRID = Grid((10, 12, 9), (16.0, 14.0, 18.0))
FLAT = Grid((20, 24), (8.0, 7.0))
ROUND = Grid((20, 24), (8.0, 7.0), 'periodic')
SETTINGS = FluidSettings(diffusion_scale=20.0, border_mm=16.0)
DRAWS = 40


def face_divergence(flow, grid):
    """What flows out of each voxel less what flows in, per unit time; nothing below the first."""
    total = 0.0
    for speed, axis, spacing in zip(flow.speeds, grid.axes, grid.spacing):
        below = jnp.roll(speed, 1, axis)
        if not grid.periodic:
            below = jnp.moveaxis(jnp.moveaxis(below, axis, 0).at[0].set(0.0), 0, axis)
        total += (speed - below) / spacing
    return total


@functools.cache
def _faces(grid, confined):
    """Flows of many keys at the faces, and their divergence in mm per unit time a voxel."""
    brain = head(grid)[1] if confined else None

    def one(key):
        flow = face_flow(key, grid, SETTINGS, brain)
        return flow, face_divergence(flow, grid) * min(grid.spacing)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(split(0, DRAWS)))


@functools.cache
def _velocities(grid, confined):
    """V (draws, x, y (, z), d) of many keys at the voxels."""
    brain = head(grid)[1] if confined else None
    one = lambda key: node_velocity(key, grid, grid, SETTINGS, brain)
    return np.asarray(jax.jit(jax.vmap(one))(split(0, DRAWS)))


@pytest.mark.parametrize(
    'grid,confined',
    [(GRID, True), (GRID, False), (FLAT, True), (ROUND, False)],
    ids=['3-D confined', '3-D open', '2-D confined', 'periodic open'],
)
def test_what_flows_into_a_voxel_flows_out_of_it(grid, confined):
    flow, divergence = _faces(grid, confined)
    peak = max(np.abs(speed).max() for speed in flow.speeds)
    assert peak > 5.0
    if not confined and not grid.periodic:  # the lowest faces of the volume are not kept
        divergence = divergence[(np.s_[:], *[np.s_[1:]] * grid.ndim)]
    assert np.abs(divergence).max() < 1e-6 * peak


@pytest.mark.parametrize('grid', [GRID, FLAT], ids=['3-D', '2-D'])
def test_nothing_flows_or_diffuses_through_the_surface_of_the_brain(grid):
    flow, _ = _faces(grid, True)
    brain = head(grid)[1]
    for axis in range(grid.ndim):
        beyond = np.roll(brain, -1, axis)
        beyond[(np.s_[:],) * axis + (-1,)] = False
        for face in (flow.speeds[axis], flow.diffusivity[axis]):
            assert not face[:, ~(brain & beyond)].any()
            assert np.abs(face[:, brain & beyond]).mean() > 0.1
    assert not _velocities(grid, True)[:, ~brain].any()


@pytest.mark.parametrize('grid', [GRID, FLAT], ids=['3-D', '2-D'])
def test_diffusivity_is_not_negative_and_closed_at_the_faces_of_the_volume(grid):
    D = _faces(grid, False)[0].diffusivity
    for axis, face in enumerate(D):
        assert face.min() == 0.0 and 1.0 < face.max() < SETTINGS.diffusion_scale
        assert not np.take(face, -1, axis=axis + 1).any()


@pytest.mark.parametrize('confined', [True, False], ids=['confined', 'open'])
@pytest.mark.parametrize('grid', [GRID, FLAT], ids=['3-D', '2-D'])
def test_peak_speed_bounds_nearly_every_flow(grid, confined):
    fastest = np.abs(_velocities(grid, confined)).sum(axis=-1).reshape(DRAWS, -1).max(axis=1)
    bound = FluidSettings(border_mm=16.0 * confined).peak_speed(grid)
    assert np.mean(fastest < bound) > 0.95
    assert np.median(fastest) > 0.1 * bound  # nor is it lavish


def test_the_three_potentials_are_independent_and_the_published_ones_are_not():
    V = _velocities(GRID, False)
    along_111 = np.abs(V.sum(axis=-1)).max(axis=(1, 2, 3)) / np.abs(V).max(axis=(1, 2, 3, 4))
    assert along_111.min() > 0.3
    grid = Grid((10, 12, 9))
    published = jax.jit(lambda key: published_velocity(key, grid, (2, 2, 2), 1.0))
    V = np.asarray(published(jax.random.key(0)))
    assert np.abs(V.sum(axis=-1)).max() < 1e-5 * np.abs(V).max() and np.abs(V).max() > 0.1


def test_flows_of_many_keys_are_independent():
    V = _velocities(GRID, False)[..., 0].reshape(DRAWS, -1)
    correlation = np.corrcoef(V)[np.triu_indices(DRAWS, 1)]
    assert np.abs(correlation).max() < 0.8 and np.abs(correlation.mean()) < 0.05


def test_a_flow_is_the_same_at_every_resolution():
    coarse, fine = Grid((11, 12), (8.0, 8.0)), Grid((22, 24), (4.0, 4.0))
    velocity = jax.jit(node_velocity, static_argnums=(1, 2, 3))
    V = [velocity(jax.random.key(1), grid, grid, SETTINGS) for grid in (coarse, fine)]
    np.testing.assert_allclose(V[1][::2, ::2], V[0], atol=1e-4)


@pytest.mark.parametrize(('confined', 'least'), [(False, 1.9), (True, 1.5)])
def test_faces_and_nodes_tell_of_one_flow_and_agree_at_second_order(confined, least):
    errors = []
    for n in (36, 72):
        grid = Grid((n, n + n // 3), (192.0 / n, 192.0 / n))
        brain = head(grid)[1] if confined else None

        def apart(key, grid=grid, brain=brain):
            V = node_velocity(key, grid, grid, SETTINGS, brain)
            speeds = face_flow(key, grid, SETTINGS, brain).speeds
            centred = [(s + jnp.roll(s, 1, axis)) / 2 for axis, s in enumerate(speeds)]
            return jnp.mean(jnp.abs(jnp.stack(centred, axis=-1) - V)[1:, 1:])

        errors.append(np.mean(jax.jit(jax.vmap(apart))(split(3, 4))))
    assert errors[-1] < 0.05 and orders(errors) > least, (errors, orders(errors))


def test_the_ramp_is_zero_outside_one_deep_inside_and_has_the_slope_it_says():
    grid = Grid((40, 44), (4.0, 4.0))
    brain, at, step = head(grid)[1], node_fractions(grid, grid), 1e-3
    ramp = lambda at, along=None: np.asarray(border_ramp(brain, grid, at, 24.0, along))
    chi = ramp(at)
    assert not chi[~brain].any() and chi.max() <= 1.0 and chi[18:22, 20:24].min() > 0.99
    assert np.mean((chi > 0.05) & (chi < 0.95)) > 0.2
    for axis in (0, 1):
        shifted = [
            tuple(a + sign * step * (k == axis) for k, a in enumerate(at)) for sign in (1, -1)
        ]
        above, below = (ramp(s) for s in shifted)
        slope = (above - below) / (2 * step * grid.extent[axis])
        np.testing.assert_allclose(ramp(at, axis), slope, atol=1e-3)
        assert np.abs(slope).max() > 0.04


def test_blurring_keeps_a_constant_and_the_mass_of_a_voxel():
    grid = Grid((16, 12), (2.0, 3.0), 'periodic')
    at = node_fractions(grid, grid)
    np.testing.assert_allclose(blurred(jnp.ones(grid.shape), grid, at, 3.0), 1.0, atol=1e-4)
    one = jnp.zeros(grid.shape).at[3, 4].set(1.0)
    spread = np.asarray(blurred(one, grid, at, 3.0))
    assert spread.sum() == pytest.approx(1.0, abs=0.02) and spread.argmax() == 3 * 12 + 4


@pytest.mark.parametrize('boundary', ['neumann', 'periodic'])
@pytest.mark.parametrize('spacing', [1.0, 5.0, 7.0, 1000.0])
def test_coarse_nodes_span_the_volume_and_are_never_closer_than_its_voxels(spacing, boundary):
    grid = Grid((20, 13, 5), (2.0, 3.0, 4.0), boundary)
    nodes = coarse_grid(grid, spacing)
    ends = 0 if grid.periodic else 1
    for n, h, m, s in zip(grid.shape, grid.spacing, nodes.shape, nodes.spacing):
        assert (m - ends) * s == pytest.approx((n - ends) * h)
        assert m >= 2 and s >= h - 1e-9
        assert m == 2 or s == h or 0.6 * spacing < s < 1.6 * spacing
