"""Opening image files from any source: NIfTI-1, NIfTI-2 (also as .hdr and .img) and MGH.

The header is checked, and compared with the size of the file, before a voxel is read or memory is
allocated for it. Every error is one line.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import math
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.imageglobals import logger
from nibabel.spatialimages import HeaderDataError, SpatialImage

from fluidjax.base.errors import UserError

ENDINGS = ('.nii.gz', '.nii', '.mgz', '.mgh')
PAIR_ENDINGS = ('.hdr', '.img')
WARNINGS = 'warnings'  # the entry of `extra` of an opened image, a tuple of sentences
MAX_VOXELS = 500_000_000  # 2 GB once read; a head with voxels of 0.25 mm has 350 million
_PACKED_ENDINGS = ('.gz', '.mgz')
_DEFLATE_LIMIT = 1032  # no zlib stream grows by more than this factor when unpacked
_HEADER_BYTES = 544  # the longest header, NIfTI-2, with its extension flag
_POINTERS = (b'version https://git-lfs', b'/annex/objects/')

Header = nib.Nifti1Header | nib.MGHImage.header_class


def open_image(path: str | os.PathLike[str]) -> SpatialImage:
    """Open a file that contains one 3-D volume of real numbers; its voxels are not read yet.

    Args:
      path: .nii, .nii.gz, .mgz, .mgh, or either file of a NIfTI pair .hdr and .img.

    Raises:
      UserError: the file is missing, a folder, unreadable, empty, truncated, in another format,
        or its header describes anything but one volume that fits into the file and into memory.
    """
    path = Path(path)
    header_file, voxel_file = _header_and_voxels(path)
    sizes = {file: _file_size(file) for file in (header_file, voxel_file)}
    start, packed = _first_bytes(header_file)
    if ending_of(path).lower() in ('.mgz', '.mgh'):
        header = _mgh_header(path, start)
    else:
        header = _nifti_header(path, start, single=header_file == voxel_file)
    _check_name(path, packed)
    shape = tuple(map(int, header.get_data_shape()))
    dtype = _dtype_of(path, header)
    check_one_volume(path, shape, dtype)
    needed = header.get_data_offset() + math.prod(shape) * dtype.itemsize
    _check_size(voxel_file, needed, sizes[voxel_file], packed)
    try:
        with quiet_nibabel():
            image = _opened(path, header_file, voxel_file, packed)
    except EOFError as error:
        raise UserError(f'{path}: is truncated; copy it again') from error
    except Exception as error:  # nibabel does not catch the errors of gzip, zlib and struct
        text = ' '.join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f'{path}: is not a readable NIfTI or MGH file ({text}); convert or export it again'
        ) from error
    image.extra[WARNINGS] = _header_warnings(header)
    return image


def _opened(path: Path, header_file: Path, voxel_file: Path, packed: bool) -> SpatialImage:
    """The image, by nibabel, which knows an ending only in lower case or in capitals."""
    kind = nib.MGHImage
    if ending_of(path).lower() not in ('.mgz', '.mgh'):
        version_2 = nib.Nifti2Header.may_contain_header(_first_bytes(header_file)[0])
        single = header_file == voxel_file
        kind = _KINDS[version_2, single]
    if ending_of(path) in (ending_of(path).lower(), ending_of(path).upper()):
        return kind.from_filename(header_file)
    opener = gzip.open if packed else open
    holders = {'image': nib.FileHolder(os.fspath(voxel_file), opener(voxel_file, 'rb'))}
    if header_file != voxel_file:
        holders['header'] = nib.FileHolder(os.fspath(header_file), opener(header_file, 'rb'))
    return kind.from_file_map(holders)


def _header_warnings(header: Header) -> tuple[str, ...]:
    """What nibabel replaces in a header without a word."""
    if isinstance(header, nib.MGHImage.header_class) or header['sform_code'] > 0:
        return ()
    zero = [axis for axis, size in zip('xyz', header['pixdim'][1:4]) if not size]
    if not zero:
        return ()
    return (
        f'its header gives voxels of 0 mm along {", ".join(zero)}, which are read as 1 mm: volumes '
        'in ml may be wrong; mend pixdim of its header',
    )


class _UnitQuaternion:
    """A header whose quaternion is at most of unit length, as FSL and ITK read it."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        names = ('quatern_b', 'quatern_c', 'quatern_d')
        length = math.sqrt(sum(float(self[name]) ** 2 for name in names))
        if 1 < length < math.inf:
            for name in names:
                self[name] = float(self[name]) / length


class _Nifti1Header(_UnitQuaternion, nib.Nifti1Header):
    pass


