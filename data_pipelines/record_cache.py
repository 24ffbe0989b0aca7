"""Records made once and kept by content: the same file and settings are not preprocessed again.

`FOLDER/<hash>.npz` holds the record of one scan, or of one mask of the lesion bank, under a hash of
the bytes of its files, the grid, the registration and `PREPROCESSING_VERSION`; not of its name,
its folder, or the split it goes to.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from data_pipelines import lesion_masks, nifti_source
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.scan_folders import Case
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes

_FLAGS = ('has_healthy', 'has_lesion')


def files_of(item: Case | Path) -> list[Path]:
    """The files a record is made of: a scan with its mask, or a mask of the lesion bank."""
    if isinstance(item, Path):
        return [item]
    return [item.scan] if item.mask is None else [item.scan, item.mask]


def key_of(item: Case | Path, source: NiftiSource) -> str:
    """The name of a record, 32 hexadecimal digits.

    Raises:
      UserError: a file that cannot be read.
    """
    described = [
        nifti_source.PREPROCESSING_VERSION,
        source.registration,
        repr(source.grid),
        'mask' if isinstance(item, Path) else 'scan',
    ]
    for path in files_of(item):
        try:
            with open(path, 'rb') as file:
                described.append(hashlib.file_digest(file, 'sha256').hexdigest())
        except OSError as error:
            raise UserError(
                f'{path}: cannot be read ({error.strerror}); check the path and its rights'
            ) from error
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def make(item: Case | Path, source: NiftiSource) -> dict:
    """The record of a scan or of a mask, from its files. UserError names the file."""
    if isinstance(item, Path):
        return lesion_masks.lesion_record(item, source.lesion_dir, source.grid)
    return nifti_source.make_record(item, source)


def record_of(item: Case | Path, source: NiftiSource) -> dict:
    """The record of an item: the kept one where `source.records` has it, else made now."""
    kept = load(source, key_of(item, source)) if source.records else None
    if kept is None:
        return make(item, source)
    return {**kept, 'name': nifti_source.record_name(item, source)}


def load(source: NiftiSource, key: str) -> dict | None:
    """A kept record, or None where there is none, or a damaged one."""
    path = Path(source.records) / f'{key}.npz'
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            record = {name: file[name] for name in file.files}
        record |= {name: bool(record[name]) for name in _FLAGS}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return record if record['image'].shape == source.grid.shape else None


def save(source: NiftiSource, key: str, record: dict) -> None:
    """Keep a record, beside and renamed; its name is the item's own, and not kept."""
    content = io.BytesIO()
    np.savez_compressed(content, **{name: v for name, v in record.items() if name != 'name'})
    write_bytes(Path(source.records) / f'{key}.npz', content.getvalue())
