"""The safetensors format, written and read without its package: numbers with names, and no code.

    8 bytes: length of the header, little-endian | header: JSON | the tensors' bytes, C order

https://github.com/huggingface/safetensors describes it; files made here open there, and the reader
takes what it is told to expect and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from fluidjax.errors import UserError

DTYPES = {'F16': np.dtype('<f2'), 'F32': np.dtype('<f4')}
HEADER_LIMIT = 16 << 20  # bytes
_ALIGNMENT = 8

Shapes = Mapping[str, tuple[int, ...]]


def encode(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A file of tensors, float16 or float32, in the order of their names: the same bytes always."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header, chunks, start = {}, [], 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        array = array.astype(array.dtype.newbyteorder('<'), copy=False)
        chunk = array.tobytes()
        header[name] = {'dtype': codes[array.dtype], 'shape': list(array.shape),
                        'data_offsets': [start, start + len(chunk)]}
        chunks.append(chunk)
        start += len(chunk)
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % _ALIGNMENT)
    return b''.join([len(text).to_bytes(8, 'little'), text, *chunks])


def decode(stream: BinaryIO, size: int, expected: Shapes, where: str) -> dict[str, np.ndarray]:
    """The tensors of a file of `size` bytes, as float32.

    Args:
        stream: at the start of the file.
        size: of the file, bytes; no more is read.
        expected: the shape of every tensor that must be there; others must not.
        where: names the file in messages.

    Raises:
        UserError: a damaged file, or tensors that are not the expected ones.
    """
    header, length = _header(stream, size, where)
    _check_names(header, expected, where)
    tensors, position = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1], where)):
        dtype, (start, end) = _dtype(name, entry, where), _offsets(entry, where)
        if tuple(entry.get('shape', ())) != tuple(expected[name]):
            raise UserError(f'{where}: {name} has shape {entry.get("shape")}, the configuration '
                            f'beside it makes {list(expected[name])}; export the run again')
        if start != position or end - start != math.prod(expected[name]) * dtype.itemsize:
            raise _damaged(where, f'the bytes of {name} are not where its header says')
        chunk = stream.read(end - start)
        if len(chunk) != end - start:
            raise _damaged(where, 'it ends too early')
        array = np.frombuffer(chunk, dtype).reshape(expected[name]).astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f'{where}: {name} holds values that are not finite; export the run '
                            'again')
        tensors[name], position = array, end
    if 8 + length + position != size:
        raise _damaged(where, 'it is longer than its tensors')
    return tensors


def _header(stream: BinaryIO, size: int, where: str) -> tuple[dict, int]:
    length = int.from_bytes(stream.read(8), 'little')
    if not 0 < length <= min(HEADER_LIMIT, size - 8):
        raise _damaged(where, 'its header has no possible length')
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError) as error:
        raise _damaged(where, 'its header is no JSON') from error
    if not isinstance(header, dict) or not all(isinstance(v, dict) for v in header.values()):
        raise _damaged(where, 'its header is no table of tensors')
    header.pop('__metadata__', None)
    return header, length


def _check_names(header: Mapping, expected: Shapes, where: str) -> None:
    for kind, names in (('lacks', set(expected) - set(header)),
                        ('holds', set(header) - set(expected))):
        if names:
            what = 'which the configuration beside it ' + ('needs' if kind == 'lacks' else 'lacks')
            raise UserError(f'{where}: {kind} {len(names)} tensor(s), {what}, e.g. '
                            f'{sorted(names)[0]}; export the run again')


def _dtype(name: str, entry: Mapping, where: str) -> np.dtype:
    if not isinstance(entry.get('dtype'), str) or entry['dtype'] not in DTYPES:
        raise UserError(f'{where}: {name} is of type {entry.get("dtype")}; there are '
                        f'{", ".join(DTYPES)}')
    return DTYPES[entry['dtype']]


def _offsets(entry: Mapping, where: str) -> tuple[int, int]:
    offsets = entry.get('data_offsets')
    if not (isinstance(offsets, list) and len(offsets) == 2
            and all(type(x) is int and x >= 0 for x in offsets)):
        raise _damaged(where, 'a tensor has no place in it')
    return offsets[0], offsets[1]


def _damaged(where: str, what: str) -> UserError:
    return UserError(f'{where}: is damaged ({what}); copy it again')
