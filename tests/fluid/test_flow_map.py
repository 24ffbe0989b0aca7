"""The flow's own map: tracing, interpolation and the one gather, on flows known exactly."""

import jax
import numpy as np
import pytest
from heads import blob, orders, places_mm

from fluidjax.fluid import Grid, flow_map
from fluidjax.fluid.flow_map import cubic_weights

MESHES = [Grid((9, 11), (4.0, 3.2)), Grid((9, 11, 7), (4.0, 3.2, 5.0))]
carry = jax.jit(flow_map.carry, static_argnums=2)
trace_back = jax.jit(flow_map.trace_back, static_argnums=(1, 2, 4))
to_voxels = jax.jit(flow_map.to_voxels, static_argnums=(1, 2))


def _middle(grid):
    """The middle of a grid, shaped to be taken from `places_mm`."""
    middle = [h * (n - 1) / 2 for n, h in zip(grid.shape, grid.spacing)]
    return np.reshape(middle, (-1, *[1] * grid.ndim))


def _axis(ndim):
    return np.array([0.6, 0.0, 0.8]) if ndim == 3 else np.array([0.0, 0.0, 1.0])


def _spin(grid):
    """V (x, y (, z), d) of a turn about the middle, one radian a unit of time: omega x r."""
    offset = np.zeros((3, *grid.shape))
    offset[: grid.ndim] = places_mm(grid) - _middle(grid)
    V = np.cross(_axis(grid.ndim), offset, axisb=0)[..., : grid.ndim]
    return np.float32(V)


def _came_from(grid, angle):
    """X - x (x, y (, z), d) for a turn by an angle, exactly (Rodrigues)."""
    a = _axis(grid.ndim)
    K = np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])
    R = (np.sin(-angle) * K + (1 - np.cos(angle)) * K @ K)[: grid.ndim, : grid.ndim]
    return np.moveaxis(np.tensordot(R, places_mm(grid) - _middle(grid), 1), 0, -1)


def _held(grid):
    """Voxels whose whole circle lies in the grid, where linear interpolation of V is exact."""
    offset = places_mm(grid) - _middle(grid)
    return np.sqrt((offset**2).sum(axis=0)) <= _middle(grid).min()


@pytest.mark.parametrize('mesh', MESHES, ids=['2-D', '3-D'])
@pytest.mark.parametrize('angle', [1.5, -1.5])
def test_tracing_a_turn_is_of_fourth_order(mesh, angle):
    expected = _came_from(mesh, angle)
    errors = [
        np.abs(trace_back(_spin(mesh), mesh, mesh, angle, n) - expected)[_held(mesh)].max()
        for n in (4, 8)
    ]
    assert np.abs(expected[_held(mesh)]).max() > 8.0
    assert abs(orders(errors)[0] - 4.0) < 0.4, (errors, orders(errors))


def test_nodes_of_their_own_arrive_as_those_of_the_mesh_do():
    mesh, nodes = MESHES[0], Grid((5, 6), (8.0, 6.4))
    V = _spin(mesh)
    own, all_of_them = (trace_back(V, mesh, to, 0.7, 4) for to in (nodes, mesh))
    np.testing.assert_allclose(own, all_of_them[::2, ::2], atol=1e-5)


def test_no_time_is_no_displacement():
    V = _spin(MESHES[0])
    np.testing.assert_allclose(trace_back(V, MESHES[0], MESHES[0], 0.0, 3), 0.0, atol=1e-5)


def test_carrying_along_an_exact_map_is_of_second_order():
    def apart(n, angle):
        grid = Grid((n + 1, n + 1), (96.0 / n, 96.0 / n))
        displacement = np.float32(_came_from(grid, angle))
        moved = carry(blob(grid, (62.0, 48.0), 16.0), displacement, grid)
        there = (48.0 + 14.0 * np.cos(angle), 48.0 + 14.0 * np.sin(angle))
        return np.abs(moved - blob(grid, there, 16.0))[_held(grid)].max()

    errors = [apart(n, 0.7) for n in (32, 64, 128)]
    assert np.all(np.abs(orders(errors) - 2.0) < 0.3), (errors, orders(errors))


@pytest.mark.parametrize('ndim', [2, 3])
def test_a_turn_about_the_middle_brings_a_blob_back(ndim):
    grid, mesh = Grid((25,) * ndim, (2.0,) * ndim), Grid((13,) * ndim, (4.0,) * ndim)
    P0 = blob(grid, (33.0, *[24.0] * (ndim - 1)), 8.0)

    def turned(P0, angle):
        moved = trace_back(_spin(mesh), mesh, mesh, angle, 40)
        return carry(P0, to_voxels(moved, mesh, grid), grid)

    away = [np.abs(turned(P0, angle) - P0)[_held(grid)].max() for angle in (np.pi, 2 * np.pi)]
    assert away[0] > 0.5 and away[1] < 0.01, away


def test_a_move_by_whole_voxels_is_exact_and_holds_the_face_beyond_it():
    grid = Grid((6, 7, 5), (1.0, 2.0, 0.5))
    P0 = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    move = np.broadcast_to(np.float32([-2.0, 2.0, 0.0]), (*grid.shape, 3))
    held = P0[
        np.ix_(np.clip(np.arange(6) - 2, 0, None), np.clip(np.arange(7) + 1, 0, 6), np.arange(5))
    ]
    np.testing.assert_allclose(carry(P0, move, grid), held, atol=1e-6)


def test_a_pattern_that_leaves_one_face_enters_at_the_other():
    grid = Grid((16, 18), (9.0, 8.0), 'periodic')
    P0 = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    V = np.broadcast_to(np.float32([9.0, -8.0]), (*grid.shape, 2))  # a voxel a unit of time
    moved = trace_back(V, grid, grid, 21.0, 3)
    expected = np.roll(P0, (21, -21), axis=(0, 1))
    np.testing.assert_allclose(carry(P0, moved, grid), expected, atol=1e-4)


@pytest.mark.parametrize('periodic', [False, True])
def test_cubic_weights_keep_the_values_at_nodes_and_sum_to_one(periodic):
    at = np.array([0.0, 1.0, 4.0, 0.3, 2.5, 3.9])
    weights = cubic_weights(at, 5, periodic)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(weights[:3], np.eye(5)[[0, 1, 4]], atol=1e-6)


def test_cubic_weights_continue_a_line_and_go_around_a_circle():
    at = np.linspace(-0.5, 5.5, 13)
    np.testing.assert_allclose(cubic_weights(at, 6, False) @ np.arange(6), at, atol=1e-5)
    inner = np.linspace(1.0, 4.0, 13)  # a parabola where no tap is beyond the ends
    np.testing.assert_allclose(
        cubic_weights(inner, 6, False) @ np.arange(6) ** 2, inner**2, atol=1e-5
    )
    around = cubic_weights(at, 6, True)
    np.testing.assert_allclose(around, cubic_weights(at + 6.0, 6, True), atol=1e-6)


def test_a_smooth_field_is_brought_to_the_voxels_at_third_order():
    grid, errors = Grid((49, 3), (2.0, 48.0)), []
    for n in (12, 24, 48):
        nodes = Grid((n + 1, 2), (96.0 / n, 96.0))
        field = np.float32(np.sin(places_mm(nodes)[0] / 12.0))
        found = to_voxels(field, nodes, grid)
        errors.append(np.abs(found - np.sin(places_mm(grid)[0] / 12.0))[8:-8].max())
    assert errors[-1] < 1e-6  # the nodes are the voxels
    assert orders(errors[:2]) > 2.7, errors
