"""One process at a time in a folder: locks that end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fluidjax.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def take(path: Path) -> IO[str] | None:
    """Lock a file, made as needed; None where another process has it.

    The lock ends when the file is closed or its process ends, however it ends.

    Raises:
        UserError: the folder cannot be written, or its file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a+')
    except OSError as error:
        raise UserError(f'{path.parent}: cannot write here ({error.strerror}); choose another '
                        'folder') from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in NO_LOCKS:
            raise UserError(f'{path}: this file system has no locks ({error.strerror}); choose a '
                            'folder on another') from error
        return None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}, since '
               f'{time.strftime("%Y-%m-%d %H:%M:%S")}\n')
    file.flush()
    return file


@contextlib.contextmanager
def held(path: Path, why: str) -> Iterator[None]:
    """Hold a lock for a while.

    Args:
        path: the file.
        why: what the other one does, and what to do, for the message.

    Raises:
        UserError: another process holds it; see also `take`.
    """
    file = take(path)
    if file is None:
        with contextlib.suppress(OSError):
            why = f'{why} ({path.read_text().strip()})'
        raise UserError(f'{path.parent}: {why}')
    with file:
        yield


@contextlib.contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold a lock for a while, after whoever has it; none where the file system has no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
