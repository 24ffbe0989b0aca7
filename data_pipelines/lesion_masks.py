"""A lesion bank: real masks in MNI152 space, brought onto the model grid for training to carry."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm

from data_pipelines import grids, resampling, scan_folders
from data_pipelines.records import record
from data_pipelines.volume_io import load_volume
from fluidjax.base.errors import UserError


def lesion_record(path: Path, lesion_dir: str, grid: grids.ModelGrid) -> dict:
    """One mask of a folder, brought by its affine onto the model grid; no image.

    Raises:
      UserError: it lies outside the MNI152 brain.
    """
    volume = load_volume(path)
    mask = resampling.resample_mask(volume.data > 0, volume.affine, grid.shape, grid.affine)
    if not mask.any():
        raise UserError(
            f'{path}: lies outside the MNI152 brain; the masks of lesion_dir must be in MNI space'
        )
    nothing = np.zeros(grid.shape, np.float32)
    name = os.fspath(path.relative_to(lesion_dir))
    return record(name, nothing, nothing, grid.affine, lesion=mask)


def lesion_records(lesion_dir: str, grid: grids.ModelGrid) -> Iterator[tuple[int, dict]]:
    """Every mask of a folder, numbered; see `lesion_record`."""
    files = scan_folders.nifti_files(lesion_dir, 'lesion_dir')
    for number, path in enumerate(tqdm.tqdm(files, desc='lesion masks', file=sys.stderr)):
        yield number, lesion_record(path, lesion_dir, grid)
