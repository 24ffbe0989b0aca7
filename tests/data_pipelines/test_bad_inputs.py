"""What strangers' files hold: everything that can be read is, everything else is one clear line."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from data_pipelines.volume_io import load_volume, save_like, strip_ending
from fluidjax.base.errors import UserError

SHAPE = (6, 7, 8)
AFFINE = np.array([[-2.0, 0, 0, 9], [0, 0, 3.0, -4], [0, -1.5, 0, 5], [0, 0, 0, 1]])  # LIA


def voxels(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape)


def header_of(shape=SHAPE, dtype=np.float32, **fields) -> bytes:
    """The first 352 bytes of a NIfTI-1 file."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(AFFINE, 1)
    header['vox_offset'], header['magic'] = 352, b'n+1'
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4)


def refused(path, says: str) -> None:
    """`load_volume` raises one line that begins with the path, and sets no memory aside."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=says) as error:
            load_volume(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert message.startswith(str(path)) and '\n' not in message and ';' in message
    assert len(message) < len(str(path)) + 230


CONTENTS = {
    'zero bytes': (b'', 'empty file'),
    'text': (b'a note to myself, with nothing in it\n' * 30, 'is a text file'),
    'umlauts': ('kein Bild, bloß Wörter\n'.encode() * 30, 'is a text file'),
    'annex': (b'/annex/objects/MD5E-s7834587--0123.nii.gz\n', 'git-annex'),
    'noise': (np.random.default_rng(1).bytes(2000), 'not a readable NIfTI'),
    'magic': (header_of(magic=b'xyz') + bytes(1344), "magic b'xyz'"),
    'pair': (header_of(magic=b'ni1') + bytes(1344), 'header of a pair'),
    'packed': (gzip.compress(header_of() + bytes(1344), mtime=0), 'rename it to .nii.gz'),
    'short header': (header_of()[:300], 'truncated within its header'),
    'zero dimension': (header_of(dim=[3, 6, 0, 8, 1, 1, 1, 1]) + bytes(1344), r'shape \(6, 0, 8\)'),
    'negative': (header_of(dim=[3, 6, -7, 8, 1, 1, 1, 1]) + bytes(1344), r'shape \(6, -7, 8\)'),
    'no dimension': (header_of(dim=[0, 6, 7, 8, 1, 1, 1, 1]) + bytes(1344), '0 dimensions'),
    'huge': (header_of(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]) + bytes(1344), 'million voxels'),
    '100 GB': (header_of((4000, 3000, 2100)) + bytes(1344), 'million voxels'),
    'more than it holds': (header_of((400, 400, 400)) + bytes(1344), 'truncated: 1696 bytes'),
    'cut': (header_of() + bytes(600), 'truncated: 952 bytes'),
    '5-D': (header_of((6, 7, 8, 1, 3)) + bytes(9000), r'\(6, 7, 8, 1, 3\); give a single 3-D'),
    'series': (header_of((6, 7, 8, 9)) + bytes(99999), r'\(6, 7, 8, 9\), 9 volumes'),
    'slice': (header_of((6, 7, 1)) + bytes(9999), 'single 3-D volume'),
    'plane': (header_of((60, 70)) + bytes(99999), 'single 3-D volume'),
    'rgb': (header_of(datatype=128, bitpix=24) + bytes(9999), 'colours'),
    'rgba': (header_of(datatype=2304, bitpix=32) + bytes(9999), 'colours'),
    'complex64': (header_of(dtype=np.complex64) + bytes(9999), 'complex numbers'),
    'complex128': (header_of(dtype=np.complex128) + bytes(9999), 'complex numbers'),
    'unknown type': (header_of(datatype=77) + bytes(9999), 'data type 77'),
    'offset': (header_of(vox_offset=np.nan) + bytes(9999), 'byte nan'),
    'far offset': (header_of(vox_offset=1e9) + bytes(9999), 'truncated'),
    'zeros': (header_of() + bytes(1344), 'nothing but zeros'),
    'flat affine': (header_of(srow_z=[0, 0, 0, 0]) + b'1' * 1344, 'affine is singular'),
    'metres': (header_of(srow_x=[1e-3, 0, 0, 0]) + b'1' * 1344, 'voxels of 0.001 x .* metres'),
    'huge voxels': (header_of(srow_z=[0, 1e9, 0, 0]) + b'1' * 1344, 'voxels of .* which no scan'),
    'leaning axes': (
        header_of(srow_x=[2, 2, 0, 0], srow_y=[0, 1e-5, 2, 0], srow_z=[1, 1, 0, 0]) + b'1' * 1344,
        'affine is singular',
    ),
    'affine of NaN': (header_of(srow_z=[0, np.nan, 0, 0]) + b'1' * 1344, 'affine is singular'),
}


@pytest.mark.parametrize('case', CONTENTS)
def test_a_bad_file_is_one_line(tmp_path, case):
    content, says = CONTENTS[case]
    path = tmp_path / 'scan.nii'
    path.write_bytes(content)
    refused(path, says)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(tmp_path, value):
    data = voxels().astype(np.float32)
    data[1, 2, 3] = value
    path = tmp_path / 'scan.nii.gz'
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    refused(path, 'NaN or infinite')


@pytest.mark.parametrize('name', ['scan.nii.gz', 'scan.mgz'])
@pytest.mark.parametrize('kept', [0.001, 0.01, 0.5, 0.95])
def test_a_truncated_packed_file(tmp_path, name, kept):
    """Stored on axes that are not RAS, so that reading and reordering are both met."""
    path = tmp_path / name
    kind = nib.MGHImage if name.endswith('mgz') else nib.Nifti1Image
    nib.save(kind(voxels((30, 30, 30)).astype(np.float32), AFFINE), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size) + 2])
    refused(path, 'truncated|damaged')


def test_a_packed_header_that_claims_more_than_gzip_can_hold(tmp_path):
    path = tmp_path / 'scan.nii.gz'
    path.write_bytes(gzip.compress(header_of((700, 700, 700)) + bytes(1344)))
    refused(path, 'truncated: .* cannot hold')


def test_plain_bytes_under_a_packed_name(tmp_path):
    path = tmp_path / 'scan.nii.gz'
    path.write_bytes(header_of() + bytes(1344))
    refused(path, 'not compressed.*rename it to .nii')


@pytest.mark.parametrize(
    'sides,code,says',
    [
        ((6, 7, 8, 2), 3, '2 volumes'),
        ((6, 0, 8, 1), 3, 'shape'),
        ((6, 7, 8, 1), 9, 'data type 9'),
        ((6, 7, 8, 1), 3, 'truncated'),
        ((6, 7, -8, 1), 3, 'shape'),
        ((100_000, 100_000, 3, 1), 3, 'million voxels'),
    ],
)
def test_a_bad_mgh_file_is_one_line(tmp_path, sides, code, says):
    path = tmp_path / 'scan.mgh'
    path.write_bytes(struct.pack('>7i', 1, *sides, code, 0) + bytes(300))
    refused(path, says)
    path.write_bytes(struct.pack('>7i', 2, *sides, code, 0) + bytes(300))
    refused(path, 'not a readable NIfTI or MGH')


def test_what_is_no_file(tmp_path):
    refused(tmp_path / 'none.nii', 'no such file')
    (tmp_path / 'folder.nii').mkdir()
    refused(tmp_path / 'folder.nii', 'is a folder')
    (tmp_path / 'loop.nii').symlink_to('loop.nii')
    refused(tmp_path / 'loop.nii', 'leads back to itself')
    (tmp_path / 'gone.nii').symlink_to('nowhere.nii')
    refused(tmp_path / 'gone.nii', 'link to a file that is not there')
    os.mkfifo(tmp_path / 'pipe.nii')
    refused(tmp_path / 'pipe.nii', 'not a regular file')
    (tmp_path / 'scan.dcm').write_bytes(bytes(200))
    refused(tmp_path / 'scan.dcm', 'dcm2niix')
    refused(tmp_path / ('x' * 300 + '.nii'), 'cannot be read')


def test_no_permission(tmp_path, monkeypatch):
    path = tmp_path / 'scan.nii'
    path.write_bytes(header_of() + b'1' * 1344)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read it all the same

        def denied(*_):
            raise PermissionError(13, 'Permission denied')

        monkeypatch.setattr('builtins.open', denied)
    with pytest.raises(UserError, match='may not be read'):
        load_volume(path)


def test_analyze_is_told_from_a_pair(tmp_path):
    nib.save(nib.AnalyzeImage(voxels().astype(np.int16), AFFINE), tmp_path / 'old.img')
    refused(tmp_path / 'old.img', 'Analyze 7.5')
    nib.save(nib.Nifti1Pair(voxels().astype(np.int16), AFFINE), tmp_path / 'new.img')
    for name in ('new.img', 'new.hdr'):
        assert load_volume(tmp_path / name).data.shape == (6, 8, 7)
    (tmp_path / 'new.img').write_bytes(bytes(10))
    refused(tmp_path / 'new.img', 'truncated: 10 bytes')
    (tmp_path / 'new.img').unlink()
    with pytest.raises(UserError, match='new.img: no such file'):
        load_volume(tmp_path / 'new.hdr')


@pytest.mark.parametrize(
    'dtype',
    [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64, np.float32, np.float64],
)
@pytest.mark.parametrize('kind', [nib.Nifti1Image, nib.Nifti2Image])
def test_every_real_type_is_read(tmp_path, dtype, kind):
    data = voxels().astype(dtype)
    nib.save(kind(data, AFFINE, dtype=dtype), tmp_path / 'scan.nii.gz')
    expected = nib.as_closest_canonical(nib.Nifti1Image(data.astype(np.float32), AFFINE))
    volume = load_volume(tmp_path / 'scan.nii.gz')
    np.testing.assert_array_equal(volume.data, expected.get_fdata())
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)


def test_scaled_integers_and_big_endian(tmp_path):
    header = nib.Nifti1Header(endianness='>')
    header.set_data_dtype('>i2')
    image = nib.Nifti1Image(voxels().astype(np.int16), np.eye(4), header)
    image.header.set_slope_inter(0.5, -3.0)
    image.to_filename(tmp_path / 'scan.nii')
    np.testing.assert_array_equal(load_volume(tmp_path / 'scan.nii').data, 0.5 * voxels() - 3)


@pytest.mark.parametrize(
    'name', ['my scan (1).nii.gz', 'Gehirn äöü 脳.nii', "it's; a & b.mgz", 'SCAN.NII.GZ']
)
def test_any_name(tmp_path, name):
    kind = nib.MGHImage if name.endswith('mgz') else nib.Nifti1Image
    kind(voxels().astype(np.float32), AFFINE).to_filename(tmp_path / name)
    assert load_volume(tmp_path / name).data.shape == (6, 8, 7)
    assert strip_ending(tmp_path / name) == name.partition('.')[0]


@pytest.mark.parametrize('name', ['scan.mgz', 'scan.mgh', 'scan.nii', 'scan.nii.gz', 'scan.hdr'])
@pytest.mark.parametrize('shape', [SHAPE, (*SHAPE, 1)])
def test_what_was_read_is_written_back_on_the_scans_own_voxels(tmp_path, name, shape):
    kind = {'mgz': nib.MGHImage, 'mgh': nib.MGHImage, 'hdr': nib.Nifti1Pair}.get(
        name.rpartition('.')[2], nib.Nifti1Image
    )
    data = voxels() if kind is nib.MGHImage else voxels(shape)  # nibabel writes no MGH of (…, 1)
    kind(data.astype(np.float32), AFFINE).to_filename(tmp_path / name)
    volume = load_volume(tmp_path / name)
    save_like(tmp_path / 'back.nii.gz', volume.data, volume)
    back = nib.load(tmp_path / 'back.nii.gz')
    assert back.shape == SHAPE
    np.testing.assert_allclose(back.affine, nib.load(tmp_path / name).affine, atol=1e-5)
    np.testing.assert_array_equal(back.get_fdata(), voxels())
