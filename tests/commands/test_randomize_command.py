"""`fluidjax randomize` as a user calls it."""

from __future__ import annotations

import functools

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope='module')
def call(command):
    return functools.partial(command, 'randomize')


def test_a_scan_becomes_pairs(call, tmp_path):
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (26, 28, 24)), indexing='ij')
    brain = sum(x**2 for x in axes) < 0.7
    values = np.random.default_rng(0).integers(350, 450, brain.shape) * brain
    scan = nib.Nifti1Image(values.astype(np.int16), np.diag([6.5, 7.0, 7.5, 1.0]))
    nib.save(scan, tmp_path / 'scan.nii.gz')
    smooth = ('--config.border_mm=60', '--config.perlin_periods=(1, 1, 1)')
    done = call(tmp_path / 'scan.nii.gz', '--out', tmp_path / 'out', '--n', '1', *smooth)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / 'out' / 'draws.json')
    kinds = ('diseased', 'mask', 'probability')
    assert {path.name for path in (tmp_path / 'out' / 'scan').iterdir()} == {
        *(f'001_{kind}.nii.gz' for kind in kinds),
        'healthy.nii.gz',
        'contact_sheet.png',
        'flow.gif',
    }


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'needs healthy scans'),
        (['x.nii', '--out={tmp}', '--seed=99999999999'], 'seed'),
        (['x.nii', '--out={tmp}', '--n=0'], 'n'),
        (['x.nii', '--out={tmp}', '--config.treshold=0.1'], "no field 'treshold'"),
        (['x.nii', '--out={tmp}', '--config.threshold=7.0'], 'config.threshold: 7.0'),
        (['--replay=d.json', '--n=3', '--out={tmp}/o'], '--n cannot be combined with --replay'),
        (['x.nii', 'y.nii', '--out={tmp}', '--brain=b.nii'], '--brain belongs to one scan'),
        (['x.nii', '--out={tmp}/o', '--lesions={tmp}'], 'found no scans'),
    ],
)
def test_a_mistake_is_one_line(call, tmp_path, arguments, message):
    done = call(*(a.format(tmp=tmp_path) for a in arguments))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and lines[-1].startswith('fluidjax: error: '), done.stderr
    assert message in lines[-1] and 'Traceback' not in done.stderr
