"""File names as texts that can be printed, and names that a file system accepts.

Linux names are bytes. Python decodes them as UTF-8 and keeps each byte that is not (as in Latin-1
names) as a lone surrogate, which cannot be encoded again for a terminal, JSON or HTML.
"""

from __future__ import annotations

import codecs
import hashlib
import os

LONGEST = 255  # bytes in one component of a path, on all common file systems
AS_HEX = 'fluidjax.as_hex'  # a handler of encoding errors, for `str.encode` and streams


def shown(path: str | bytes | os.PathLike) -> str:
    r"""A path as a text; bytes that are not UTF-8 become `\xfc`."""
    return os.fsdecode(path).encode('utf-8', AS_HEX).decode('utf-8')


def short_name(name: str, room: int = LONGEST) -> str:
    """A name of at most `room` bytes.

    A longer one is cut, and ends in a hash of the whole, so that different names stay different.

    Args:
        name: one component of a path.
        room: most bytes, e.g. 255 less the longest ending that is added.
    """
    encoded = os.fsencode(name)
    if len(encoded) <= room:
        return name
    mark = f'-{hashlib.sha256(encoded).hexdigest()[:8]}'
    return encoded[: room - len(mark)].decode('utf-8', 'ignore') + mark


def _as_hex(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return ''.join(map(_hex_of, text)), error.end


def _hex_of(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how Python keeps a byte of a file name that is not UTF-8
        return f'\\x{number - 0xDC00:02x}'
    return character.encode('ascii', 'backslashreplace').decode()


codecs.register_error(AS_HEX, _as_hex)
