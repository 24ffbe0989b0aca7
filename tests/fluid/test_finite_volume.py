"""The conservative right-hand side: its order, its bounds, its mass, and no flux where none is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import blob, head, orders, places_mm, split

from fluidjax.base.errors import UserError
from fluidjax.fluid import FluidSettings, Grid
from fluidjax.fluid.finite_volume import (
    ADVECTIONS,
    exchange_rate,
    right_hand_side,
    stable_time_step,
)
from fluidjax.fluid.flow import FaceFlow, face_flow
from fluidjax.fluid.integrate import INTEGRATORS, ssp_rk3, trajectory

GRID = Grid((8, 10, 7), (16.0, 14.0, 18.0))
FLAT = Grid((16, 18), (9.0, 8.0))
ROUND = Grid((16, 18), (9.0, 8.0), 'periodic')
STEPS, DRAWS = 30, 40
KEEPING_BOUNDS = ['euler', 'ssp_rk3']


def _uniform(grid, *speeds):
    return FaceFlow(tuple(jnp.broadcast_to(jnp.float32(v), grid.shape) for v in speeds))


def _solve(flow, grid, advection, P, time, steps):
    f = right_hand_side(flow, grid, advection)
    return trajectory(lambda Q: ssp_rk3(f, Q, time / steps), P, steps)


@pytest.mark.parametrize(
    ('advection', 'least', 'most', 'error'), [('upwind', 0.9, 1.1, 0.02), ('koren', 1.9, 3.1, 1e-3)]
)
def test_order_in_space_of_a_wave_carried_a_quarter_around(advection, least, most, error):
    def apart(n, speed):
        grid = Grid((n, 2), (96.0 / n, 1.0), 'periodic')
        x = places_mm(grid)[0] / 96.0
        P0 = jnp.asarray(0.5 + 0.5 * np.sin(2 * np.pi * x), jnp.float32)
        P = _solve(_uniform(grid, speed, 0.0), grid, advection, P0, 0.25, n)
        return jnp.mean(jnp.abs(P - jnp.roll(P0, n // 4, axis=0)))

    errors = jax.jit(lambda speed: [apart(n, speed) for n in (32, 64, 128)])(96.0)
    measured = orders(errors)
    assert np.all((least < measured) & (measured < most)), (errors, measured)
    assert errors[-1] < error


def test_diffusion_of_a_cosine_decays_at_its_rate_at_second_order():
    def apart(n, D):
        grid = Grid((n, 2), (96.0 / n, 1.0))
        P0 = jnp.cos(jnp.pi * (jnp.arange(n) + 0.5) / n)[:, None] * jnp.ones(grid.shape)
        faces = FaceFlow(None, tuple(jnp.full(grid.shape, D) for _ in grid.axes))
        rate = D * (np.pi / 96.0) ** 2
        P = _solve(faces, grid, 'koren', P0, 1.0 / rate, n**2)
        return jnp.max(jnp.abs(P - P0 * jnp.exp(-1.0)))

    errors = jax.jit(lambda D: [apart(n, D) for n in (8, 16, 32)])(5.0)
    assert np.all(np.abs(orders(errors) - 2.0) < 0.15), (errors, orders(errors))


def test_a_turn_about_the_centre_brings_a_blob_back():
    grid = Grid((48, 48), (2.0, 2.0))
    centre, x, y = 47.0, *places_mm(grid)
    flow = FaceFlow((jnp.float32(centre - y), jnp.float32(x - centre)))
    P0 = blob(grid, (67.0, 47.0), 12.0)

    @jax.jit
    def turned(P0):
        steps = int(np.ceil(2 * np.pi * 2 * 96.0 / 2.0))  # |Vx| + |Vy| is below 96
        return [_solve(flow, grid, 'koren', P0, turns * 2 * np.pi, steps) for turns in (0.5, 1.0)]

    opposite, back = map(np.asarray, turned(P0))
    assert np.abs(opposite - P0).sum() > 1.9 * P0.sum()
    assert np.abs(back - P0).sum() < 0.08 * P0.sum() and 0.8 < back.max() < 1.0


@functools.cache
def _flows(grid, confined):
    brain = head(grid)[1] if confined else None
    settings = FluidSettings(diffusion_scale=100.0, border_mm=16.0)
    return jax.jit(jax.vmap(lambda k: face_flow(k, grid, settings, brain)))(split(0, DRAWS))


@functools.cache
def _stepper(grid, advection, integrator):
    """Many flows, each with its P0, in steps of so many stable ones."""

    def one(flow, P0, factor):
        dt = factor * stable_time_step(flow, grid, advection)
        f = right_hand_side(flow, grid, advection)
        return trajectory(lambda P: INTEGRATORS[integrator](f, P, dt), P0, STEPS)

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None)))


def _carried(grid, advection, integrator, confined=True, diffusing=False, factor=1.0):
    """P0 and P (draws, x, y (, z)): random voxels of the brain, carried along random flows."""
    flow = _flows(grid, confined)
    D = [np.asarray(d) * diffusing for d in flow.diffusivity]
    within = np.random.default_rng(1).random((DRAWS, *grid.shape)) < 0.3
    P0 = (within & head(grid)[1]).astype(np.float32)
    P = _stepper(grid, advection, integrator)(FaceFlow(flow.speeds, tuple(D)), P0, factor)
    return P0, np.asarray(P)


def _outside(P, brain):
    """Shares of P outside the brain, (draws,)."""
    return P[:, ~brain].sum(axis=1) / P.reshape(len(P), -1).sum(axis=1)


@pytest.mark.parametrize(
    ('grid', 'integrator', 'advection'),
    [
        *(
            (FLAT, integrator, advection)
            for integrator in KEEPING_BOUNDS
            for advection in ADVECTIONS
        ),
        *((GRID, 'ssp_rk3', advection) for advection in ADVECTIONS),
    ],
)
def test_stable_steps_keep_the_bounds(grid, integrator, advection):
    for confined in (True, False):
        for diffusing in (True, False):
            P0, P = _carried(grid, advection, integrator, confined, diffusing)
            assert P.min() >= -1e-6 and P.max() <= 1.0 + 1e-6
            assert np.abs(P - P0).mean(axis=tuple(range(1, P.ndim))).min() > 0.02


@pytest.mark.parametrize('advection', ADVECTIONS)
@pytest.mark.parametrize('grid', [GRID, FLAT], ids=['3-D', '2-D'])
def test_the_steps_there_are_suffice_for_nearly_every_flow(grid, advection):
    for confined in (True, False):
        settings = FluidSettings(
            scheme=advection, border_mm=16.0 * confined, diffusion_scale=100.0, cfl=0.95
        )
        step = jax.jit(jax.vmap(lambda flow: stable_time_step(flow, grid, advection, 0.95)))
        needed = settings.transport_time[1] / np.asarray(step(_flows(grid, confined)))
        assert np.mean(needed <= settings.num_steps(grid)) > 0.95
        assert settings.num_steps(grid) < 8 * np.median(needed)  # nor are they wasted


def test_thrice_the_stable_step_breaks_the_bounds():
    _, P = _carried(FLAT, 'upwind', 'euler', factor=3.0)
    broken = (P < -0.1) | (P > 1.1)
    assert broken.any(axis=(1, 2)).all()


@pytest.mark.parametrize('advection', ADVECTIONS)
@pytest.mark.parametrize('diffusing', [True, False], ids=['diffusing', 'advected'])
@pytest.mark.parametrize('grid', [GRID, FLAT], ids=['3-D', '2-D'])
def test_a_confined_flow_keeps_the_mass_and_leaves_nothing_outside(grid, diffusing, advection):
    P0, P = (v.reshape(DRAWS, -1) for v in _carried(grid, advection, 'ssp_rk3', True, diffusing))
    np.testing.assert_allclose(P.sum(axis=1, dtype=float), P0.sum(axis=1), rtol=1e-5)
    assert not P[:, ~head(grid)[1].ravel()].any()
    _, P = _carried(grid, advection, 'ssp_rk3', False, diffusing)
    assert _outside(P, head(grid)[1]).min() > 0.05  # an open flow carries some of it out


def test_a_periodic_flow_keeps_the_mass():
    P0, P = _carried(ROUND, 'koren', 'ssp_rk3', confined=False, diffusing=True)
    np.testing.assert_allclose(P.sum(axis=(1, 2), dtype=float), P0.sum(axis=(1, 2)), rtol=1e-5)
    assert P.min() >= -1e-6 and P.max() <= 1.0 + 1e-6


def test_a_pattern_that_leaves_one_face_enters_at_the_other():
    P0 = blob(ROUND, (72.0, 72.0), 30.0)
    flow = _uniform(ROUND, 9.0, -8.0)  # a voxel a unit of time
    moved = np.asarray(jax.jit(lambda P: _solve(flow, ROUND, 'koren', P, 8.0, 100))(P0))
    expected = np.roll(P0, (8, -8), axis=(0, 1))
    assert moved[0].max() > 0.7 and moved[-1].max() > 0.7  # it lies across the seam
    assert np.abs(moved - expected).sum() < 0.1 * P0.sum()


@pytest.mark.parametrize('advection', ADVECTIONS)
def test_a_constant_is_not_changed_by_any_flow(advection):
    flow = jax.tree.map(lambda field: field[0], _flows(GRID, False))
    change = jax.jit(right_hand_side(flow, GRID, advection))(np.full(GRID.shape, 0.7, np.float32))
    np.testing.assert_array_equal(change, 0.0)


@pytest.mark.parametrize('advection', ADVECTIONS)
def test_a_slope_is_carried_exactly(advection):
    slopes, speeds = (0.5, -0.2, 0.1), (3.0, 2.0, -4.0)
    P = np.float32(np.tensordot(slopes, places_mm(GRID), 1))
    change = jax.jit(right_hand_side(_uniform(GRID, *speeds), GRID, advection))(P)
    inner = np.s_[2:-2, 2:-2, 2:-2]
    np.testing.assert_allclose(change[inner], -np.dot(slopes, speeds), rtol=1e-4)


def test_the_stable_step_is_the_inverse_of_what_a_voxel_exchanges():
    grid = Grid((6, 6), (1.0, 2.0), 'periodic')

    @jax.jit
    def rates(up, down, D):
        flow, still = _uniform(grid, up, down), _uniform(grid, 0.0 * up, 0.0 * down)
        diffusing = FaceFlow(None, (jnp.full(grid.shape, D),) * 2)
        return [
            *(exchange_rate(flow, grid, name) for name in ('upwind', 'koren')),
            exchange_rate(diffusing, grid),
            stable_time_step(flow, grid, 'upwind', 0.5),
            stable_time_step(still, grid),
        ]

    # In: 3 + 2 voxels a unit of time, and as much out; through either face 2 and 0.5 by diffusion.
    *found, at_rest = np.array(rates(3.0, -4.0, 2.0))
    np.testing.assert_allclose(found, [5.0, 10.0, 2 * (2.0 + 0.5), 0.1], rtol=1e-6)
    assert at_rest > 1e6


def test_an_unknown_advection_is_refused():
    with pytest.raises(UserError, match="advection 'central'"):
        right_hand_side(FaceFlow(None), GRID, 'central')
