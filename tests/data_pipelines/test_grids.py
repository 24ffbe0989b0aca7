"""The model grids against nilearn's MNI152 brain mask."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines import grids, mni_template


@pytest.fixture(scope='module')
def brain_positions():
    """World mm of the template's brain voxels."""
    maps = mni_template.load_template()
    return np.argwhere(maps.brain > 0) @ maps.affine[:3, :3].T + maps.affine[:3, 3]


def _fraction_inside(grid, positions):
    half = (np.array(grid.shape) * grid.spacing) / 2
    return (np.abs(positions - grids.MNI_BRAIN_CENTRE) <= half).all(axis=1).mean()


def test_centre_is_the_middle_of_the_brain(brain_positions):
    middle = (brain_positions.min(axis=0) + brain_positions.max(axis=0)) / 2
    np.testing.assert_array_equal(middle, grids.MNI_BRAIN_CENTRE)


@pytest.mark.parametrize('name', ['demo', 'smoke'])
def test_small_grids_hold_the_whole_brain(name, brain_positions):
    assert _fraction_inside(grids.GRIDS[name], brain_positions) == 1.0


def test_paper_grid_loses_the_poles_alone(brain_positions):
    outside = 1 - _fraction_inside(grids.GRIDS['paper'], brain_positions)
    assert outside == pytest.approx(0.018, abs=0.001)  # The docstring's number.
    inside_xz = np.abs(brain_positions - grids.MNI_BRAIN_CENTRE)[:, [0, 2]] <= 80
    assert inside_xz.all()


@pytest.mark.parametrize('name', ['demo', 'smoke', 'paper'])
def test_affine_centres_the_box(name):
    grid = grids.GRIDS[name]
    middle = (np.array(grid.shape) - 1) / 2
    world = grid.affine[:3, :3] @ middle + grid.affine[:3, 3]
    np.testing.assert_allclose(world, grids.MNI_BRAIN_CENTRE, atol=1e-12)
    np.testing.assert_array_equal(np.diag(grid.affine)[:3], grid.spacing)


def test_positions_follow_the_affine():
    grid = grids.ModelGrid((3, 4, 5), (2.0, 2.0, 2.0))
    index = np.array([2, 1, 4])
    expected = grid.affine @ np.append(index, 1.0)
    np.testing.assert_allclose(grid.positions()[tuple(index)], expected[:3])


def test_voxel_volume():
    assert grids.GRIDS['demo'].voxel_volume_ml == pytest.approx(0.064)
