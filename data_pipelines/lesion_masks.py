"""A lesion bank: real masks in MNI152 space, brought onto the model grid for training to carry."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np
import tqdm

from data_pipelines import grids, preprocess, scan_folders
from data_pipelines.subject_record import record
from data_pipelines.volume_io import load_volume
from fluidjax.errors import UserError


def records(lesion_dir: str, grid: grids.ModelGrid) -> Iterator[tuple[int, dict]]:
    """Every mask of a folder as a numbered record, each brought by its own affine; no images.

    Raises:
      UserError: no masks there, or one that lies outside the MNI152 brain.
    """
    files = scan_folders.nifti_files(lesion_dir, 'lesion_dir')
    nothing = np.zeros(grid.shape, np.float32)
    for number, path in enumerate(tqdm.tqdm(files, desc='lesion masks', file=sys.stderr)):
        volume = load_volume(path)
        mask = preprocess.resample_mask(volume.data > 0, volume.affine, grid.shape, grid.affine)
        if not mask.any():
            raise UserError(f'{path}: lies outside the MNI152 brain; the masks of lesion_dir must '
                            'be in MNI space')
        name = os.fspath(path.relative_to(lesion_dir))
        yield number, record(name, nothing, nothing, grid.affine, lesion=mask)
