"""Files that are complete or absent, JSON, and locks that end with their process.

How they become complete is in `partial`, how their names are shown and shortened in `names`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.resources
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fluidjax.base.disk import reason
from fluidjax.base.errors import DiskError, UserError
from fluidjax.base.names import AS_HEX, shown
from fluidjax.base.partial import written_beside

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def cache_home() -> Path:
    """The folder of caches: `$XDG_CACHE_HOME/fluidjax`, `~/.cache/fluidjax` or, without a home, a
    folder for temporary files.
    """
    if os.environ.get('XDG_CACHE_HOME'):
        return Path(os.environ['XDG_CACHE_HOME']) / 'fluidjax'
    try:
        return Path.home() / '.cache' / 'fluidjax'
    except RuntimeError:  # no HOME, and a user whom the system does not know, as in containers
        return Path(tempfile.gettempdir()) / f'fluidjax-{os.getuid()}'


def asset(package: str, name: str) -> str:
    """The text of a file in the `assets` folder of a package such as 'fluidjax.detect'."""
    return importlib.resources.files(package).joinpath('assets', name).read_text('utf-8')


def write_text(path: str | Path, text: str) -> None:
    """Write a text file so that a reader sees the old file or the new one, never a part.

    Folders are created as needed. In file names, bytes that are not UTF-8 become `\xfc`.
    """
    write_bytes(path, text.encode('utf-8', AS_HEX))


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON as `write_text` does, but file names that are not UTF-8 so that `read_json`
    returns them unchanged.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    write_bytes(path, text.encode('utf-8', 'backslashreplace'))  # JSON's own way, \\udcfc


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes as `write_text` does."""
    with written_beside(path) as beside:
        beside.write_bytes(content)


def parse_json(text: str | bytes, where: str, advice: str) -> dict[str, Any]:
    """The object in a JSON text.

    Args:
        text: the JSON.
        where: names the file in the message.
        advice: what to do if it is something else.

    Raises:
        UserError: the text is not JSON, or not an object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: is not JSON ({error}); {advice}') from error
    if not isinstance(content, dict):
        raise UserError(
            f'{where}: contains {type(content).__name__} where a JSON object is expected; {advice}'
        )
    return content


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file; see `parse_json`."""
    return parse_json(path.read_bytes(), shown(path), advice)


def take_lock(path: Path) -> IO[str] | None:
    """Lock a file, which is created as needed; None if another process has the lock.

    The lock ends when the file is closed or the process ends, for whatever reason.

    Raises:
        UserError: the folder cannot be written to, or its file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a+')
    except OSError as error:
        raise DiskError(f'{shown(path.parent)}: {reason(error, path.parent)}') from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in NO_LOCKS:
            raise UserError(
                f'{path}: this file system has no locks ({error.strerror}); choose a '
                'folder on another'
            ) from error
        return None
    file.truncate(0)
    file.write(
        f'process {os.getpid()} on {socket.gethostname()}, since '
        f'{time.strftime("%Y-%m-%d %H:%M:%S")}\n'
    )
    file.flush()
    return file


@contextlib.contextmanager
def locked(path: Path, why: str) -> Iterator[None]:
    """Lock a file while the block runs.

    Args:
        path: the lock file.
        why: the message if another process has the lock: what it does, what the user can do.

    Raises:
        UserError: another process has the lock; see also `take_lock`.
    """
    file = take_lock(path)
    if file is None:
        with contextlib.suppress(OSError):
            why = f'{why} ({path.read_text().strip()})'
        raise UserError(f'{path.parent}: {why}')
    with file:
        yield


@contextlib.contextmanager
def locked_in_turn(path: Path) -> Iterator[None]:
    """Wait for a lock and keep it while the block runs; no effect on file systems without locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
