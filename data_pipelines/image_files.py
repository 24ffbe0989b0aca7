"""Opening image files that strangers made: NIfTI-1, NIfTI-2 (also as .hdr and .img) and MGH.

What a header claims is compared with what the file can hold before a voxel is read or a byte for
them is set aside, and whatever is wrong becomes one line.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.imageglobals import logger
from nibabel.spatialimages import HeaderDataError, SpatialImage

from fluidjax.base.errors import UserError

ENDINGS = ('.nii.gz', '.nii', '.mgz', '.mgh')
PAIR_ENDINGS = ('.hdr', '.img')
MAX_VOXELS = 500_000_000  # 2 GB once read; a head of 0.25 mm has 350 million
_PACKED_ENDINGS = ('.gz', '.mgz')
_DEFLATE_LIMIT = 1032  # no zlib stream grows by more than this when unpacked
_HEAD_BYTES = 544  # a NIfTI-2 header and its extension flag
_NIFTI = {
    348: (nib.Nifti1Header, nib.Nifti1Image, nib.Nifti1Pair, 344),
    540: (nib.Nifti2Header, nib.Nifti2Image, nib.Nifti2Pair, 4),
}
_MGH_TYPES = {0: np.dtype('u1'), 1: np.dtype('i4'), 3: np.dtype('f4'), 4: np.dtype('i2')}
_MGH_HEADER_BYTES = 284
_POINTERS = (b'version https://git-lfs', b'/annex/objects/')


class Claim(NamedTuple):
    """What a header says of its file: the shape and type of its voxels, the bytes before them, and
    the nibabel class that reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    kind: type[SpatialImage]


def open_image(path: str | os.PathLike[str]) -> SpatialImage:
    """The header of a file with one 3-D volume of real numbers; its voxels are not read.

    Args:
      path: .nii, .nii.gz, .mgz, .mgh, or either file of a NIfTI pair .hdr and .img.

    Raises:
      UserError: the file is missing, a folder, unreadable, empty, truncated, none of these formats,
        or its header claims anything but one volume that fits into the file and into memory.
    """
    path = Path(path)
    header, voxels = _header_and_voxels(path)
    size = {file: _file_size(file) for file in (header, voxels)}[voxels]
    start, packed = _first_bytes(header)
    claim = _claim(path, start, single=header == voxels)
    _check_name(path, packed)
    _check_claim(path, claim)
    _check_room(voxels, claim, size, packed)
    try:
        with quiet_nibabel():
            return claim.kind.from_filename(header)
    except EOFError as error:
        raise UserError(f'{path}: is truncated; copy it again') from error
    except Exception as error:  # nibabel lets through whatever gzip, zlib or struct raise.
        raise UserError(
            f'{path}: is not a readable NIfTI or MGH file ({_short(error)}); convert '
            'or export it again'
        ) from error


@contextlib.contextmanager
def quiet_nibabel() -> Iterator[None]:
    """nibabel prints what it mends in a header, once for each time that it looks at it."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def ending_of(path: str | os.PathLike[str]) -> str:
    """The file's ending as its name has it, '' where it is not one of an image file."""
    name = Path(path).name
    for ending in (*ENDINGS, *PAIR_ENDINGS):
        if name.lower().endswith(ending):
            return name[-len(ending) :]
    return ''


