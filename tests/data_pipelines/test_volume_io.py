"""NIfTI in and out: orientation, geometry, and one line for every bad file."""

from __future__ import annotations

import gzip
import pickle

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import scan_images
from data_pipelines.volume_io import image_like, load_volume, save_like, save_volume
from fluidjax.base.errors import UserError

ROTATION = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
ORIENTATIONS = ['RAS', 'LAS', 'LPS', 'RSA', 'PIR', 'SAL']


def _affine(matrix=np.diag([2.0, 3.0, 1.5]), origin=(-10.0, 5.0, 7.0)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


def _oriented(data, affine, codes):
    """The same volume with its axes stored in another order."""
    image = nib.Nifti1Image(data, affine)
    start = nib.orientations.io_orientation(affine)
    end = nib.orientations.axcodes2ornt(codes)
    return image.as_reoriented(nib.orientations.ornt_transform(start, end))


@pytest.mark.parametrize('codes', ORIENTATIONS)
@pytest.mark.parametrize('matrix', [np.diag([2.0, 3.0, 1.5]), ROTATION * [2.0, 3.0, 1.5]])
def test_load_restores_ras_order(tmp_path, codes, matrix):
    data = np.zeros((5, 6, 7), np.float32)
    data[4, 1, 2] = 9.0  # On the right side, towards the back.
    image = _oriented(data, _affine(matrix), codes)
    nib.save(image, tmp_path / 'scan.nii.gz')
    volume = load_volume(tmp_path / 'scan.nii.gz')
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, _affine(matrix), atol=1e-5)
    assert volume.data.dtype == np.float32


@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
@pytest.mark.parametrize('dtype', [np.float32, np.uint8, bool])
def test_save_and_load_round_trip(tmp_path, ending, dtype):
    data = np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(dtype)
    path = tmp_path / f'out{ending}'
    save_volume(path, data, _affine(ROTATION))
    volume = load_volume(path)
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, _affine(ROTATION), atol=1e-5)
    assert nib.load(path).get_data_dtype() == (np.float32 if dtype == np.float32 else np.uint8)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # Nothing partial is left.


def test_save_sets_the_qform_only_without_shear(tmp_path):
    data = np.ones((3, 3, 3), np.float32)
    save_volume(tmp_path / 'a.nii', data, _affine(ROTATION))
    sheared = _affine(np.array([[1.0, 0.3, 0], [0, 1, 0], [0, 0, 1]]))
    save_volume(tmp_path / 'b.nii', data, sheared)
    straight, skewed = nib.load(tmp_path / 'a.nii').header, nib.load(tmp_path / 'b.nii').header
    assert straight['sform_code'] > 0 and straight['qform_code'] > 0
    np.testing.assert_allclose(straight.get_qform(), _affine(ROTATION), atol=1e-5)
    assert skewed['sform_code'] > 0 and skewed['qform_code'] == 0
    np.testing.assert_allclose(skewed.get_sform(), sheared, atol=1e-6)


def test_save_leaves_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / 'out.nii.gz'
    save_volume(path, np.ones((2, 2, 2)), np.eye(4))
    before = path.read_bytes()

    def fail(image, partial):
        partial.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(nib, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        save_volume(path, np.zeros((2, 2, 2)), np.eye(4))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['out.nii.gz']


def test_one_volume_of_a_series_is_squeezed(tmp_path, write_scan):
    path = write_scan(tmp_path / 'scan.nii', np.ones((3, 4, 5, 1), np.float32))
    assert load_volume(path).data.shape == (3, 4, 5)


def test_empty_mask_only_when_allowed(tmp_path, write_scan):
    path = write_scan(tmp_path / 'mask.nii', np.zeros((3, 3, 3), np.uint8))
    assert not load_volume(path, allow_empty=True).data.any()
    with pytest.raises(UserError, match='nothing but zeros'):
        load_volume(path)


def _with(value):
    data = np.ones((3, 3, 3), np.float32)
    data[1, 1, 1] = value
    return data


@pytest.mark.parametrize(
    'data, says',
    [
        (np.ones((3, 3, 3, 2), np.float32), 'single 3-D volume'),
        (_with(np.nan), 'NaN'),
        (_with(np.inf), 'NaN or infinite'),
    ],
)
def test_bad_contents_are_named(tmp_path, write_scan, data, says):
    path = write_scan(tmp_path / 'bad.nii.gz', data)
    _assert_one_line(path, says)


def test_singular_affine_is_named(tmp_path):
    image = nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4))
    image.header['srow_z'] = 0
    path = tmp_path / 'flat.nii'
    image.header['sform_code'] = 2
    header = image.header.copy()
    path.write_bytes(header.binaryblock + bytes(4) + np.ones(27, np.float32).tobytes())
    _assert_one_line(path, 'singular')


