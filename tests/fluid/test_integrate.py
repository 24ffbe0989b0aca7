"""Order of convergence, the stable step, and the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.fluid import FluidSettings, Grid
from fluidjax.fluid.integrate import SCHEMES, split_time, stable_time_step, trajectory
from fluidjax.fluid.operators import advection_operator
from fluidjax.fluid.randomize import random_velocity, transport

_velocity = jax.jit(random_velocity, static_argnums=(1, 2))
_transport = jax.jit(transport, static_argnums=(3, 4))


@pytest.mark.parametrize(('name', 'order'), [('euler', 1), ('ssp_rk3', 3)])
def test_order_in_time(name, order):
    errors = []
    for n in (4, 8, 16):  # dP/dt = -P up to t = 1
        step = lambda P, n=n: SCHEMES[name](lambda Q: -Q, P, 1.0 / n)  # noqa: E731
        errors.append(abs(float(trajectory(step, jnp.float32(1.0), n)) - np.exp(-1.0)))
    measured = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(measured - order) < 0.25), measured


def _translation_error(n: int) -> float:
    """Mean error of a Gaussian of 8 mm carried 20 mm along x, with n voxels on 96 mm."""
    grid = Grid((n, 3, 3), (96.0 / n, 1.0, 1.0))
    x = (jnp.arange(n) + 0.5) * grid.spacing[0]
    profile = lambda centre: jnp.exp(-(((x - centre) / 8.0) ** 2))[:, None, None]  # noqa: E731
    V = jnp.zeros((*grid.shape, 3)).at[..., 0].set(20.0)
    steps = n // 8
    f = advection_operator(V, grid)
    step = lambda P: SCHEMES['euler'](f, P, 1.0 / steps / 3.0)  # noqa: E731
    P = jax.jit(lambda P: trajectory(step, P, 3 * steps))(profile(38.0) * jnp.ones(grid.shape))
    return float(jnp.mean(jnp.abs(P - profile(58.0))))


def test_upwind_converges_at_first_order():
    errors = [_translation_error(n) for n in (96, 192, 384)]
    measured = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 0.01
    assert np.all((measured > 0.8) & (measured < 1.2)), measured


def test_stable_step_keeps_bounds_and_thrice_the_step_breaks_them():
    grid = Grid((12, 14, 10), (1.0, 2.0, 1.5))
    V = _velocity(jax.random.key(0), grid, FluidSettings())
    P0 = jnp.asarray(np.random.default_rng(0).random(grid.shape) < 0.3, jnp.float32)
    f, dt = advection_operator(V, grid), stable_time_step(V, grid)
    for scheme in SCHEMES.values():
        P = trajectory(lambda P: scheme(f, P, dt), P0, 60)
        assert P.min() >= -1e-6 and P.max() <= 1.0 + 1e-6
        assert jnp.mean(jnp.abs(P - P0)) > 0.05
    P = trajectory(lambda P: SCHEMES['euler'](f, P, 3.0 * dt), P0, 60)
    assert not (P.min() >= -0.1 and P.max() <= 1.1)


def test_stable_step_is_the_courant_number_over_the_rate():
    grid = Grid((4, 4, 4), (1.0, 2.0, 4.0))
    V = jnp.zeros((*grid.shape, 3)).at[1, 2, 3].set(jnp.array([1.0, -2.0, 4.0]))
    assert stable_time_step(V, grid, 0.5) == pytest.approx(0.5 / 3.0)
    assert stable_time_step(jnp.zeros_like(V), grid) > 1e6


@pytest.mark.parametrize(('total', 'stable', 'steps', 'covered'), [
    (0.9, 0.1, 9, 0.9),
    (0.25, 0.1, 3, 0.25),
    (0.05, 0.1, 1, 0.05),
    (0.0, 0.1, 1, 0.0),
    (5.0, 0.1, 10, 1.0),  # shortened to what ten stable steps cover
])
def test_split_time(total, stable, steps, covered):
    dt, num_steps = split_time(jnp.float32(total), jnp.float32(stable), 10)
    assert int(num_steps) == steps
    assert float(dt) <= stable * (1 + 1e-6)
    assert float(dt * num_steps) == pytest.approx(covered)


def test_samples_stop_at_their_own_step():
    run = jax.jit(jax.vmap(lambda active: trajectory(lambda P: P + 1.0, jnp.float32(0), 6, active)))
    np.testing.assert_array_equal(run(jnp.array([0, 2, 6, 9])), [0.0, 2.0, 6.0, 6.0])


def _mean_position(P, grid):
    axes = [h * (np.arange(n) + 0.5) for n, h in zip(grid.shape, grid.spacing)]
    P = np.asarray(P, float)
    return np.array([(P.sum(axis=other) @ a) / P.sum()
                     for a, other in zip(axes, [(1, 2), (0, 2), (0, 1)])])


def test_the_same_lesion_at_two_resolutions():
    def carried(spacing):
        shape = tuple(int(n / spacing) for n in (128, 144, 128))
        grid, settings = Grid(shape, (spacing,) * 3), FluidSettings()
        axes = [spacing * np.arange(n) for n in shape]
        x = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
        P0 = np.exp(-(np.sum((x - [60.0, 70.0, 52.0]) ** 2, axis=-1) / 18.0**2))
        V = _velocity(jax.random.key(5), grid, settings)
        return P0, np.asarray(_transport(P0.astype(np.float32), V, 0.9, grid, settings)), grid

    start, coarse, grid = carried(4.0)
    fine = carried(2.0)[1][::2, ::2, ::2]
    moved = np.linalg.norm(_mean_position(coarse, grid) - _mean_position(start, grid))
    apart = np.linalg.norm(_mean_position(coarse, grid) - _mean_position(fine, grid))
    assert moved > 2.0 and apart < 0.15 * moved
    assert np.abs(coarse - fine).sum() < 0.35 * np.abs(coarse - start).sum()


def test_a_violent_flow_is_shortened_and_stays_in_bounds():
    grid, settings = Grid((12, 14, 10), (8.0, 8.0, 8.0)), FluidSettings(max_steps=5)
    P0 = jnp.asarray(np.random.default_rng(0).random(grid.shape) < 0.3, jnp.float32)
    V = 1e6 * _velocity(jax.random.key(0), grid, settings)
    P = _transport(P0, V, 0.9, grid, settings)
    assert P.min() >= -1e-6 and P.max() <= 1.0 + 1e-6
    assert jnp.any(P != P0)
