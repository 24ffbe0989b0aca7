"""The published code's numbers (golden files): noise, velocity, advection, painting.

Spacing is 1, as published; Perlin angles, potentials, velocities and draws come from the files.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import divergence

from fluidjax.fluid import Grid
from fluidjax.fluid.integrate import ssp_rk3, trajectory
from fluidjax.fluid.noise import perlin_from_gradients, tile_gradients
from fluidjax.fluid.operators import curl
from fluidjax.fluid.painting import lesion_shift, mean_inside, paint
from fluidjax.fluid.published import (
    gradients_from_angles,
    replicate_interior,
    upwind_operator,
    upwind_rate,
)
from fluidjax.fluid.seeds import upper_threshold

INTERIOR = np.s_[1:-1, 1:-1, 1:-1]
SUBSTEPS = 40  # of each interval of 0.1: the exact solution in time, as dopri5's is
_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 1})


@pytest.fixture
def golden(golden_dir):
    """A function (kind) -> {name: arrays} of all files of a kind."""

    def load(kind: str) -> dict[str, dict[str, np.ndarray]]:
        paths = sorted(Path(golden_dir).glob(f'{kind}_*.npz'))
        assert paths, f'{golden_dir} holds no {kind}_*.npz'
        return {path.stem: dict(np.load(path)) for path in paths}

    return load


_perlin = _jit(perlin_from_gradients, static_argnums=(1, 2))


def _gradients(theta, phi, tileable=(0, 0, 0)):
    gradients = gradients_from_angles(*(jnp.asarray(a, jnp.float32) for a in (theta, phi)))
    return tile_gradients(gradients, tuple(np.flatnonzero(tileable).tolist()))


def test_perlin_noise(golden):
    for name, d in golden('perlin').items():
        shape, periods = (tuple(d[key].tolist()) for key in ('shape', 'res'))
        gradients = _gradients(d['theta'], d['phi'], d['tileable'])
        noise = _perlin(gradients, shape, periods)
        np.testing.assert_allclose(noise, d['noise'], atol=1e-6, err_msg=name)

        share = 1.0 - float(d['percentile']) / 100.0
        threshold = _jit(upper_threshold)(noise, share, jnp.ones(shape, bool))
        clear = np.abs(d['noise'] - d['threshold']) > 2e-4  # ours is no interpolated percentile
        np.testing.assert_array_equal((noise >= threshold)[clear], d['mask'][clear] > 0, name)
        assert clear.mean() > 0.99


def test_perlin_noise_without_tiling(golden):
    files = {name: d for name, d in golden('perlin').items() if 'nt_theta' in d}
    for name, d in files.items():
        gradients = _gradients(d['nt_theta'], d['nt_phi'])
        periods = tuple(n - 1 for n in d['nt_theta'].shape)
        noise = _perlin(gradients, d['nt_noise16'].shape, periods)
        np.testing.assert_allclose(noise, d['nt_noise16'], atol=1e-6, err_msg=name)


def _components(d):
    return np.stack([d['Vx'], d['Vy'], d['Vz']], axis=-1).astype(np.float32)


def test_velocity(golden):
    for name, d in golden('velocity').items():
        a, expected = d['curl_a'], _components(d)
        potentials = np.stack([a, d.get('curl_b', a), d.get('curl_c', a)], axis=-1)
        grid, scale = Grid(a.shape), np.abs(expected).max()
        V = float(d['V_multiplier']) * _jit(curl, static_argnums=1)(np.float32(potentials), grid)
        np.testing.assert_allclose(V, expected, atol=1e-5 * scale, err_msg=name)
        left = _jit(divergence, static_argnums=1)(V, grid)
        assert np.abs(left).max() < 1e-5 * scale, name


def test_right_hand_side(golden):
    files = {name: d for name, d in golden('advection').items() if 'rhs_P0' in d}
    assert files
    for name, d in files.items():
        V, grid, noise = _components(d), Grid(d['P0'].shape), jnp.asarray(d['rhs_random_in'])
        operator = _jit(upwind_operator(V, grid))
        inner = _jit(replicate_interior, static_argnums=1)(noise, grid)
        np.testing.assert_array_equal(inner, d['bc_random'], name)
        for P, expected in ((noise, d['rhs_random']), (d['P0'], d['rhs_P0'])):
            change = operator(jnp.asarray(P, jnp.float32))
            np.testing.assert_allclose(
                change, expected, atol=1e-5 * np.abs(expected).max(), err_msg=name
            )
        assert float(upwind_rate(V, grid)) == pytest.approx(float(d['max_sum_absV']), rel=1e-5)


@_jit
def _solve(P0, V):
    """States (9, x, y, z) at t = 0.1, 0.2, ..., 0.9."""
    f = upwind_operator(V, Grid(P0.shape))
    step = lambda P: ssp_rk3(f, P, 0.1 / SUBSTEPS)

    def interval(P, _):
        P = trajectory(step, P, SUBSTEPS)
        return P, P

    return jax.lax.scan(interval, P0, None, length=9)[1]


def test_solution_at_every_time(golden):
    for name, d in golden('advection').items():
        at = {'dopri5': range(1, len(d['t'])), 'dopri5_t1_t4_t9': (1, 4, 9)}
        stored = next(key for key in at if key in d)
        skipped = 1 if stored == 'dopri5' else 0  # P0 is the first of the whole series
        P0, V = jnp.asarray(d['P0'], jnp.float32), _components(d)
        solution = np.asarray(_solve(P0, V))
        for t, expected in zip(at[stored], d[stored][skipped:], strict=True):
            np.testing.assert_allclose(
                solution[t - 1][INTERIOR],
                expected[INTERIOR],
                atol=1e-4,
                err_msg=f'{name} t = 0.{t}',
            )
            np.testing.assert_allclose(solution[t - 1], expected, atol=5e-4, err_msg=name)  # shell
        inner = solution[(np.s_[:], *INTERIOR)]
        assert inner.min() >= -1e-6 and inner.max() <= P0.max() + 1e-6, name


def test_painting(golden):
    for name, d in golden('encode').items():
        table = d['P'].astype(int)  # one pair of draws outside the mask, another inside
        mu = mean_inside(d['I'], d['P'])
        shift = lesion_shift('paper', mu, d['u_mu_first2'][table], bool(d['direction'] == 1))
        spread = 0.25 * mu * d['u_sigma_first2'][table]
        painted = paint(d['I'], d['Pprob'], shift, spread, d['eps'])
        np.testing.assert_allclose(painted, d['out'], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(mu, d['I_mu'], rtol=1e-5, err_msg=name)
