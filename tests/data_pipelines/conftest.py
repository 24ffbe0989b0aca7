"""A synthetic brain as NIfTI files, and the smoke cohort, made once."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import grids, mni_template, registration


@pytest.fixture(scope='session')
def mni_at_8mm():
    """The template on a coarse grid, as a scan in MNI space: (intensities 0..1000, affine)."""
    grid = grids.ModelGrid((24, 28, 24), (8.0, 8.0, 8.0))
    maps = mni_template.on_grid(grid)
    return np.where(maps.brain >= 0.5, 1000 * maps.t1, 0).astype(np.float32), grid.affine


@pytest.fixture
def write_scan(mni_at_8mm):
    """write_scan(path, data=None, affine=None): a NIfTI file, by default the synthetic brain."""
    brain, grid_affine = mni_at_8mm

    def write(path, data=None, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = brain if data is None else data
        nib.save(nib.Nifti1Image(data, grid_affine if affine is None else affine), path)
        return path

    return write


@pytest.fixture(scope='session')
def smoke_cohort(store):
    """The embedded cohort at smoke scale."""
    from data_pipelines import input_pipeline

    return input_pipeline.template_cohort('smoke', store)


@pytest.fixture
def quick_registration(monkeypatch):
    """A registration of a few coarse steps, for what does not depend on how exact it is."""
    monkeypatch.setattr(registration, 'AFFINE_LEVELS', ((2, 4.0),))
    monkeypatch.setattr(registration, 'MAX_ITERATIONS', 8)
