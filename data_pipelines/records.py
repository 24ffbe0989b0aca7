"""The records of subjects, as all cohorts contain them, and a cache of them; without TensorFlow.

`FOLDER/<hash>.npz` contains the record of one scan, or of one mask of the lesion bank. The hash is
of the bytes of its files, the grid, the registration and `PREPROCESSING_VERSION`, but not of its
name, its folder or its split: the same file with the same settings is preprocessed only once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm

from data_pipelines import (
    grids,
    mask_on_scan,
    mni_template,
    nifti_source,
    preprocess,
    resampling,
    scan_folders,
    tissue,
)
from data_pipelines.file_names import contrast_in_name, without_bytes
from data_pipelines.image_files import checksum
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.scan_folders import Case
from data_pipelines.volume_io import load_volume
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes
from fluidjax.base.subject import TISSUES, Preprocessed

MAX_LESION_FRACTION = 0.6  # of the brain; a larger mask is not one of a lesion
_FLAGS = ('has_healthy', 'has_lesion')
_FAULTS = 'faults'  # why a scan must not be trained on, see `check_healthy`; '' if nothing is wrong


def record(name, image, brain, affine, lesion=None, healthy=None, tissue=None) -> dict:
    """A subject as `template_cohort.record_features` describes it.

    A missing lesion mask or healthy image becomes zeros; tissue fractions are there if given.
    """
    filled = lambda data, dtype: (
        np.zeros(image.shape, dtype) if data is None else data.astype(dtype)
    )
    return {
        'name': name,
        'image': image.astype(np.float32),
        'brain': brain.astype(np.uint8),
        'healthy': filled(healthy, np.float32),
        'has_healthy': healthy is not None,
        'lesion': filled(lesion, np.uint8),
        'has_lesion': lesion is not None,
        'affine': np.asarray(affine, np.float64),
        **({} if tissue is None else {'tissue': tissue}),
    }


def make(item: Case | Path, source: NiftiSource) -> dict:
    """The record of a scan, or of a mask of the lesion bank, from its files, with its faults.

    Raises:
      UserError: a file that cannot be used.
    """
    if isinstance(item, Path):
        return {**lesion_record(item, source.lesion_dir, source.grid), _FAULTS: ''}
    if source.labels and item.scan.is_relative_to(source.data_dir):
        table = tissue.table_of(source.labels)
        made, fractions = tissue.from_labels(item.scan, source.grid, source.registration, table)
        own = record(item.name, made.image, made.brain, made.affine, tissue=fractions)
        return {**own, _FAULTS: '; '.join(made.faults)}
    return _scan_record(item, source)


def _scan_record(case: Case, source: NiftiSource) -> dict:
    """Read and preprocess a scan; an empty lesion mask is ignored."""
    scan = load_volume(case.scan)
    mask = None
    parts = [load_volume(path, allow_empty=True) for path in case.masks]
    if marked := [part for part in parts if part.data.any()]:
        mask = mask_on_scan.joined(marked, scan, 'lesion mask')
    in_test_dir = source.test_dir and case.scan.is_relative_to(source.test_dir)
    contrasts = source.wanted('test_dir' if in_test_dir else 'data_dir')
    result = preprocess.preprocess(
        scan, source.grid, mask, source.registration, contrasts=contrasts
    )
    if not result.brain.any():
        raise UserError(
            f'{case.scan}: no brain on the model grid; with registration none a scan must be in '
            "MNI152 space: set registration to 'affine'"
        )
    if mask is not None and result.lesion.sum() > MAX_LESION_FRACTION * result.brain.sum():
        raise UserError(
            f'{mask.path}: covers most of the brain; it looks like a brain mask: '
            'rename it or move it away'
        )
    for warning in result.warnings:
        tqdm.tqdm.write(f'{case.scan}: {warning}', file=sys.stderr)
    fractions = _tissue_beside(case.scan, result)
    made = record(
        case.name, result.image, result.brain, result.affine, result.lesion, tissue=fractions
    )
    return {**made, _FAULTS: '; '.join(result.faults)}


def _tissue_beside(scan: Path, result: Preprocessed) -> np.ndarray | None:
    """The tissue fractions of the label map beside a scan; None if there is none that fits.

    Most trainings need no tissue, so a label map that cannot be used is no reason to refuse a scan;
    `with_tissue` estimates the fractions where they are wanted.
    """
    beside = tissue.labels_beside(scan)
    if beside is None:
        return None
    try:
        return tissue.on_scan(beside, result.affine, result.brain)
    except UserError as error:
        tqdm.tqdm.write(f'{error}; it is not used', file=sys.stderr)
        return None


def with_tissue(record: dict, wanted: bool, grid: grids.ModelGrid | None = None) -> dict:
    """A record with tissue fractions if they are wanted: of labels, or estimated from its image.

    They are estimated too where the label map beside the scan could not be used.

    Args:
      record: of a scan, or of a mask of the lesion bank, which gets zeros.
      wanted: whether the cohort has tissue fractions.
      grid: of the image.
    """
    if not wanted:
        return {name: value for name, value in record.items() if name != 'tissue'}
    if 'tissue' in record:
        return record
    if not record['brain'].any():
        return {**record, 'tissue': np.zeros((*record['brain'].shape, len(TISSUES)), np.uint8)}
    fractions = tissue.estimated(record['image'], record['brain'].astype(bool), grid)
    return {**record, 'tissue': fractions}


def check_healthy(record: dict, item: Case | Path, split: str) -> None:
    """Raise a UserError for a scan that must not be trained on: wrong axes or contrast."""
    if split in ('train', 'validation') and record[_FAULTS]:
        raise UserError(f'{item.scan}: {record[_FAULTS]}; it cannot be used as a healthy scan')


def lesion_record(path: Path, lesion_dir: str, grid: grids.ModelGrid) -> dict:
    """The record of a mask of the lesion bank, resampled to the model grid; its image is zeros.

    Raises:
      UserError: the mask cannot be read, lies outside the MNI152 brain, or covers most of it.
    """
    volume = load_volume(path)
    mask = resampling.resample_mask(volume.data > 0, volume.affine, grid.shape, grid.affine)
    if not mask.any():
        raise UserError(
            f'{path}: lies outside the MNI152 brain; the masks of lesion_dir must be in MNI space'
        )
    brain = mni_template.on_grid(grid).brain >= 0.5
    if (mask & brain).sum() > MAX_LESION_FRACTION * brain.sum():
        raise UserError(
            f'{path}: covers most of the brain, so it is no mask of a lesion (is it a scan?); move '
            'it out of lesion_dir'
        )
    nothing = np.zeros(grid.shape, np.float32)
    return record(_mask_name(path, lesion_dir), nothing, nothing, grid.affine, lesion=mask)


def _mask_name(path: Path, lesion_dir: str) -> str:
    return without_bytes(os.fspath(path.relative_to(lesion_dir)))


def as_features(made: dict) -> dict:
    """A made record as cohorts contain it."""
    return {name: value for name, value in made.items() if name != _FAULTS}


def lesion_records(lesion_dir: str, grid: grids.ModelGrid) -> Iterator[tuple[int, dict]]:
    """The numbered records of all masks of a folder; see `lesion_record`."""
    files = scan_folders.nifti_files(lesion_dir, 'lesion_dir')
    for number, path in enumerate(tqdm.tqdm(files, desc='lesion masks', file=sys.stderr)):
        yield number, lesion_record(path, lesion_dir, grid)


def files_of(item: Case | Path) -> list[Path]:
    """The files of a record: a scan, its lesion mask and its label map, or a mask of the bank."""
    if isinstance(item, Path):
        return [item]
    return [path for path in (item.scan, *item.masks, tissue.labels_beside(item.scan)) if path]


def key_of(item: Case | Path, source: NiftiSource) -> str:
    """The key of an item in the cache, 32 hexadecimal digits.

    Raises:
      UserError: a file that cannot be read.
    """
    described = [
        nifti_source.PREPROCESSING_VERSION,
        nifti_source.SCALING_VERSION,
        source.registration,
        repr(source.grid),
        'mask' if isinstance(item, Path) else 'scan',
    ]
    if source.labels and not isinstance(item, Path):
        described.append(['labels', repr(tissue.table_of(source.labels))])
    if not isinstance(item, Path) and contrast_in_name(item.scan) == 'flair':
        described.append('flair')  # of two contrasts that look alike it is this one
    for path in files_of(item):
        try:
            described.append(checksum(path))
        except OSError as error:
            raise UserError(
                f'{path}: cannot be read ({error.strerror}); check the path and its permissions'
            ) from error
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def record_of(item: Case | Path, source: NiftiSource, split: str) -> dict:
    """The record of an item of a split, from the cache `source.records` if it is there.

    Raises:
      UserError: a file that cannot be used, or not as a healthy scan.
    """
    made = load(source, key_of(item, source)) if source.records else None
    if made is None:
        made = make(item, source)
    if isinstance(item, Path):
        return as_features({**made, 'name': _mask_name(item, source.lesion_dir)})
    check_healthy(made, item, split)
    return as_features({**made, 'name': item.name})


def load(source: NiftiSource, key: str) -> dict | None:
    """A record of the cache, without its name; None if it is missing or damaged."""
    path = Path(source.records) / f'{key}.npz'
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        content |= {name: bool(content[name]) for name in _FLAGS}
        content[_FAULTS] = str(content[_FAULTS])
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return content if content['image'].shape == source.grid.shape else None


def save(source: NiftiSource, key: str, record: dict) -> None:
    """Write a record to the cache, without its name, which may differ for the same content."""
    content = io.BytesIO()
    np.savez_compressed(content, **{name: v for name, v in record.items() if name != 'name'})
    write_bytes(Path(source.records) / f'{key}.npz', content.getvalue())