class _Nifti1PairHeader(_UnitQuaternion, nib.nifti1.Nifti1PairHeader):
    pass


class _Nifti2Header(_UnitQuaternion, nib.Nifti2Header):
    pass


class _Nifti2PairHeader(_UnitQuaternion, nib.nifti2.Nifti2PairHeader):
    pass


def plain_header(header: Header) -> Header:
    """A header of nibabel's own type, which is written as it is."""
    if not isinstance(header, _UnitQuaternion):
        return header
    kind = type(header).__bases__[-1]
    return kind(header.binaryblock, header.endianness, False, header.extensions)


def _kind(image: type, header: type) -> type:
    return type(image.__name__, (image,), {'header_class': header})


_KINDS = {  # (version 2, one file): class of image
    (False, True): _kind(nib.Nifti1Image, _Nifti1Header),
    (False, False): _kind(nib.Nifti1Pair, _Nifti1PairHeader),
    (True, True): _kind(nib.Nifti2Image, _Nifti2Header),
    (True, False): _kind(nib.Nifti2Pair, _Nifti2PairHeader),
}


@contextlib.contextmanager
def quiet_nibabel() -> Iterator[None]:
    """Silence nibabel, which prints what it corrects in a header each time it looks at it."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def ending_of(path: str | os.PathLike[str]) -> str:
    """The ending of a file's name, as it is spelled; '' if it is not one of an image file."""
    name = Path(path).name
    for ending in (*ENDINGS, *PAIR_ENDINGS):
        if name.lower().endswith(ending):
            return name[-len(ending) :]
    return ''


