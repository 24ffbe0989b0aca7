"""A scan on the model grid: right side right, lesion where it was, and the way back."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import grids, mni_template, preprocess, registration, resampling
from data_pipelines.volume_io import Volume, load_volume, save_volume
from fluidjax.base.errors import UserError

DEMO = grids.GRIDS['demo']


def _scan(mni_at_8mm):
    data, affine = mni_at_8mm
    return Volume(data.copy(), affine, 'scan.nii')


def _ball(volume, centre, radius):
    positions = grids.voxel_positions(volume.data.shape, volume.affine)
    return (np.linalg.norm(positions - centre, axis=-1) <= radius).astype(np.float32)


def _centroid(mask, affine):
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def test_intensities_and_background(mni_at_8mm):
    result = preprocess.preprocess(_scan(mni_at_8mm), DEMO, registration='none')
    assert result.image.dtype == np.float32 and result.image.shape == DEMO.shape
    assert 0 <= result.image.min() and result.image.max() <= 1
    assert not result.image[~result.brain].any()
    assert result.overlap > 0.95
    np.testing.assert_array_equal(result.affine, DEMO.affine)


@pytest.mark.parametrize('gain, offset', [(1.0, 0.0), (0.003, 0.0), (40.0, 300.0)])
def test_scale_ignores_the_scanners_unit(mni_at_8mm, gain, offset):
    scan = _scan(mni_at_8mm)
    expected = preprocess.preprocess(scan, DEMO, registration='none')
    other = Volume(gain * scan.data + offset, scan.affine, 'other.nii')
    result = preprocess.preprocess(other, DEMO, registration='none')
    np.testing.assert_allclose(result.image, expected.image, atol=1e-3)


def test_scale_is_robust_to_a_lesion(mni_at_8mm):
    scan = _scan(mni_at_8mm)
    lesion = _ball(scan, (30, -20, 20), 24) > 0
    diseased = Volume(np.where(lesion, 0.3 * scan.data, scan.data), scan.affine, 'd.nii')
    before = preprocess.preprocess(scan, DEMO, registration='none').image
    mask = Volume(lesion.astype(np.float32), scan.affine, 'm.nii')
    result = preprocess.preprocess(diseased, DEMO, mask, registration='none')
    far = ~np.asarray(_ball(Volume(result.image, DEMO.affine, ''), (30, -20, 20), 40), bool)
    assert result.lesion.sum() * DEMO.voxel_volume_ml > 40
    np.testing.assert_allclose(result.image[far], before[far], atol=0.02)


def test_white_matter_lands_where_it_should(mni_at_8mm):
    scan = _scan(mni_at_8mm)
    head, brain = preprocess.crop_to_brain(scan, *preprocess.find_brain(scan))
    levels = mni_template.tissue_levels(head.data, head.affine, np.eye(4))
    level = preprocess.white_matter_level(levels['wm'], head.data, brain)
    assert level == pytest.approx(850, abs=50)  # The template's own white matter is at 0.85.


@pytest.mark.parametrize('codes', ['RAS', 'LAS', 'LPS', 'PIR', 'SAL'])
def test_right_stays_right_in_every_orientation(tmp_path, mni_at_8mm, codes):
    data, affine = mni_at_8mm
    volume = Volume(data, affine, '')
    mask = _ball(volume, (36, -60, 20), 12)  # Right (x > 0) and posterior.
    ornt = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    for name, array in (('scan', data), ('mask', mask)):
        nib.save(nib.Nifti1Image(array, affine).as_reoriented(ornt), tmp_path / f'{name}.nii')
    scan, lesion = (load_volume(tmp_path / f'{name}.nii') for name in ('scan', 'mask'))
    result = preprocess.preprocess(scan, DEMO, lesion, registration='none')
    found = _centroid(result.lesion, DEMO.affine)
    np.testing.assert_allclose(found, _centroid(mask, affine), atol=1.5)
    assert np.argwhere(result.lesion)[:, 0].mean() > DEMO.shape[0] / 2


def test_small_lesion_never_vanishes(mni_at_8mm):
    scan = _scan(mni_at_8mm)
    mask = np.zeros_like(scan.data)
    mask[14, 14, 14] = 1
    smoke = grids.GRIDS['smoke']
    result = preprocess.preprocess(scan, smoke, Volume(mask, scan.affine, 'm'), 'none')
    assert result.lesion.sum() >= 1
    found = _centroid(result.lesion, smoke.affine)
    assert np.abs(found - _centroid(mask, scan.affine)).max() <= 6.0


def test_mask_volume_survives_resampling(mni_at_8mm):
    fine = Volume(np.zeros((120, 120, 120), np.float32), np.diag([1.0, 1, 1, 1]), '')
    ball = _ball(fine, (60, 60, 60), 25)
    target = np.diag([4.0, 4.0, 4.0, 1.0])
    coarse = resampling.resample_mask(ball, fine.affine, (30, 30, 30), target)
    assert coarse.sum() * 64 == pytest.approx(ball.sum(), rel=0.05)
    assert not resampling.resample_mask(0 * ball, fine.affine, (30, 30, 30), target).any()


def _moved(mni_at_8mm, matrix, shift):
    """The template seen in another world: world' = matrix @ world + shift."""
    data, affine = mni_at_8mm
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = matrix, shift
    return Volume(data, world @ affine, 'moved.nii'), world


