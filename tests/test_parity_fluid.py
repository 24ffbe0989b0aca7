"""The published code's numbers (golden files): noise, velocity, advection, painting.

Spacing is 1, as published; Perlin angles, potentials, velocities and draws come from the files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.fluid import Grid
from fluidjax.fluid.integrate import ssp_rk3, stable_time_step, trajectory
from fluidjax.fluid.noise import perlin_from_gradients, upper_threshold
from fluidjax.fluid.operators import (
    advection_operator,
    curl,
    divergence,
    replicate_interior,
    upwind_advection,
)
from fluidjax.fluid.painting import paint_lesion

_perlin = jax.jit(perlin_from_gradients, static_argnums=(1, 2))
_curl = jax.jit(curl, static_argnums=1)
_divergence = jax.jit(divergence, static_argnums=1)
_advection = jax.jit(upwind_advection, static_argnums=(2, 3))
INTERIOR = np.s_[1:-1, 1:-1, 1:-1]
ADVECTIONS = [
    'advection_binary_identical_cube20_V150',
    'advection_binary_independent_16x20x24_V60',
    'advection_smooth_identical_cube20_V20',
    'advection_smooth_independent_16x20x24_V60',
]


def _load(golden_dir, name):
    with np.load(golden_dir / f'{name}.npz') as file:
        return dict(file)


def _gradients(theta, phi, tileable=(0, 0, 0)):
    """The published draw: two uniform angles a lattice point; tiling overwrites the last plane."""
    g = np.stack([np.sin(phi) * np.cos(theta), np.sin(phi) * np.sin(theta), np.cos(phi)], axis=-1)
    for axis in np.flatnonzero(tileable):
        g = np.moveaxis(g, axis, 0)
        g[-1] = g[0]
        g = np.moveaxis(g, 0, axis)
    return jnp.asarray(g, jnp.float32)


@pytest.mark.parametrize('name', [
    'perlin_cube32_r222', 'perlin_noncubic24x32x40_r222', 'perlin_noncubic24x24x36_r234'])
def test_perlin(golden_dir, name):
    d = _load(golden_dir, name)
    gradients = _gradients(d['theta'], d['phi'], d['tileable'])
    shape, periods = (tuple(int(n) for n in d[key]) for key in ('shape', 'res'))
    noise = _perlin(gradients, shape, periods)
    np.testing.assert_allclose(noise, d['noise'], atol=1e-6)
    share = 1.0 - d['percentile'] / 100.0
    threshold = jax.jit(upper_threshold)(noise, share, jnp.ones(noise.shape, bool))
    clear = np.abs(d['noise'] - d['threshold']) > 2e-4  # ours is no interpolated percentile
    np.testing.assert_array_equal((noise >= threshold)[clear], d['mask'][clear] > 0)
    assert clear.mean() > 0.99


def test_perlin_without_tiling(golden_dir):
    d = _load(golden_dir, 'perlin_noncubic24x24x36_r234')
    noise = _perlin(_gradients(d['nt_theta'], d['nt_phi']), (16, 16, 16), (2, 2, 2))
    np.testing.assert_allclose(noise, d['nt_noise16'], atol=1e-6)


@pytest.mark.parametrize('name', [
    'velocity_identical_cube24', 'velocity_identical_odd_21x24x27',
    'velocity_independent_20x24x28'])
def test_velocity(golden_dir, name):
    d = _load(golden_dir, name)
    a = d['curl_a']
    potentials = np.stack([a, d.get('curl_b', a), d.get('curl_c', a)], axis=-1)
    grid = Grid(a.shape)
    V = d['V_multiplier'] * _curl(potentials.astype(np.float32), grid)
    expected = np.stack([d['Vx'], d['Vy'], d['Vz']], axis=-1)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(V, expected, atol=1e-5 * scale)
    assert np.abs(_divergence(V, grid)).max() < 1e-5 * scale


def _velocity(d):
    return jnp.asarray(np.stack([d['Vx'], d['Vy'], d['Vz']], axis=-1), jnp.float32)


@pytest.mark.parametrize('name', ADVECTIONS)
def test_right_hand_side(golden_dir, name):
    d = _load(golden_dir, name)
    V, grid = _velocity(d), Grid(d['P0'].shape)
    noise = jnp.asarray(d['rhs_random_in'])
    np.testing.assert_array_equal(jax.jit(replicate_interior)(noise), d['bc_random'])
    for P, expected in ((noise, d['rhs_random']), (d['P0'], d['rhs_P0'])):
        published = _advection(P, V, grid, 'published')
        np.testing.assert_allclose(published, expected, atol=1e-5 * np.abs(expected).max())
    # Our own boundary, on the volume without its outermost layer, is the published interior.
    smaller = Grid(tuple(n - 2 for n in grid.shape))
    ours = _advection(noise[INTERIOR], V[INTERIOR], smaller)
    expected = d['rhs_random'][INTERIOR]
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
    rate = 1.0 / stable_time_step(V, grid)
    assert float(rate) == pytest.approx(float(d['max_sum_absV']), rel=1e-5)


def _solve(P0, V, grid, num_intervals, boundary):
    """States at t = 0.1, 0.2, ... by steps fine enough for the exact solution in time."""
    f = advection_operator(V, grid, boundary)
    substeps = 40

    def interval(P, _):
        P = trajectory(lambda Q: ssp_rk3(f, Q, 0.1 / substeps), P, substeps)
        return P, P

    return jax.jit(lambda P: jax.lax.scan(interval, P, None, length=num_intervals)[1])(P0)


@pytest.mark.parametrize('name', ADVECTIONS)
def test_solution_at_every_time(golden_dir, name):
    d = _load(golden_dir, name)
    P0, V, grid = jnp.asarray(d['P0']), _velocity(d), Grid(d['P0'].shape)
    published = np.asarray(_solve(P0, V, grid, len(d['t']) - 1, 'published'))
    np.testing.assert_allclose(published[(np.s_[:], *INTERIOR)],
                               d['dopri5'][(np.s_[1:], *INTERIOR)], atol=1e-4)
    np.testing.assert_allclose(published, d['dopri5'][1:], atol=5e-4)  # the drifting shell too
    smaller = Grid(tuple(n - 2 for n in grid.shape))
    ours = np.asarray(_solve(P0[INTERIOR], V[INTERIOR], smaller, len(d['t']) - 1, 'neumann'))
    np.testing.assert_allclose(ours, d['dopri5'][(np.s_[1:], *INTERIOR)], atol=1e-4)
    assert ours.min() >= -1e-6 and ours.max() <= d['P0'].max() + 1e-6


def test_solution_of_a_seed_and_flow_of_one_pattern(golden_dir):
    d = _load(golden_dir, 'advection_sameseed_float64_cube24_V75')
    P0, V = jnp.asarray(d['P0'], jnp.float32), _velocity(d)
    solution = np.asarray(_solve(P0, V, Grid(P0.shape), 9, 'published'))
    for state, t in zip(d['dopri5_t1_t4_t9'], (1, 4, 9)):
        np.testing.assert_allclose(solution[t - 1][INTERIOR], state[INTERIOR], atol=1e-4)


@pytest.mark.parametrize('name', ['encode_T1like_dark_cube24', 'encode_FLAIRlike_bright_20x24x28'])
def test_painting(golden_dir, name):
    d = {key: jnp.asarray(value) for key, value in _load(golden_dir, name).items()}
    table = d['P'].astype(int)  # one pair of draws outside the mask, another inside
    painted = paint_lesion(d['I'], d['Pprob'], d['P'], d['u_mu_first2'][table],
                           d['u_sigma_first2'][table], d['eps'], bright=d['direction'] == 1)
    np.testing.assert_allclose(painted, d['out'], atol=1e-5)
