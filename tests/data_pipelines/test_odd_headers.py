"""Headers that other programs read, read as they read them, and warnings where one must guess."""

from __future__ import annotations

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
import synthetic_heads as heads

from data_pipelines import quality
from data_pipelines.volume_io import Volume, load_volume, save_like
from fluidjax.base.errors import UserError

AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2, 0, -4], [0, 0, 2.5, 5], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(1, 100, (6, 7, 8)).astype(np.int16)


def written(path, **fields):
    """A NIfTI file whose header has these fields, whatever they mean."""
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    block = image.to_bytes()
    header = nib.Nifti1Header(block[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + block[348:])
    return path


@pytest.mark.parametrize('length', [1 + 2e-6, 1.001, 3.0])
def test_a_quaternion_that_is_too_long_is_made_a_unit_one(tmp_path, length):
    """A half turn about z, as its quaternion says; written again, its header can be read."""
    path = written(tmp_path / 'q.nii', quatern_b=0, quatern_c=0, quatern_d=length, sform_code=0)
    volume = load_volume(path)
    turned = np.diag([-2.0, -2, -2.5, 1])  # left-handed, as the header says
    np.testing.assert_allclose(volume.original.affine[:3, :3], turned[:3, :3], atol=1e-5)
    save_like(tmp_path / 'back.nii', volume.data, volume)
    np.testing.assert_allclose(
        nib.load(tmp_path / 'back.nii').affine, volume.original.affine, atol=1e-5
    )


@pytest.mark.parametrize('sides', [[5, 6, 7, 8, 1, 1, 1, 1], [7, 6, 7, 8, 1, 1, 1, 1]])
def test_dimensions_of_one_are_dropped(tmp_path, sides):
    assert load_volume(written(tmp_path / 'a.nii', dim=sides)).data.shape == (6, 7, 8)


@pytest.mark.parametrize('name', ['a.Nii', 'a.NII', 'a.nIi.gZ', 'a.Nii.gz', 'a.NII.GZ'])
def test_endings_in_any_case(tmp_path, name):
    plain = written(tmp_path / 'plain.nii').read_bytes()
    packed = name.lower().endswith('.gz')
    (tmp_path / name).write_bytes(gzip.compress(plain) if packed else plain)
    expected = load_volume(tmp_path / 'plain.nii')
    volume = load_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_array_equal(volume.affine, expected.affine)


def test_a_pair_with_an_ending_in_mixed_case(tmp_path):
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / 'a.img')
    expected = load_volume(tmp_path / 'a.hdr').data
    shutil.move(tmp_path / 'a.img', tmp_path / 'b.IMG')
    shutil.move(tmp_path / 'a.hdr', tmp_path / 'b.HDR')
    np.testing.assert_array_equal(load_volume(tmp_path / 'b.IMG').data, expected)


def test_units_are_honoured_where_they_can_be(tmp_path):
    path = tmp_path / 'a.nii'
    rows = {f'srow_{x}': 1e-3 * AFFINE[i] for i, x in enumerate('xyz')}
    metres = load_volume(written(path, xyzt_units=1, **rows))
    rows = {f'srow_{x}': 1e3 * AFFINE[i] for i, x in enumerate('xyz')}
    microns = load_volume(written(path, xyzt_units=3, **rows))
    for volume in (metres, microns):
        np.testing.assert_allclose(volume.original.affine, AFFINE, rtol=1e-6)
        assert volume.warnings == ()
    save_like(path, microns.data, microns)
    back = nib.load(path)
    np.testing.assert_allclose(back.affine, AFFINE, rtol=1e-6)
    assert back.header.get_xyzt_units()[0] == 'mm'
    wrong = load_volume(written(path, xyzt_units=1))  # 2 m are no voxel
    np.testing.assert_allclose(wrong.original.affine, AFFINE, rtol=1e-6)
    assert 'lengths are in meters, which cannot be' in wrong.warnings[0]
    with pytest.raises(UserError, match='voxels of 0.002 x .*is it in metres'):
        load_volume(written(path, **{f'srow_{x}': 1e-3 * AFFINE[i] for i, x in enumerate('xyz')}))


def test_voxels_of_no_size_are_told(tmp_path):
    sizes = [1, 0, 2, 0, 1, 1, 1, 1]
    volume = load_volume(written(tmp_path / 'a.nii', pixdim=sizes, sform_code=0))
    assert '0 mm along x, z, which are read as 1 mm' in volume.warnings[0]
    assert load_volume(written(tmp_path / 'b.nii', pixdim=sizes)).warnings == ()  # sform is used


def test_a_label_map_or_a_mask_is_no_scan():
    data, brain = heads.brain_and_mask()
    labels = np.where(brain, 1 + data // 250, 0)
    for values, says in ((brain, 'the same value in all of its brain'), (labels, 'label map')):
        with pytest.raises(UserError, match=f'a.nii: .*{says}'):
            quality.refuse_label_map(
                Volume(values.astype(np.float32), heads.GRID.affine, 'a.nii'), brain
            )
    coarse = np.where(brain, np.rint(data / 20), 0)  # 50 grey levels are a scan
    quality.refuse_label_map(Volume(coarse.astype(np.float32), heads.GRID.affine, 'a.nii'), brain)


@pytest.mark.parametrize(
    'volume, says',
    [(71, 'less than an adult'), (206, 'less than'), (1200, ''), (2500, 'more than')],
)
def test_the_volume_of_a_brain(volume, says):
    found = quality.head_warnings(False, 'none', volume)
    assert (says in found[0] and f'{volume} ml' in found[0]) if says else found == []
