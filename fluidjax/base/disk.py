"""Whether a command can write its results, asked before the work, and what to say if it cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from fluidjax.base.errors import DiskError, UserError
from fluidjax.base.names import shown

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM)
# With these nothing else can be written either.
_OF_DISK = (*_FULL, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV)
_TRIED = 64 << 10  # bytes: more than file systems keep within an inode


def check_output(folder: Path, flag: str) -> None:
    """Write a small file to a folder and remove it; call it before any work is done.

    Args:
        folder: need not exist; if it does not, it does not afterwards either.
        flag: names it in messages, such as '--out'.

    Raises:
        DiskError: the disk is full or read-only, or the user may not write there.
        UserError: it, or a part of its path, is a file or no possible name.
    """
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TRIED))
            file.flush()
            os.fsync(file.fileno())  # disks on a network tell only now
    except OSError as error:
        line = f'{flag}: {shown(folder)}: {reason(error, folder)}'
        kind = DiskError if error.errno in _OF_DISK + _REFUSED else UserError
        raise kind(line) from error
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()


def is_of_disk(error: BaseException) -> bool:
    """Whether an error of writing says that nothing else can be written to this disk either."""
    return isinstance(error, DiskError) or (isinstance(error, OSError) and error.errno in _OF_DISK)


def reason(error: OSError, path: str | os.PathLike) -> str:
    """Why a path cannot be written, and what to do, as a sentence without the path."""
    place = _existing(Path(path))
    if error.errno == errno.ENOSPC:
        return (
            f'not enough space left on the disk ({_space(place)}, mounted at {_mount(place)}); '
            'free some, or write to a folder on another disk'
        )
    if error.errno == errno.EDQUOT:
        return (
            f'your quota on the disk is used up (mounted at {_mount(place)}); delete files, or '
            'write to a folder on another disk'
        )
    if error.errno == errno.EROFS:
        return f'the disk is read-only (mounted at {_mount(place)}); write to another folder'
    if error.errno in _OF_DISK:
        return (
            f'the disk (mounted at {_mount(place)}) does not work ({error.strerror}); write to a '
            'folder on another disk'
        )
    if error.errno in _REFUSED:
        return f'no permission to write in {shown(place)}; change it, or write to another folder'
    if error.errno == errno.ENAMETOOLONG:
        return 'a name of the path is longer than 255 bytes; choose a shorter one'
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f'{shown(place)} is a file; name a folder'
    return f'{error.strerror or error}; check the path, its permissions and the free space'


def line_of(error: OSError) -> str:
    """An error of the system as one line that names its file."""
    named = isinstance(error.filename, (str, bytes))
    path = shown(error.filename) if named else 'a file'
    if named and error.errno in (*_FULL, errno.EROFS):
        return f'{path}: {reason(error, os.fsdecode(error.filename))}'
    return f'{path}: {error.strerror or error}; check the path, its permissions and the free space'


def _existing(path: Path) -> Path:
    """The longest part of a path that exists."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _space(place: Path) -> str:
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return 'free space unknown'
    return f'{_size(usage.free)} free of {_size(usage.total)}'


def _size(count: int) -> str:
    for unit, scale in (('TB', 1e12), ('GB', 1e9)):
        if count >= scale:
            return f'{count / scale:.1f} {unit}'
    return f'{count / 1e6:.1f} MB'


def _mount(place: Path) -> str:
    with contextlib.suppress(OSError):
        place = place.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return shown(place)
