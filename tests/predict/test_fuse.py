"""Contrasts of one session, fused on the voxels of its first scan."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import mni_template, registration, resampling
from data_pipelines.grids import ModelGrid
from data_pipelines.volume_io import save_volume
from fluidjax.predict import fuse
from fluidjax.predict.files import PROBABILITY, TABLE
from fluidjax.predict.fuse import fuse_sessions, session_of
from fluidjax.predict.scans import ScanFile

GRID = ModelGrid((40, 48, 40), (4.0, 4.0, 4.0))
LESION = (24, 30, 24)  # a voxel of GRID


@pytest.fixture(scope='module')
def turn():
    """The second scan's world from the first one's: a head that moved between them."""
    matrix = np.eye(4)
    matrix[:3, :3] = nib.eulerangles.euler2mat(0.06, 0.04, -0.05)
    matrix[:3, 3] = 4.0, -3.0, 2.0
    return matrix


@pytest.fixture(scope='module')
def session(turn, tmp_path_factory):
    """T1w and T2w of a head, the second moved, as `predict` leaves them: the folder and the files;
    the probability is 0.8 and 0.4 in a ball."""
    folder = tmp_path_factory.mktemp('session')
    maps = mni_template.on_grid(GRID)
    brain = maps.brain > 0.5
    places = np.moveaxis(np.indices(GRID.shape), 0, -1)
    ball = (np.linalg.norm(places - LESION, axis=-1) < 3).astype(np.float32)
    dark = np.where(brain, 300 * maps.csf + 600 * maps.gm + 900 * maps.wm, 0.0)
    bright = np.where(brain, 900 * maps.csf + 500 * maps.gm + 250 * maps.wm, 0.0)
    moved = np.linalg.inv(turn) @ GRID.affine  # where the second scan's voxels see the head
    files = []
    for name, image, affine, high in (
        ('sub-1_T1w', dark, GRID.affine, 0.8),
        ('sub-1_acq-T2w', bright, moved, 0.4),
    ):

        def place(data, affine=affine):
            data = data.astype(np.float32)
            return resampling.resample_image(data, GRID.affine, GRID.shape, affine)

        path = folder / f'{name.replace("acq-", "")}.nii.gz'
        save_volume(path, place(image), GRID.affine)
        file = ScanFile(path, name.removesuffix('_T1w'), Path('sub-1', 'anat'))
        start = folder / 'out' / 'sub-1' / 'anat' / file.name
        start.parent.mkdir(parents=True, exist_ok=True)
        save_volume(f'{start}_desc-brain_mask.nii.gz', place(brain) > 0.5, GRID.affine)
        save_volume(f'{start}_{PROBABILITY}.nii.gz', high * place(ball), GRID.affine)
        contrast = 't1w' if name.endswith('T1w') else 't2w'
        summary = {'name': file.name, 'contrast': contrast, 'threshold_probability': high / 2}
        Path(f'{start}_{TABLE}.json').write_text(json.dumps({'Summary': summary}))
        files.append(file)
    return folder / 'out', files[::-1]


def test_a_head_that_moved_is_registered_rigidly(session, turn):
    _, files = session
    volumes = [np.asarray(nib.load(file.path).dataobj) for file in files]
    second, first = ((v, v > 0, GRID.affine) for v in volumes)
    found = registration.register_rigidly(*first, *second)
    points = np.c_[np.random.default_rng(0).uniform(-50, 50, (50, 3)), np.ones(50)]
    apart = np.linalg.norm((points @ (found - turn).T)[:, :3], axis=1)
    assert apart.max() < 1.5  # mm; voxels have 4
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)


def test_a_session_is_fused_on_its_t1w_scan(session):
    out, files = session
    ((is_fused, line),) = fuse_sessions(out, files)
    assert is_fused and ': fused, ' in line and 'ml marked' in line
    start = out / 'sub-1' / 'anat' / 'sub-1_desc-fused'
    fused = nib.load(f'{start}_probseg.nii.gz')
    np.testing.assert_allclose(fused.affine, GRID.affine)
    values = np.asarray(fused.dataobj)
    assert values[LESION] == pytest.approx(0.6, abs=0.06)  # the mean of 0.8 and 0.4
    assert values.max() < 0.66 and values[10, 20, 20] == 0
    mask = np.asarray(nib.load(f'{start}_mask.nii.gz').dataobj) > 0
    np.testing.assert_array_equal(mask, values >= 0.3)
    about = json.loads(Path(f'{start}_mask.json').read_text())
    assert len(about['Sources']) == 2 and 'at least 0.3' in about['Description']


def test_another_head_is_not_fused(session, tmp_path):
    out, files = session
    mask = out / 'sub-1' / 'anat' / f'{files[0].name}_desc-brain_mask.nii.gz'
    kept = mask.read_bytes()
    elsewhere = np.ones(GRID.shape, np.float32)
    elsewhere[4:-4, 4:-4, 4:-4] = 0.0  # a shell
    save_volume(mask, elsewhere, GRID.affine)
    ((is_fused, line),) = fuse_sessions(out, files)
    mask.write_bytes(kept)
    assert not is_fused and line.startswith('not fused: ') and 'are they of one person?' in line


def test_a_full_disk_is_not_hidden(session, monkeypatch):
    out, files = session

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(fuse, 'save_like', full)
    with pytest.raises(OSError, match='No space left'):
        list(fuse_sessions(out, files))


def test_what_cannot_be_fused_is_a_line(session, tmp_path):
    out, files = session
    assert list(fuse_sessions(out, files[:1])) == []
    table = out / 'sub-1' / 'anat' / f'{files[0].name}_{TABLE}.json'
    kept = table.read_text()
    table.write_text(json.dumps({'Summary': {'name': 'x', 'contrast': 't2w'}}))
    ((is_fused, line),) = fuse_sessions(out, files)
    table.write_text(kept)
    assert not is_fused and line.startswith('not fused: ')
    assert 'the model of x knows no probabilities' in line
    ((is_fused, line),) = fuse_sessions(tmp_path, files)
    assert not is_fused and line.startswith('not fused: ')


@pytest.mark.parametrize(
    'name,session',
    [
        ('a/sub-1_ses-2_acq-x_T1w.nii.gz', ('a', 'sub-1', 'ses-2')),
        ('b/sub-1/ses-2/anat/sub-1_ses-2_FLAIR.nii', ('b', 'sub-1', 'ses-2')),
        ('a/sub-1_FLAIR.nii', ('a', 'sub-1')),
        ('a/sub-1+2_ses-a+b_FLAIR.nii', ('a', 'sub-1+2', 'ses-a+b')),
        ('a/p01_flair.nii', ('a', 'p01')),
        ('a/p01_t1.nii', ('a', 'p01')),
    ],
)
def test_sessions_are_known_by_names(name, session):
    folder, *others = session_of(Path(name))
    assert (folder, *others) == (str(Path(session[0]).absolute()), *session[1:])
