"""Whole head or brain alone, and the brain in a head: by the atlas, a mask, or a tool."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest
import synthetic_heads as heads

from data_pipelines import (
    atlas_extraction,
    brain_extraction,
    grids,
    head_mask,
    orientation,
    preprocess,
)
from data_pipelines.volume_io import Volume, load_volume
from fluidjax.base.errors import UserError

DEMO = grids.GRIDS['demo']
REAL = [
    ('healthy_t1w/sub-64/anat/sub-64_T1w.nii.gz', False),
    ('pathology_t1w/sub-ms26/anat/sub-ms26_T1w.nii.gz', False),
    ('pathology_t1w/sub-glioma6692/anat/sub-glioma6692_T1w.nii.gz', False),
    ('other_contrast/stroke_T2w.nii.gz', False),
    ('whole_head_t1w/colin27.nii.gz', True),
    ('whole_head_t1w/ms_thick_slices_01.nii.gz', True),
]


@pytest.fixture(scope='module')
def head():
    return heads.whole_head()


def _is_whole_head(scan):
    return head_mask.is_whole_head(head_mask.coarse_head(scan))


@pytest.mark.parametrize('offset', [0.0, 300.0, 'noise'])
def test_head_or_brain(head, offset):
    if offset == 'noise':
        noise = np.random.default_rng(1).normal(0, 30, head[0].data.shape)
        offset = np.abs(noise).astype(np.float32)
    for scan, expected in ((head[0], True), (heads.stripped(), False)):
        scan = Volume(scan.data + offset, scan.affine, scan.path)
        assert _is_whole_head(scan) is expected


def test_a_constant_is_no_head():
    assert not _is_whole_head(Volume(np.ones((9, 9, 9), np.float32), np.eye(4), ''))


@pytest.mark.parametrize('name, expected', REAL)
def test_head_or_brain_of_real_scans(shared_dir, name, expected):
    assert _is_whole_head(load_volume(shared_dir / 'data' / name)) is expected


def test_atlas_finds_the_brain(head, monkeypatch):
    monkeypatch.setenv('PATH', '')
    monkeypatch.setattr(atlas_extraction, 'STARTS', atlas_extraction.STARTS[:2])
    scan, truth = head
    moved = scan.affine.copy()
    moved[:3, 3] += (12.0, -25.0, 31.0)
    found = brain_extraction.extract(Volume(scan.data, moved, scan.path))
    assert found.method == 'atlas' and found.whole_head
    assert preprocess.dice(found.brain, truth) > 0.93


def test_a_brain_is_left_alone(head):
    found = brain_extraction.extract(heads.stripped())
    assert found.brain is None and found.method == 'none'
    assert brain_extraction.extract(head[0], 'none').brain is None


def test_given_mask_goes_first_and_is_used(head):
    scan, brain = head
    mask = Volume(brain.astype(np.float32), scan.affine, 'mask.nii')
    made = preprocess.preprocess(scan, DEMO, registration='none', brain=mask)
    expected = preprocess.preprocess(heads.stripped(), DEMO, registration='none')
    assert made.extraction == 'given' and not made.warnings
    np.testing.assert_array_equal(made.brain, expected.brain)
    np.testing.assert_allclose(made.image, expected.image, atol=0.05)


def _tool(folder, name, script):
    path = folder / name
    path.write_text('#!/bin/sh\n' + script)
    path.chmod(0o755)


def test_installed_tool_is_used(head, tmp_path, monkeypatch):
    _tool(tmp_path, 'mri_synthstrip', 'cp "$2" "$4"\n')
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin')
    found = brain_extraction.extract(head[0])
    assert found.method == 'synthstrip' and found.brain.shape == head[0].data.shape


def test_without_a_gpu_hd_bet_is_run_on_the_cpu(head, tmp_path, monkeypatch):
    only_cpu = 'case "$*" in *"-device cpu"*) cp "$2" "$4";; *) echo no GPU >&2; exit 1;; esac'
    _tool(tmp_path, 'hd-bet', f'{only_cpu}\n')
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin')
    for method in ('auto', 'hd-bet'):
        found = brain_extraction.extract(head[0], method)
        assert found.method == 'hd-bet' and found.brain.shape == head[0].data.shape


def test_a_tool_that_fails_is_replaced_by_the_atlas(head, tmp_path, monkeypatch):
    _tool(tmp_path, 'hd-bet', 'echo no memory >&2\nexit 1\n')
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin')
    monkeypatch.setattr(brain_extraction, '_by_atlas', lambda scan, coarse: head[1])
    found = brain_extraction.extract(head[0])
    assert found.method == 'atlas' and found.brain is head[1]
    (warning,) = found.warnings
    assert 'with the atlas, because hd-bet failed: no memory' in warning

    def fails(scan, coarse):
        raise UserError('head.nii: no brain')

    monkeypatch.setattr(brain_extraction, '_by_atlas', fails)
    with pytest.raises(UserError, match='head.nii: no brain; before, hd-bet failed: no memory'):
        brain_extraction.extract(head[0])


def test_failing_tool_is_named(head, tmp_path, monkeypatch):
    _tool(tmp_path, 'hd-bet', 'echo no memory >&2\nexit 1\n')
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin')
    with pytest.raises(UserError, match='head.nii: hd-bet failed: no memory.*skull-strip'):
        brain_extraction.extract(head[0], 'hd-bet')


@pytest.mark.parametrize(
    'method, says',
    [
        ('bet', "'bet' is unknown; choose one of auto"),
        ('synthstrip', 'mri_synthstrip is not on PATH'),
    ],
)
def test_bad_methods(head, monkeypatch, method, says):
    monkeypatch.setenv('PATH', '')
    with pytest.raises(UserError, match=says):
        brain_extraction.extract(head[0], method)


@pytest.mark.parametrize(
    'mask, says',
    [
        (np.ones((3, 3, 3)), 'm.nii: brain mask of shape'),
        (np.zeros(heads.GRID.shape), 'm.nii: brain mask is empty'),
        (np.ones(heads.GRID.shape), 'm.nii: brain mask marks every voxel'),
    ],
)
def test_bad_masks(head, mask, says):
    with pytest.raises(UserError, match=says):
        brain_extraction.extract(head[0], brain=Volume(mask, head[0].affine, 'm.nii'))


@pytest.mark.slow
def test_what_is_no_brain_is_refused(monkeypatch):
    monkeypatch.setenv('PATH', '')
    monkeypatch.setattr(atlas_extraction, 'STARTS', atlas_extraction.STARTS[:1])
    monkeypatch.setattr(orientation, 'rotations', lambda: (np.eye(3),))
    positions = heads.GRID.positions() - heads.GRID.centre
    ball = 1000.0 * (np.linalg.norm(positions, axis=-1) < 95)  # a phantom
    noise = np.random.default_rng(0).normal(0, 20, ball.shape)
    scan = Volume((ball + np.abs(noise)).astype(np.float32), heads.GRID.affine, 'phantom.nii')
    with pytest.raises(UserError, match='phantom.nii: the brain could not.*--brain.*SynthStrip'):
        brain_extraction.extract(scan)


@pytest.mark.slow
@pytest.mark.parametrize('number', [4, 9, 20])
def test_a_head_with_wrong_axes_is_told(head, monkeypatch, number):
    monkeypatch.setenv('PATH', '')
    wrong = atlas_extraction.turned(head[0], orientation.rotations()[number])
    says = ''.join(nib.aff2axcodes(wrong.affine))
    with pytest.raises(UserError, match=f'the header says {says}, the brain lies RAS \\(or LAS'):
        brain_extraction.extract(wrong)
