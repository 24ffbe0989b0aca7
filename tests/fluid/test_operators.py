"""Differences and curl at the voxels, and the published operator, against exact answers."""

import functools

import heads
import numpy as np
import pytest
from heads import places_mm, quick_jit

from fluidjax.fluid import Grid, operators
from fluidjax.fluid.published import replicate_interior, upwind_operator, upwind_rate

GRID = Grid((9, 11, 7), (1.0, 2.0, 0.5))
FLAT = Grid((9, 11), (1.0, 2.0))
ROUND = Grid((9, 11, 7), (1.0, 2.0, 0.5), 'periodic')


curl, divergence, gradient = (
    quick_jit(f, static_argnums=1) for f in (operators.curl, heads.divergence, operators.gradient)
)


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(quick_jit, static_argnums=(2, 3))
def _change(P, V, grid, replicated=True):
    return upwind_operator(V, grid, replicated)(P)


@pytest.mark.parametrize('grid', [GRID, FLAT], ids=['3-D', '2-D'])
def test_gradient_is_numpy_gradient_per_mm(grid):
    field = _random(*grid.shape)
    expected = np.stack(np.gradient(np.asarray(field), *grid.spacing), axis=-1)
    np.testing.assert_allclose(gradient(field, grid), expected, atol=1e-5)


def test_periodic_gradient_is_that_of_the_pattern_repeated():
    field = _random(*ROUND.shape)
    repeated = np.gradient(np.tile(np.asarray(field), (3, 3, 3)), *ROUND.spacing)
    middle = tuple(slice(n, 2 * n) for n in ROUND.shape)
    expected = np.stack([g[middle] for g in repeated], axis=-1)
    np.testing.assert_allclose(gradient(field, ROUND), expected, atol=1e-5)


def test_curl_of_a_rotation_potential():
    # Psi = (0, 0, -(x^2 + y^2) / 2) has V = (-y, x, 0): solid-body rotation.
    x, y, _ = places_mm(GRID)
    psi = np.stack([np.zeros_like(x), np.zeros_like(x), -(x**2 + y**2) / 2], axis=-1)
    V = np.asarray(curl(np.float32(psi), GRID))
    inner = np.s_[1:-1, 1:-1, :]
    np.testing.assert_allclose(V[inner][..., 0], -y[inner], atol=1e-4)
    np.testing.assert_allclose(V[inner][..., 1], x[inner], atol=1e-4)
    np.testing.assert_allclose(V[..., 2], 0.0, atol=1e-4)


def test_curl_in_two_dimensions_is_the_third_potential_of_three():
    psi = _random(*FLAT.shape)
    potentials = np.float32(psi[..., None, None] * [0, 0, 1]).repeat(2, axis=2)
    V = curl(potentials, Grid((*FLAT.shape, 2), (*FLAT.spacing, 1.0)))
    np.testing.assert_allclose(curl(psi[..., None], FLAT), V[:, :, 0, :2], atol=1e-6)


@pytest.mark.parametrize('grid', [GRID, FLAT, ROUND], ids=['3-D', '2-D', 'periodic'])
def test_curl_is_divergence_free_and_a_random_field_is_not(grid):
    potentials = _random(*grid.shape, 3 if grid.ndim == 3 else 1)
    V = curl(potentials, grid)
    size = np.abs(V).max() / min(grid.spacing)
    assert np.abs(divergence(V, grid)).max() < 1e-6 * size
    assert np.abs(divergence(_random(*grid.shape, grid.ndim), grid)).max() > 0.1


def test_upwind_takes_the_difference_the_flow_comes_from():
    P = np.float32(np.indices(GRID.shape)[0] ** 2)
    V = np.broadcast_to(np.float32([2.0, 0.0, 0.0]), (*GRID.shape, 3))
    change = _change(P, V, GRID, False)
    np.testing.assert_allclose(change[4], -2.0 * (16 - 9), atol=1e-5)
    np.testing.assert_allclose(change[0], 0.0, atol=1e-6)  # the ghost layer equals the face
    change = _change(P, -V, GRID, False)
    np.testing.assert_allclose(change[4], 2.0 * (25 - 16), atol=1e-5)


def test_spacing_scales_each_axis():
    P = _random(*GRID.shape)
    for k in range(3):
        V = np.broadcast_to(np.float32(1.5 * np.eye(3)[k]), (*GRID.shape, 3))
        per_voxel, scaled = (_change(P, V, grid) for grid in (Grid(GRID.shape), GRID))
        np.testing.assert_allclose(scaled * GRID.spacing[k], per_voxel, atol=1e-5)


def test_upwind_rate_counts_all_axes_in_voxels():
    V = np.zeros((*GRID.shape, 3), np.float32)
    V[1, 2, 3] = [1.0, -2.0, 1.0]
    assert float(upwind_rate(V, GRID)) == pytest.approx(1.0 + 1.0 + 2.0)


@pytest.mark.parametrize('replicated', [True, False])
def test_a_constant_is_not_changed_by_any_flow(replicated):
    V = 30.0 * _random(*GRID.shape, 3)
    change = _change(np.full(GRID.shape, 0.7, np.float32), V, GRID, replicated)
    np.testing.assert_array_equal(change, 0.0)


def test_published_interior_is_a_plain_boundary_on_the_grid_without_its_outermost_layer():
    P, V = _random(*GRID.shape, seed=1), _random(*GRID.shape, 3, seed=2)
    inner = np.s_[1:-1, 1:-1, 1:-1]
    smaller = Grid(tuple(n - 2 for n in GRID.shape), GRID.spacing)
    plain = _change(P[inner], V[inner], smaller, False)
    np.testing.assert_allclose(_change(P, V, GRID)[inner], plain, atol=1e-5)
    np.testing.assert_array_equal(
        replicate_interior(P, GRID), np.pad(np.asarray(P)[inner], 1, mode='edge')
    )