@pytest.mark.parametrize(
    'content, says',
    [
        (None, 'no such file'),
        (b'', 'empty file'),
        (b'this is a text file, not an image at all' * 20, 'not a readable NIfTI'),
        (gzip.compress(b'neither is this' * 50, mtime=0), 'not a readable NIfTI'),
    ],
)
def test_bad_files_are_named(tmp_path, content, says):
    path = tmp_path / 'bad.nii.gz'
    if content is not None:
        path.write_bytes(content)
    _assert_one_line(path, says)


@pytest.mark.parametrize('kept', [0.02, 0.5, 0.95])
@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
def test_truncated_files_are_named(tmp_path, write_scan, kept, ending):
    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    path = write_scan(tmp_path / f'cut{ending}', noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    _assert_one_line(path, 'truncated|not a readable')


@pytest.mark.parametrize('kind', [nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage])
def test_an_image_in_memory_is_read_as_from_its_file(tmp_path, kind):
    data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    image = kind(data[::-1].copy(), _affine(np.diag([-2.0, 3.0, 1.5])))
    path = tmp_path / ('scan.mgz' if kind is nib.MGHImage else 'scan.nii')
    image.to_filename(path)
    from_file = scan_images.read(path)
    in_memory = scan_images.read(kind(np.asarray(image.dataobj), image.affine))
    np.testing.assert_array_equal(in_memory.data, from_file.data)
    np.testing.assert_allclose(in_memory.affine, from_file.affine, atol=1e-5)
    written = image_like(in_memory.data, in_memory)
    np.testing.assert_array_equal(written.dataobj, image.dataobj)
    np.testing.assert_allclose(written.affine, image.affine)
    assert in_memory.path == 'the image'


@pytest.mark.parametrize(
    'data, says',
    [
        (np.ones((3, 3, 3, 2), np.float32), 'the image: has shape .*single 3-D volume'),
        (np.ones((3, 3, 3), np.complex64), 'the image: holds complex numbers'),
        (np.zeros((3, 3, 3), np.float32), 'the image: holds nothing but zeros'),
        (np.full((3, 3, 3), np.nan, np.float32), 'the image: holds NaN'),
    ],
)
def test_an_image_in_memory_is_checked(data, says):
    with pytest.raises(UserError, match=says):
        scan_images.read(nib.Nifti1Image(data, np.eye(4)))


def test_an_image_without_affine_is_named():
    with pytest.raises(UserError, match='the image: has no affine'):
        scan_images.read(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), None))


def test_a_volume_keeps_its_header_in_another_process_and_without_its_file(tmp_path, write_scan):
    path = write_scan(tmp_path / 'scan.nii', np.ones((3, 4, 5), np.float32), _affine())
    volume = pickle.loads(pickle.dumps(load_volume(path)))
    path.unlink()
    save_like(tmp_path / 'like.nii.gz', volume.data, volume)
    np.testing.assert_allclose(nib.load(tmp_path / 'like.nii.gz').affine, _affine(), atol=1e-6)


def _assert_one_line(path, says):
    with pytest.raises(UserError, match=says) as error:
        load_volume(path)
    message = str(error.value)
    assert message.startswith(str(path)) and '\n' not in message
