"""A lesion carried along a flow: what holds for every scheme, and where the schemes agree."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import blob, head, quick_jit, split

from fluidjax.fluid import FluidSettings, Grid, transport

COARSE = {3: Grid((12, 14, 12), (8.0,) * 3), 2: Grid((18, 20), (8.0,) * 2)}
FINE = {3: Grid((24, 28, 24), (4.0,) * 3), 2: Grid((36, 40), (4.0,) * 2)}
ROUND = Grid((18, 20), (8.0, 8.0), 'periodic')
# Confined, where they are given a brain.
MAP, KOREN = (FluidSettings(scheme=name, border_mm=16.0) for name in ('flow_map', 'koren'))
DRAWS = 12
TIMES, KEYS = np.linspace(0.1, 0.9, DRAWS), split(1, DRAWS)
ONE_KEY = KEYS[np.zeros(DRAWS, int)]


@functools.cache
def _carrier(grid, settings, confined):
    """The compiled (P0, keys, times) -> P (draws, x, y (, z)), and its traces."""
    traces, mask = [], head(grid)[1] if confined else None

    def one(P0, key, time):
        traces.append(None)
        return transport(P0, key, time, grid, settings, mask)

    # Where there are many voxels, running without optimisation takes longer than optimising.
    compiled = quick_jit if grid == FINE[3] else jax.jit
    return compiled(jax.vmap(one, in_axes=(None, 0, 0))), traces


def _carried(grid, settings, P0, times=TIMES, keys=KEYS, confined=True):
    carry, _ = _carrier(grid, settings, confined)
    return np.asarray(carry(P0, keys, np.float32(times)))


def _lesion(grid):
    """A smooth lesion a third from the side of the brain."""
    return blob(grid, [length * part for length, part in zip(grid.extent, (0.4, 0.5, 0.45))], 14.0)


def _voxels(grid):
    """Every third voxel of the brain, at random."""
    some = np.random.default_rng(0).random(grid.shape) < 0.3
    return np.float32(some & head(grid)[1])


def _total(P):
    return np.abs(P).reshape(len(P), -1).sum(axis=1, dtype=float)


@pytest.mark.parametrize(
    'ndim, settings',
    [
        pytest.param(2, MAP, id='2-flow_map'),
        pytest.param(2, KOREN, id='2-koren'),
        pytest.param(3, MAP, id='3-flow_map', marks=pytest.mark.slow),
        pytest.param(3, KOREN, id='3-koren', marks=pytest.mark.slow),
    ],
)
def test_the_same_lesion_at_two_resolutions(ndim, settings):
    coarse, fine = COARSE[ndim], FINE[ndim]
    P = _carried(coarse, settings, _lesion(coarse))
    thinned = _carried(fine, settings, _lesion(fine))[(np.s_[:], *[np.s_[::2]] * ndim)]
    apart, moved = _total(P - thinned), _total(P - _lesion(coarse))
    assert np.median(moved) > 0.15 * _lesion(coarse).sum()
    assert apart.sum() < 0.3 * moved.sum() and apart.max() < 0.3 * _lesion(coarse).sum()


@pytest.mark.parametrize('settings', [MAP, KOREN], ids=['flow_map', 'koren'])
@pytest.mark.parametrize('ndim', [2, 3])
def test_a_time_a_sample_without_compiling_again(ndim, settings):
    grid = COARSE[ndim]
    P0 = _lesion(grid)
    for times in (TIMES, TIMES[::-1]):
        moved = _total(_carried(grid, settings, P0, times, ONE_KEY) - P0)
        assert np.all(np.diff(moved[np.argsort(times)]) > 0)
    for P in _carried(grid, settings, P0, 0.0 * TIMES):
        np.testing.assert_allclose(P, P0, atol=1e-6)
    assert len(_carrier(grid, settings, True)[1]) == 1


@pytest.mark.parametrize('ndim', [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_map_and_the_steps_agree_and_lose_little_through_the_surface(ndim):
    grid = FINE[ndim]
    P0, brain = _lesion(grid), head(grid)[1]
    by_map, by_steps = (_carried(grid, settings, P0) for settings in (MAP, KOREN))
    moved = _total(by_steps - P0)
    assert _total(by_map - by_steps).sum() < 0.2 * moved.sum()
    np.testing.assert_allclose(_total(by_map), P0.sum(), rtol=0.02)
    np.testing.assert_allclose(_total(by_steps), P0.sum(), rtol=1e-5)
    assert min(by_map.min(), by_steps.min()) > -1e-6 and max(by_map.max(), by_steps.max()) < 1.0001
    for P in (by_map, by_steps):  # what lay outside stays there, and nothing joins it
        assert (_total(P[:, ~brain]) / _total(P)).max() < 1.5 * P0[~brain].sum() / P0.sum() + 1e-4


def test_a_confined_lesion_stays_in_the_brain_and_an_open_flow_carries_some_out():
    grid = FINE[2]
    brain, P0 = head(grid)[1], _voxels(grid)
    outside = {
        name: _total(P[:, ~brain]) / _total(P)
        for name, P in {
            'map': _carried(grid, MAP, P0),
            'steps': _carried(grid, KOREN, P0),
            'open': _carried(grid, FluidSettings(), P0),
        }.items()
    }
    assert outside['steps'].max() == 0.0
    assert outside['map'].max() < 0.01
    assert outside['open'].mean() > 0.015, outside


@pytest.mark.parametrize(
    ('scheme', 'integrator', 'scale'),
    [('flow_map', 'ssp_rk3', 1e6), ('koren', 'ssp_rk3', 25_000.0), ('upwind', 'euler', 1e6)],
)
def test_no_value_leaves_the_bounds_even_in_a_violent_flow(scheme, integrator, scale):
    grid = COARSE[2]
    P0 = _voxels(grid)
    settings = FluidSettings(
        scheme=scheme,
        integrator=integrator,
        velocity_scale=scale,
        border_mm=16.0,
        cfl=1.0,
        max_steps=40,
    )
    P = _carried(grid, settings, P0)
    assert np.isfinite(P).all() and P.min() >= -1e-6 and P.max() <= 1.0 + 1e-6
    assert _total(P - P0).min() > 0.1 * P0.sum()


def test_a_time_that_so_many_steps_do_not_reach_is_shortened():
    settings = dataclasses.replace(KOREN, velocity_scale=25_000.0, cfl=1.0, max_steps=40)
    P0 = _voxels(COARSE[2])
    P = _carried(COARSE[2], settings, P0, keys=ONE_KEY)
    np.testing.assert_array_equal(P[-2], P[-1])
    assert np.abs(P[-1] - P0).sum() > 0.1 * P0.sum()


def test_looking_back_undoes_looking_ahead():
    grid = FINE[2]
    P0 = _lesion(grid)
    times = np.full(DRAWS, 0.6)
    there = _carried(grid, MAP, P0, times)[0]
    back = _carried(grid, MAP, there, -times)[0]
    assert np.abs(back - P0).sum() < 0.15 * np.abs(there - P0).sum()


@pytest.mark.parametrize('settings', [MAP, KOREN], ids=['flow_map', 'koren'])
def test_gradients_are_finite_and_right(settings):
    grid = FINE[2]
    brain, weight = head(grid)[1], blob(grid, (60.0, 90.0), 30.0)
    key, P0, time = jax.random.key(1), _lesion(grid), 0.5
    direction = blob(grid, (62.0, 76.0), 20.0)

    def reached(P0, time):
        return jnp.sum(weight * transport(P0, key, time, grid, settings, brain))

    slope = jax.jit(jax.value_and_grad(reached, argnums=(0, 1)))
    by_P0, by_time = slope(P0, time)[1]
    assert np.isfinite(by_P0).all() and np.isfinite(by_time)
    above, below = (slope(P0 + s * direction, time)[0] for s in (0.05, -0.05))
    np.testing.assert_allclose(np.sum(by_P0 * direction), (above - below) / 0.1, rtol=0.01)
    above, below = (slope(P0, time + s)[0] for s in (0.01, -0.01))
    np.testing.assert_allclose(by_time, (above - below) / 0.02, rtol=0.05)
    assert abs(by_time) > 0.1


def test_a_flow_stored_in_half_the_bits_errs_little():
    grid = FINE[2]
    P0, half = _lesion(grid), dataclasses.replace(KOREN, storage='bfloat16')
    full, stored = _carried(grid, KOREN, P0), _carried(grid, half, P0)
    error = np.abs(stored - full).max()
    assert 1e-5 < error < 5e-3 and stored.dtype == np.float32
    np.testing.assert_allclose(_total(stored), _total(full), rtol=1e-3)


def test_split_diffusion_agrees_with_diffusion_in_every_step():
    grid = FINE[2]
    P0 = _lesion(grid)
    diffusing = [dataclasses.replace(s, diffusion_scale=800.0) for s in (MAP, KOREN)]
    split_, whole = (_carried(grid, settings, P0) for settings in diffusing)
    spread = _total(whole - _carried(grid, KOREN, P0))
    assert spread.mean() > 0.06 * P0.sum()  # the diffusion is not a detail
    assert _total(split_ - whole).sum() < 0.3 * spread.sum()
    assert split_.min() >= 0.0 and split_.max() <= 1.0 and whole.max() < 0.99


@pytest.mark.parametrize('settings', [MAP, KOREN], ids=['flow_map', 'koren'])
def test_a_flow_around_a_circle_keeps_the_bounds_and_what_it_carries(settings):
    P0 = np.roll(blob(ROUND, (72.0, 80.0), 20.0), (9, 10), axis=(0, 1))  # in all four corners
    P = _carried(ROUND, settings, P0, confined=False)
    assert P.min() >= -1e-6 and P.max() <= 1.0 + 1e-6
    np.testing.assert_allclose(_total(P), P0.sum(), rtol=1e-5 if settings is KOREN else 0.1)
    assert _total(P - P0).min() > 0.02 * P0.sum()


def test_the_published_transport_keeps_its_bounds_within_the_outermost_layer():
    grid = Grid((10, 12, 9), (16.0, 14.0, 18.0))
    P0 = _voxels(grid)
    P = _carried(grid, FluidSettings(parity=True), P0, confined=False)[:, 1:-1, 1:-1, 1:-1]
    assert P.min() >= -1e-6 and P.max() <= 1.0 + 1e-6
    assert _total(P - P0[1:-1, 1:-1, 1:-1]).min() > 0.05 * P0.sum()
