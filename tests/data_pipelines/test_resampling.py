"""A map on the model's grid comes back onto the scan's voxels, on its own side."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import synthetic_heads as heads

from data_pipelines import grids, resampling
from data_pipelines.volume_io import Volume, load_volume, save_like

ORIENTATIONS = [
    ''.join(codes)
    for order in itertools.permutations(('LR', 'PA', 'IS'))
    for codes in itertools.product(*order)
]


def _rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize('spacing', [2.0, 4.0])
def test_round_trip_loses_less_than_one_coarse_sampling(spacing):
    """The yardstick: the scan read once, without a low-pass, every `spacing` mm along its own axes
    and drawn through those points by straight lines. The round trip, over a turned grid, may lose
    no more than that (times 1.15 for the turn), inside the brain."""
    scan, brain = heads.stripped(), heads.brain_and_mask()[1]
    smooth = resampling.antialias(scan.data, scan.affine, 8.0)
    scan = Volume(smooth, scan.affine, 'scan.nii')
    shape = tuple(int(n) for n in np.ceil(np.array(heads.GRID.shape) * heads.SPACING / spacing) + 4)
    own = grids.ModelGrid(shape, (spacing,) * 3, centre=heads.GRID.centre)
    sampled = resampling.sample(scan.data, scan.affine, own.positions())
    once = resampling.to_scan(sampled, own.affine, scan)
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    affine = turn @ own.affine
    made = resampling.resample_image(scan.data, scan.affine, shape, affine)
    back = resampling.to_scan(made, affine, scan)
    signal = _rms(scan.data[brain] - scan.data[brain].mean())
    assert back.shape == scan.data.shape and back.dtype == np.float32
    assert _rms((back - scan.data)[brain]) < 1.15 * _rms((once - scan.data)[brain]) + 0.02 * signal


def test_mask_keeps_its_volume_and_type():
    scan = heads.stripped()
    demo = grids.GRIDS['demo']
    ball = np.linalg.norm(demo.positions() - (30, -20, 20), axis=-1) < 20
    back = resampling.to_scan(ball, demo.affine, scan)
    assert back.dtype == np.bool_
    assert back.sum() * heads.SPACING**3 == pytest.approx(ball.sum() * 64, rel=0.05)


def test_beyond_the_grid_is_nothing():
    scan = Volume(np.ones((40, 40, 40), np.float32), np.diag([8.0, 8, 8, 1]), '')
    smoke = grids.GRIDS['smoke']
    back = resampling.to_scan(np.ones(smoke.shape, np.float32), smoke.affine, scan)
    assert back.max() == pytest.approx(1) and back[-1].max() == 0


@pytest.mark.parametrize('codes', ORIENTATIONS)
def test_right_stays_right_in_all_48_orientations(tmp_path, mni_at_8mm, codes):
    data, affine = mni_at_8mm
    own = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(nib.Nifti1Image(data, affine).as_reoriented(own), tmp_path / 'scan.nii')
    scan = load_volume(tmp_path / 'scan.nii')
    demo = grids.GRIDS['demo']
    marker = np.linalg.norm(demo.positions() - (36, -60, 20), axis=-1) < 14
    save_like(tmp_path / 'back.nii', resampling.to_scan(marker, demo.affine, scan), scan)
    written = nib.load(tmp_path / 'back.nii')
    assert nib.aff2axcodes(written.affine) == tuple(codes)
    voxels = np.argwhere(np.asarray(written.dataobj) > 0)
    world = nib.affines.apply_affine(written.affine, voxels)
    assert len(world) and (world[:, 0] > 0).all()
    np.testing.assert_allclose(world.mean(axis=0), (36, -60, 20), atol=3.0)
