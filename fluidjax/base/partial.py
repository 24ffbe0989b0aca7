"""Files and folders that are written under a hidden name, and renamed when they are complete.

The hidden name, `.NAME.TOKEN.partial`, has a random token: process numbers repeat in containers.
Its writer locks it. So what a killed process left can be told from what another one is writing, and
the first writer in the same folder removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from fluidjax.base.names import short_name

_TOKEN = 'x[0-9a-f]{12}'
# Versions up to 0.2 had the number of the process in place of the token, and no lock.
_PARTIAL = re.compile(
    rf'\..+\.(?:{_TOKEN}|(?P<former>\d+))\.partial(?:\.[A-Za-z0-9.]+)?', re.DOTALL
)
_ENDING = re.compile(r'(?:\.nii)?\.[A-Za-z0-9]{1,12}$')
_ROOM = 200  # bytes of NAME; the rest of 255 is for the token and the ending
_LOCK, _CONTENT = 'lock', 'content'
_cleaned: set[str] = set()  # folders in which this process has removed what others left


@contextlib.contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[Path]:
    """A hidden file beside `path`, with its ending, that replaces it when the block ends well.

    Folders are created as needed. The block writes to the file, which exists and is empty.

    Raises:
        OSError: of the block or the renaming; its `filename` is `path` if it named no other file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clean(path.parent)
    with _named(path) as names:
        partial, lock = _new_file(path)
        names.append(os.fspath(partial))
        try:
            yield partial
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            os.close(lock)


@contextlib.contextmanager
def partial_folder(parent: Path, name: str) -> Iterator[Path]:
    """A hidden folder in `parent` to fill; what is still in it when the block ends is removed.

    Args:
        parent: created as needed.
        name: of what is written, for people who look into `parent`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    clean(parent)
    whole, lock = _new_folder(parent, name)
    try:
        content = whole / _CONTENT
        content.mkdir()
        yield content
    finally:
        _remove(whole)
        os.close(lock)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `path` when the block ends without an error."""
    with partial_folder(path.parent, path.name) as folder:
        yield folder
        os.replace(folder, path)


def clean(folder: Path) -> None:
    """Remove what killed processes left in a folder; once in a process, as it lists the folder."""
    key = os.path.abspath(folder)
    if key in _cleaned:
        return
    _cleaned.add(key)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            match = _PARTIAL.fullmatch(entry.name)
            if match:
                with contextlib.suppress(OSError):  # another user's, or on a disk without locks
                    _remove_if_abandoned(entry, match['former'] is not None)


def _remove_if_abandoned(entry: os.DirEntry, former: bool) -> None:
    path = Path(entry.path)
    if entry.is_file(follow_symlinks=False):
        with _lock_of(path) as locked:
            if locked:
                path.unlink()
    elif entry.is_dir(follow_symlinks=False):
        if not (path / _LOCK).exists():
            # A folder that was created a moment ago has no lock yet, but it is empty: its writer
            # creates another one.
            shutil.rmtree(path) if former else path.rmdir()
            return
        with _lock_of(path / _LOCK) as locked:
            if locked:
                _remove(path)


@contextlib.contextmanager
def _lock_of(path: Path) -> Iterator[bool]:
    """Whether a file could be locked, which is still at its place; locked while the block runs."""
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield _is_at(path, file)
    except BlockingIOError:
        yield False
    finally:
        os.close(file)


def _is_at(path: Path, file: int) -> bool:
    """Whether a path is still that of an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _new_file(path: Path) -> tuple[Path, int]:
    """A new hidden file beside `path`, and its descriptor, which holds the lock."""
    ending = match[0] if (match := _ENDING.search(path.name)) else ''
    stem = short_name(path.name.removesuffix(ending), _ROOM)
    while True:
        partial = path.with_name(f'.{stem}.{_token()}.partial{ending}')
        lock = _locked(partial)
        if lock is not None:
            return partial, lock


def _new_folder(parent: Path, name: str) -> tuple[Path, int]:
    """A new hidden folder, and the descriptor of the file in it that holds the lock."""
    while True:
        whole = parent / f'.{short_name(name, _ROOM)}.{_token()}.partial'
        whole.mkdir()
        with contextlib.suppress(FileNotFoundError):  # removed before it had a lock
            lock = _locked(whole / _LOCK)
            if lock is not None:
                return whole, lock


def _token() -> str:
    return f'x{secrets.token_hex(6)}'


def _locked(path: Path) -> int | None:
    """The descriptor of a new file, locked; None if another process removed it before it was."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another process is about to remove it
        os.close(file)
        return None
    except OSError:  # a disk without locks: nobody else can lock it either
        pass
    if _is_at(path, file):
        return file
    os.close(file)
    return None


def _remove(whole: Path) -> None:
    """Remove a folder, the lock last: without it a half removed folder would stay for ever."""
    shutil.rmtree(whole / _CONTENT, ignore_errors=True)
    with contextlib.suppress(OSError):
        (whole / _LOCK).unlink(missing_ok=True)
        whole.rmdir()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[list[str]]:
    """Name `path` in errors of the system that name no file, as those of `write` do, or a hidden
    one, which the block adds to the list.
    """
    hidden: list[str] = []
    try:
        yield hidden
    except OSError as error:
        if error.errno and (error.filename is None or os.fspath(error.filename) in hidden):
            error.filename = os.fspath(path)
        raise