def test_cropping_moves_nothing(mni_at_8mm):
    scan = _scan(mni_at_8mm)
    head, brain = preprocess.crop_to_brain(scan, *preprocess.find_brain(scan))
    assert head.data.size < scan.data.size
    np.testing.assert_allclose(
        _centroid(brain, head.affine), _centroid(scan.data > 0, scan.affine), atol=0.5
    )


def test_registration_recovers_a_known_affine():
    maps = mni_template.load_template(4.0)
    grid = grids.ModelGrid((48, 56, 48), (4.0, 4.0, 4.0))
    seen = [resampling.sample(m, maps.affine, grid.positions()) for m in (maps.t1, maps.brain)]
    data = np.where(seen[1] >= 0.5, 1000 * seen[0], 0).astype(np.float32)
    c, s = np.cos(0.12), np.sin(0.12)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, c, -s], [0, s, c]]
    )
    scan, truth = _moved((data, grid.affine), turn @ np.diag([1.1, 0.93, 1.04]), (12, -25, 31))
    head, brain = preprocess.crop_to_brain(scan, *preprocess.find_brain(scan))
    found = registration.register_to_mni(head.data, brain, head.affine)
    corners = np.array([[x, y, z, 1.0] for x in (-60, 60) for y in (-95, 60) for z in (-50, 70)])
    error = np.linalg.norm((corners @ (found - truth).T)[:, :3], axis=1)
    assert error.max() < 2.5  # mm; a voxel is 4.
    again = registration.register_to_mni(head.data, brain, head.affine)
    np.testing.assert_array_equal(found, again)


def test_written_result_overlays_on_the_scan(tmp_path, mni_at_8mm):
    scan, _ = _moved(mni_at_8mm, np.diag([1.1, 0.95, 1.0]), (12.0, -25.0, 31.0))
    data, affine = mni_at_8mm
    mask = _ball(Volume(data, affine, ''), (-30, 10, 30), 14)
    result = preprocess.preprocess(scan, DEMO, Volume(mask, scan.affine, 'm.nii'))
    save_volume(tmp_path / 'lesion.nii.gz', result.lesion, result.affine)
    written = load_volume(tmp_path / 'lesion.nii.gz')
    np.testing.assert_allclose(
        _centroid(written.data, written.affine), _centroid(mask, scan.affine), atol=2.0
    )


def test_real_scan_is_aligned(shared_dir):
    path = shared_dir / 'data/healthy_t1w/sub-54/anat/sub-54_T1w.nii.gz'
    result = preprocess.preprocess(load_volume(path), DEMO)
    assert result.overlap > 0.9 and not result.warnings
    # An LAS file: the map from MNI to its world mirrors nothing and turns little.
    linear = result.affine[:3, :3] / 4.0
    assert np.linalg.det(linear) > 0
    assert (np.diag(linear) > 0.7).all()
    assert 0.35 < np.median(result.image[result.brain]) < 0.7


@pytest.mark.parametrize(
    'change, says',
    [
        ({'registration': 'rigid'}, 'choose one of affine, none'),
        (
            {'lesion': Volume(np.ones((3, 3, 3), np.float32), np.eye(4), 'm.nii')},
            'm.nii.*elsewhere',
        ),
        (
            {'scan': Volume(np.full((9, 9, 9), 3.0, np.float32), np.eye(4), 's.nii')},
            's.nii.*constant',
        ),
    ],
)
def test_user_errors(mni_at_8mm, change, says):
    arguments = {'scan': _scan(mni_at_8mm), 'grid': DEMO, 'registration': 'none', **change}
    with pytest.raises(UserError, match=says):
        preprocess.preprocess(**arguments)