def _header_and_voxels(path: Path) -> tuple[Path, Path]:
    """The file of the header and that of the voxels: the same one but for a pair."""
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
    """Bytes of a regular file that may be read."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise UserError(f'{path}: is a folder; give the file in it')
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
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
    if found.st_size == 0:
        raise UserError(f'{path}: is an empty file (0 bytes); copy it again')
    return found.st_size


def _first_bytes(path: Path) -> tuple[bytes, bool]:
    """The unpacked beginning of a file, and whether it is packed by gzip."""
    with open(path, 'rb') as file:
        start = file.read(_HEAD_BYTES)
    if start[:2] != b'\x1f\x8b':
        return start, False
    try:
        with gzip.open(path) as file:
            return file.read(_HEAD_BYTES), True
    except EOFError as error:
        raise UserError(f'{path}: is truncated; copy it again') from error
    except (OSError, zlib.error) as error:
        raise UserError(f'{path}: is damaged, gzip cannot unpack it; copy it again') from error


def _claim(path: Path, start: bytes, single: bool) -> Claim:
    """What the first bytes of a header say; `single` where the voxels follow in the same file."""
    if ending_of(path).lower() in ('.mgz', '.mgh'):
        return _mgh_claim(path, start)
    for order in '<>':
        size = struct.unpack(order + 'i', start[:4].ljust(4, b'\0'))[0]
        if size in _NIFTI:
            return _nifti_claim(path, start, size, order, single)
    raise _not_an_image(path, start)


def _nifti_claim(path: Path, start: bytes, size: int, order: str, single: bool) -> Claim:
    header_class, image, pair, place = _NIFTI[size]
    if len(start) < size:
        raise UserError(f'{path}: is truncated within its header; copy it again')
    magic = start[place : place + 3]
    if magic not in ((b'n+1', b'n+2') if single else (b'ni1', b'ni2')):
        if magic in (b'ni1', b'ni2'):
            raise UserError(f'{path}: is the header of a pair; name it .hdr, beside its .img')
        raise UserError(
            f"{path}: has the magic {magic!r} where a NIfTI file has 'n+1'; is it "
            'Analyze 7.5, which cannot tell left from right? Convert it to NIfTI'
        )
    header = header_class(start[:size], order, check=False)
    sides = [int(n) for n in header['dim']]
    if not 1 <= sides[0] <= 7:
        raise UserError(
            f'{path}: its header says that it has {sides[0]} dimensions; export it again'
        )
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise UserError(
            f'{path}: has the data type {int(header["datatype"])}, which NIfTI does '
            'not know; export it again'
        ) from None
    offset = float(header['vox_offset'])
    if not 0 <= offset < 2**40:  # also where it is not a number
        raise UserError(f'{path}: its header puts the voxels at byte {offset:g}; export it again')
    return Claim(
        tuple(sides[1 : sides[0] + 1]),
        dtype,
        int(offset) or (size + 4) * single,
        image if single else pair,
    )


def _mgh_claim(path: Path, start: bytes) -> Claim:
    if len(start) < 28 or struct.unpack('>i', start[:4]) != (1,):
        raise _not_an_image(path, start)
    *sides, code = struct.unpack('>5i', start[4:24])
    if code not in _MGH_TYPES:
        raise UserError(
            f'{path}: has the data type {code}, which MGH does not know; export it again'
        )
    shape = tuple(sides) if sides[3] != 1 else tuple(sides[:3])
    return Claim(shape, _MGH_TYPES[code], _MGH_HEADER_BYTES, nib.MGHImage)


def _not_an_image(path: Path, start: bytes) -> UserError:
    """Why bytes that are no header are none."""
    if any(pointer in start for pointer in _POINTERS):
        return UserError(
            f'{path}: is a pointer of git-annex or Git LFS, not the image; fetch it '
            '(git annex get, git lfs pull)'
        )
    what = 'is a text file, not a readable NIfTI' if _is_text(start) else 'is not a readable NIfTI'
    return UserError(
        f'{path}: {what} or MGH file; give a T1w scan as {", ".join(ENDINGS)} '
        '(DICOM: convert it with dcm2niix)'
    )


def _is_text(start: bytes) -> bool:
    """Whether no byte is one that texts, in any encoding, do not have."""
    return all(byte >= 32 or byte in b'\t\n\v\f\r' for byte in start)


def _check_name(path: Path, packed: bool) -> None:
    """nibabel goes by the name when it unpacks."""
    named = ending_of(path).lower()
    if packed == named.endswith(_PACKED_ENDINGS):
        return
    right = {'.nii': '.nii.gz', '.nii.gz': '.nii', '.mgh': '.mgz', '.mgz': '.mgh'}.get(named)
    if right is None:
        raise UserError(f'{path}: is compressed, its name says it is not; unpack it (gunzip)')
    raise UserError(
        f'{path}: is {"" if packed else "not "}compressed, its name says otherwise; '
        f'rename it to {right}'
    )


def _check_claim(path: Path, claim: Claim) -> None:
    """One volume of real numbers, of a size that exists."""
    shape = claim.shape
    if min(shape) < 1:
        raise UserError(
            f'{path}: its header gives the shape {shape}, which no scan has; export it again'
        )
    if len(shape) == 4 and shape[3] > 1:
        raise UserError(
            f'{path}: has shape {shape}, {shape[3]} volumes in one file; give a single 3-D volume'
        )
    if len(shape) not in (3, 4) or 1 in shape[:3]:
        raise UserError(f'{path}: has shape {shape}; give a single 3-D volume')
    if math.prod(shape) > MAX_VOXELS:
        raise UserError(
            f'{path}: its header gives the shape {shape}, more than the '
            f'{MAX_VOXELS / 1e6:.0f} million voxels that are read; resample it'
        )
    if claim.dtype.fields:
        raise UserError(f'{path}: holds colours (RGB), not intensities; give the T1w scan itself')
    if claim.dtype.kind == 'c':
        raise UserError(f'{path}: holds complex numbers; give the magnitude image')


def _check_room(path: Path, claim: Claim, size: int, packed: bool) -> None:
    """The voxels that are claimed fit into the file."""
    wanted = claim.offset + math.prod(claim.shape) * claim.dtype.itemsize
    if wanted > size * (_DEFLATE_LIMIT if packed else 1):
        raise UserError(
            f'{path}: is truncated: {size} bytes cannot hold the {wanted} that its '
            'header speaks of; copy it again'
        )


def _short(error: Exception) -> str:
    return ' '.join(str(error).split())[:120] or type(error).__name__