def check_one_volume(name: str | Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Check that an image is one 3-D volume of real numbers, of a size that can be read.

    Args:
      name: of the image, for messages.
      shape, dtype: of its voxels.
    """
    if min(shape) < 1:
        raise UserError(
            f'{name}: its header gives the shape {shape}, which no scan has; export it again'
        )
    if len(shape) == 4 and shape[3] > 1:
        raise UserError(
            f'{name}: has shape {shape}, {shape[3]} volumes in one file; give a single 3-D volume'
        )
    if len(shape) < 3 or 1 in shape[:3] or any(side > 1 for side in shape[3:]):
        raise UserError(f'{name}: has shape {shape}; give a single 3-D volume')
    if math.prod(shape) > MAX_VOXELS:
        raise UserError(
            f'{name}: its header gives the shape {shape}, more than the '
            f'{MAX_VOXELS / 1e6:.0f} million voxels that are read; resample it'
        )
    if dtype.fields:
        raise UserError(f'{name}: holds colours (RGB), not intensities; give the T1w scan itself')
    if dtype.kind == 'c':
        raise UserError(f'{name}: holds complex numbers; give the magnitude image')


def parts_of(path: Path) -> tuple[Path, ...]:
    """The files of an image, whose content is all that it holds: two for a pair."""
    if ending_of(path).lower() not in PAIR_ENDINGS:
        return (path,)
    return tuple(file for file in _header_and_voxels(path) if file.exists())


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of an image; of a pair that of the header, then that of the voxels."""
    sums = []
    for part in parts_of(Path(path)):
        with open(part, 'rb') as file:
            sums.append(hashlib.file_digest(file, 'sha256').hexdigest())
    return ' '.join(sums)


def _header_and_voxels(path: Path) -> tuple[Path, Path]:
    """The files of the header and of the voxels, which differ only for a pair."""
    ending = ending_of(path)
    if not ending and path.is_file():
        raise UserError(
            f'{path}: is no NIfTI or MGH file by its name; give one that ends in '
            f'{", ".join(ENDINGS)} (DICOM: convert it with dcm2niix)'
        )
    if ending.lower() not in PAIR_ENDINGS:
        return path, path
    upper = ending.isupper()
    return tuple(path.with_suffix(e.upper() if upper else e) for e in PAIR_ENDINGS)


def _file_size(path: Path) -> int:
    """The number of bytes of a regular file that may be read."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f'{path}: is a folder; give the file in it')
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UserError(f'{path}: is not a regular file; give a NIfTI or MGH file')
        with open(path, 'rb'):
            pass
    except FileNotFoundError:
        what = 'is a link to a file that is not there' if path.is_symlink() else 'no such file'
        raise UserError(f'{path}: {what}; check the path') from None
    except PermissionError:
        raise UserError(
            f'{path}: may not be read (no permission); ask its owner, or chmod +r'
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(
                f'{path}: is a symbolic link that leads back to itself; link it to the scan again'
            ) from None
        raise UserError(f'{path}: cannot be read ({error.strerror}); check the path') from None
    if status.st_size == 0:
        raise UserError(f'{path}: is an empty file (0 bytes); copy it again')
    return status.st_size


def _first_bytes(path: Path) -> tuple[bytes, bool]:
    """The unpacked first bytes of a file, and whether it is packed by gzip."""
    with open(path, 'rb') as file:
        start = file.read(_HEADER_BYTES)
    if start[:2] != b'\x1f\x8b':
        return start, False
    try:
        with gzip.open(path) as file:
            return file.read(_HEADER_BYTES), True
    except EOFError as error:
        raise UserError(f'{path}: is truncated; copy it again') from error
    except (OSError, zlib.error) as error:
        raise UserError(f'{path}: is damaged, gzip cannot unpack it; copy it again') from error


def _mgh_header(path: Path, start: bytes) -> Header:
    header = nib.MGHImage.header_class(start.ljust(_HEADER_BYTES, b'\0'), check=False)
    if header['version'] != 1:
        raise _not_an_image(path, start)
    return header


def _nifti_header(path: Path, start: bytes, single: bool) -> Header:
    """The header of a NIfTI file; `single` if the voxels follow in the same file."""
    padded = start.ljust(_HEADER_BYTES, b'\0')
    if nib.AnalyzeHeader.may_contain_header(padded):  # NIfTI-1 but for the magic
        kind = nib.Nifti1Header
    elif nib.Nifti2Header.may_contain_header(padded):
        kind = nib.Nifti2Header
    else:
        raise _not_an_image(path, start)
    if len(start) < kind.sizeof_hdr:
        raise UserError(f'{path}: is truncated within its header; copy it again')
    header = kind(start[: kind.sizeof_hdr], check=False)
    magic = header['magic'].item()[:3]
    if magic not in ((b'n+1', b'n+2') if single else (b'ni1', b'ni2')):
        if magic in (b'ni1', b'ni2'):
            raise UserError(f'{path}: is the header of a pair; name it .hdr, beside its .img')
        raise UserError(
            f"{path}: has the magic {magic!r} where a NIfTI file has 'n+1'; is it "
            'Analyze 7.5, which cannot tell left from right? Convert it to NIfTI'
        )
    if not 1 <= header['dim'][0] <= 7:
        raise UserError(f'{path}: its header gives {header["dim"][0]} dimensions; export it again')
    offset = float(header['vox_offset'])
    if not 0 <= offset < 2**40:  # also false for NaN
        raise UserError(f'{path}: its header puts the voxels at byte {offset:g}; export it again')
    return header


def _dtype_of(path: Path, header: Header) -> np.dtype:
    try:
        return header.get_data_dtype()
    except (HeaderDataError, KeyError):
        is_mgh = isinstance(header, nib.MGHImage.header_class)
        code, kind = (header['type'], 'MGH') if is_mgh else (header['datatype'], 'NIfTI')
        raise UserError(
            f'{path}: has the data type {code}, which {kind} does not know; export it again'
        ) from None


def _not_an_image(path: Path, start: bytes) -> UserError:
    """The error for a file that begins with something other than a header."""
    if any(pointer in start for pointer in _POINTERS):
        return UserError(
            f'{path}: is a pointer of git-annex or Git LFS, not the image; fetch it '
            '(git annex get, git lfs pull)'
        )
    is_text = all(byte >= 32 or byte in b'\t\n\v\f\r' for byte in start)
    what = 'is a text file, not a readable NIfTI' if is_text else 'is not a readable NIfTI'
    return UserError(
        f'{path}: {what} or MGH file; give a T1w scan as {", ".join(ENDINGS)} '
        '(DICOM: convert it with dcm2niix)'
    )


def _check_name(path: Path, packed: bool) -> None:
    """Check the ending, by which nibabel decides whether to unpack a file."""
    ending = ending_of(path).lower()
    if packed == ending.endswith(_PACKED_ENDINGS):
        return
    right = {'.nii': '.nii.gz', '.nii.gz': '.nii', '.mgh': '.mgz', '.mgz': '.mgh'}.get(ending)
    if right is None:
        raise UserError(f'{path}: is compressed, its name says it is not; unpack it (gunzip)')
    raise UserError(
        f'{path}: is {"" if packed else "not "}compressed, its name says otherwise; '
        f'rename it to {right}'
    )


def _check_size(path: Path, needed: int, size: int, packed: bool) -> None:
    """Check that a file of `size` bytes can hold the bytes that its header describes."""
    if needed > size * (_DEFLATE_LIMIT if packed else 1):
        raise UserError(
            f'{path}: is truncated: {size} bytes cannot hold the {needed} that its '
            'header describes; copy it again'
        )
