"""Differences, curl and upwind advection against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.errors import UserError
from fluidjax.fluid import FluidSettings, Grid
from fluidjax.fluid.operators import (
    advection_operator,
    curl,
    divergence,
    gradient,
    replicate_interior,
    upwind_advection,
)
from fluidjax.fluid.randomize import random_velocity

GRID = Grid((9, 11, 7), (1.0, 2.0, 0.5))


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_gradient_is_numpy_gradient_per_mm():
    field = _random(*GRID.shape)
    expected = np.stack(np.gradient(np.asarray(field), *GRID.spacing), axis=-1)
    np.testing.assert_allclose(gradient(field, GRID), expected, atol=1e-5)


def test_curl_of_a_rotation_potential():
    # Psi = (0, 0, -(x^2 + y^2) / 2) has V = (-y, x, 0): solid-body rotation.
    x, y, _ = np.meshgrid(*(h * np.arange(n) for n, h in zip(GRID.shape, GRID.spacing)),
                          indexing='ij')
    psi = np.stack([np.zeros_like(x), np.zeros_like(x), -(x**2 + y**2) / 2], axis=-1)
    V = np.asarray(curl(jnp.asarray(psi, jnp.float32), GRID))
    inner = np.s_[1:-1, 1:-1, :]
    np.testing.assert_allclose(V[inner][..., 0], -y[inner], atol=1e-4)
    np.testing.assert_allclose(V[inner][..., 1], x[inner], atol=1e-4)
    np.testing.assert_allclose(V[..., 2], 0.0, atol=1e-4)


def test_curl_is_divergence_free_and_a_random_field_is_not():
    potentials = _random(*GRID.shape, 3)
    V = curl(potentials, GRID)
    size = jnp.max(jnp.abs(V)) / min(GRID.spacing)
    assert jnp.max(jnp.abs(divergence(V, GRID))) < 1e-6 * size
    assert jnp.max(jnp.abs(divergence(potentials, GRID))) > 0.1


def test_random_velocity_is_divergence_free_and_not_confined_to_a_plane():
    grid = Grid((20, 24, 18), (8.0, 8.0, 8.0))
    V = random_velocity(jax.random.key(0), grid, FluidSettings())
    speed = jnp.max(jnp.abs(V))
    assert 5.0 < speed < 40.0  # mm per unit time, whatever the spacing
    assert jnp.max(jnp.abs(divergence(V, grid))) < 1e-6 * speed
    assert jnp.max(jnp.abs(jnp.sum(V, axis=-1))) > 0.2 * speed  # the published slip would give 0


def test_upwind_takes_the_difference_the_flow_comes_from():
    P = jnp.arange(9.0)[:, None, None] ** 2 * jnp.ones(GRID.shape)
    V = jnp.zeros((*GRID.shape, 3)).at[..., 0].set(2.0)
    np.testing.assert_allclose(upwind_advection(P, V, GRID)[4], -2.0 * (16 - 9), atol=1e-5)
    np.testing.assert_allclose(upwind_advection(P, -V, GRID)[4], 2.0 * (25 - 16), atol=1e-5)
    # At an inflow face the ghost layer equals the face: no change there.
    np.testing.assert_allclose(upwind_advection(P, V, GRID)[0], 0.0, atol=1e-6)


def test_spacing_scales_each_axis():
    P = _random(*GRID.shape)
    for k in range(3):
        V = jnp.zeros((*GRID.shape, 3)).at[..., k].set(1.5)
        per_voxel = upwind_advection(P, V, Grid(GRID.shape))
        scaled = upwind_advection(P, V, GRID)
        np.testing.assert_allclose(scaled * GRID.spacing[k], per_voxel, atol=1e-5)


def test_a_constant_is_not_changed_by_any_flow():
    V = 30.0 * _random(*GRID.shape, 3)
    for boundary in ('neumann', 'published'):
        change = upwind_advection(jnp.full(GRID.shape, 0.7), V, GRID, boundary)
        np.testing.assert_array_equal(change, 0.0)


def test_published_boundary_is_ours_on_the_grid_without_its_outermost_layer():
    P, V = _random(*GRID.shape, seed=1), _random(*GRID.shape, 3, seed=2)
    inner = np.s_[1:-1, 1:-1, 1:-1]
    smaller = Grid(tuple(n - 2 for n in GRID.shape), GRID.spacing)
    published = advection_operator(V, GRID, 'published')(P)
    np.testing.assert_allclose(
        published[inner], upwind_advection(P[inner], V[inner], smaller), atol=1e-5)
    np.testing.assert_array_equal(
        replicate_interior(P), np.pad(np.asarray(P)[inner], 1, mode='edge'))


def test_unknown_boundary_is_refused():
    with pytest.raises(UserError, match="boundary 'open'"):
        advection_operator(jnp.zeros((*GRID.shape, 3)), GRID, 'open')
