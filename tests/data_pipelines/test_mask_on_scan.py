"""A mask on other voxels than its scan is resampled where both lie in one place, else refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.mask_on_scan import joined, on_voxels_of
from data_pipelines.volume_io import NO_ORIENTATION, Volume
from fluidjax.base.errors import UserError

AFFINE = np.array([[2.0, 0, 0, -30], [0, 2, 0, -40], [0, 0, 2, -20], [0, 0, 0, 1]])
SCAN = Volume(np.ones((30, 40, 20), np.float32), AFFINE, 'scan.nii')


def ball(shape, affine, centre=(6.0, -4.0, 2.0), radius=9.0, **more) -> Volume:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inside = np.linalg.norm(world - centre, axis=-1) < radius
    return Volume(inside.astype(np.float32), affine, 'mask.nii', **more)


def test_the_same_voxels_are_taken_as_they_are():
    moved = AFFINE.copy()
    moved[:3, 3] += 0.4
    for affine in (AFFINE, moved):
        mask = ball(SCAN.data.shape, affine)
        assert on_voxels_of(mask, SCAN) is mask


def test_other_voxels_are_resampled_by_their_header():
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[:3, 3] = AFFINE[:3, 3]
    flipped = np.diag([-2.0, 2.0, 2.0, 1.0])
    flipped[:3, 3] = 28, -40, -20
    shifted = AFFINE.copy()
    shifted[0, 3] -= 10
    expected = ball(SCAN.data.shape, AFFINE).data
    for shape, affine in (((60, 80, 40), fine), ((30, 40, 20), flipped), ((30, 40, 20), shifted)):
        mask = on_voxels_of(ball(shape, affine), SCAN, 'lesion mask')
        assert mask.data.shape == SCAN.data.shape
        assert np.mean(mask.data != expected) < 0.01
        assert any('other voxels than the scan' in warning for warning in mask.warnings)


@pytest.mark.parametrize('offset', [(0, 0, 0), (-30, 100, -20)])
def test_another_place_is_refused(offset):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = offset
    with pytest.raises(UserError, match='mask.nii: mask of shape .* elsewhere by its header.*copy'):
        on_voxels_of(ball((30, 40, 20), affine), SCAN)


def test_a_mask_without_orientation_is_refused():
    affine = AFFINE.copy()
    affine[0, 3] += 5
    mask = ball((30, 40, 20), affine, warnings=(NO_ORIENTATION,))
    with pytest.raises(UserError, match='the header of mask.nii has no orientation'):
        on_voxels_of(mask, SCAN)
    assert on_voxels_of(ball((30, 40, 20), AFFINE, warnings=(NO_ORIENTATION,)), SCAN)


def test_a_mask_on_a_scan_without_orientation_is_refused():
    """Where the scan lies is a guess, so a mask with another header cannot be laid on it."""
    scan = dataclasses.replace(SCAN, warnings=(NO_ORIENTATION,))
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 28, -40, -20
    with pytest.raises(UserError, match='the header of scan.nii has no orientation'):
        on_voxels_of(ball((30, 40, 20), affine), scan)
    assert on_voxels_of(ball((30, 40, 20), AFFINE), scan)


def test_masks_are_joined_on_the_scan():
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[:3, 3] = AFFINE[:3, 3]
    first, second = ball((30, 40, 20), AFFINE), ball((60, 80, 40), fine, centre=(-14.0, 8.0, 2.0))
    both = joined([first, second], SCAN, 'lesion mask')
    expected = (first.data > 0) | (ball((30, 40, 20), AFFINE, centre=(-14.0, 8.0, 2.0)).data > 0)
    assert both.data.shape == SCAN.data.shape and np.mean((both.data > 0) != expected) < 0.01
    assert len([line for line in both.warnings if 'other voxels' in line]) == 1
