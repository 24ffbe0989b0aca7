"""The background of a scan is the constant around it, whatever its value."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import synthetic_heads as heads

from data_pipelines import background, grids
from data_pipelines.preprocess import preprocess
from data_pipelines.volume_io import load_volume, save_volume
from fluidjax.base.errors import UserError

DEMO = grids.GRIDS['demo']


def z_scored():
    scan = heads.stripped()
    brain = scan.data > 0
    values = (scan.data - scan.data[brain].mean()) / scan.data[brain].std()
    return dataclasses.replace(scan, data=np.where(brain, values, 0).astype(np.float32))


@pytest.mark.parametrize('outside', [0.0, 1.0, -0.5])
def test_a_background_within_the_brains_intensities(outside):
    """The whole brain is kept, as that of the scan before the change of its intensities."""
    scan, plain = z_scored(), preprocess(heads.stripped(), DEMO, registration='none')
    scan.data[heads.stripped().data == 0] = outside
    result = preprocess(scan, DEMO, registration='none')
    assert result.brain.sum() == plain.brain.sum() and result.warnings == ()
    inside = plain.brain & (plain.image > 0)
    assert np.corrcoef(result.image[inside], plain.image[inside])[0, 1] > 0.99
    # Where black was cannot be known: here it is taken to be the darkest tissue.
    assert abs(result.image[inside] - plain.image[inside]).mean() < 0.08


@pytest.mark.parametrize('outside', [-1.0, -5.0])
def test_a_background_far_below_the_brain(outside):
    """A brain scaled to [0, 1] with another background has the tissue levels of the plain scan."""
    scan = heads.stripped()
    brain = scan.data > 0
    scaled = (scan.data / scan.data.max()).astype(np.float32)
    plain = preprocess(dataclasses.replace(scan, data=scaled), DEMO, registration='none')
    odd = dataclasses.replace(scan, data=np.where(brain, scaled, np.float32(outside)))
    result = preprocess(odd, DEMO, registration='none')
    assert result.brain.sum() == plain.brain.sum() and result.warnings == ()
    assert abs(result.image - plain.image)[plain.brain].mean() < 0.08
    assert abs(np.median(result.image[plain.brain]) - np.median(plain.image[plain.brain])) < 0.08


@pytest.mark.parametrize('shift', [0.0, -300.0, 77.0])
def test_a_dark_background_is_left_as_it_is(shift):
    scan = heads.stripped()
    moved = dataclasses.replace(scan, data=scan.data + np.float32(shift))
    assert background.with_black_background(moved) is moved
    assert background.black_level(moved.data) == shift
    head, _ = heads.whole_head()
    assert background.with_black_background(head) is head


def test_nan_around_the_brain_is_background(tmp_path):
    for scan in (heads.stripped(), z_scored()):
        plain = preprocess(scan, DEMO, registration='none')
        data = np.where(heads.stripped().data > 0, scan.data, np.nan)
        save_volume(tmp_path / 'nan.nii', data.astype(np.float32), scan.affine)
        result = preprocess(load_volume(tmp_path / 'nan.nii'), DEMO, registration='none')
        assert result.brain.sum() == plain.brain.sum()
        np.testing.assert_allclose(result.image, plain.image, atol=0.05)


def test_nan_within_the_brain_is_not(tmp_path):
    scan = heads.stripped()
    data = scan.data.copy()
    data[36, 42, 38] = np.nan
    save_volume(tmp_path / 'hole.nii', data, scan.affine)
    with pytest.raises(UserError, match='hole.nii: holds NaN .* inside the brain'):
        load_volume(tmp_path / 'hole.nii')
    data[heads.stripped().data == 0] = np.nan  # a threshold left this voxel out as well
    save_volume(tmp_path / 'hole.nii', data, scan.affine)
    assert load_volume(tmp_path / 'hole.nii').data[36, 42, 38] == 0
    data[30:42, 36:48, 32:44] = np.nan
    save_volume(tmp_path / 'hole.nii', data, scan.affine)
    with pytest.raises(UserError, match='hole.nii: holds NaN .* inside the brain'):
        load_volume(tmp_path / 'hole.nii')
