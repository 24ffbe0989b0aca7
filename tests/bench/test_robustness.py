"""Changed healthy scans, and what a model marks in them."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.methods import config_of
from data_pipelines import grids, mni_template
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Subject
from fluidjax.bench import robustness
from fluidjax.fluid.anatomy import CENTRE_MM, WALL_MM, from_ventricles

SHAPE, SPACING = (40, 48, 40), (4.0, 4.0, 4.0)


def template(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Subject:
    """The template as a scan."""
    grid = grids.ModelGrid(shape, spacing)
    maps = mni_template.on_grid(grid)
    brain = np.asarray(maps.brain) > 0
    return Subject('template', 0.8 * np.asarray(maps.t1) * brain, brain, None, None, grid.affine)


def changed(healthy: Subject, name: str, bias_field: str = 'none') -> Subject:
    """The scan with the change whose name begins so."""
    changes = robustness.changes_of(SPACING)
    (change,) = (one for title, one in changes.items() if title.startswith(name))
    key = jax.random.key(0)
    return robustness._changed(jax.jit(change.made), healthy, key, healthy.affine, bias_field)


def test_changes_keep_the_level_of_white_matter_and_do_what_they_say():
    healthy = template(SHAPE, SPACING)
    brain = healthy.brain
    level = np.percentile(healthy.image[brain], 75)
    same = changed(healthy, 'as they are')
    np.testing.assert_allclose(same.image, healthy.image, atol=1e-6)
    names = ('shading', 'darker', 'ventricles', 'slices', 'blur')
    found = {name: changed(healthy, name) for name in names}
    for one in found.values():
        np.testing.assert_allclose(np.percentile(one.image[brain], 75), level, rtol=1e-3)
    unclipped = brain & (healthy.image > 0.1) & (found['shading'].image < 1)
    ratio = np.log(found['shading'].image[unclipped] / healthy.image[unclipped])
    assert 0.2 < ratio.std() < 0.35  # less than 0.3 where the brightest voxels are clipped
    even = changed(healthy, 'shading', 'auto').image
    off = [np.abs(image - healthy.image).mean() for image in (even, found['shading'].image)]
    assert off[0] < 0.4 * off[1]
    z = np.argwhere(brain)[:, 2]
    darker = found['darker'].image[brain] / np.maximum(healthy.image[brain], 1e-3)
    assert np.median(darker[z < 6]) < 0.75 * np.median(darker[z > 20])
    distance = np.asarray(from_ventricles(SHAPE, SPACING, CENTRE_MM)[0])
    wall = brain & (distance > WALL_MM) & (distance < WALL_MM + 3)
    assert found['ventricles'].image[wall].mean() < 0.7 * healthy.image[wall].mean()
    for name in ('slices', 'blur'):
        assert found[name].image[brain].std() < 0.97 * healthy.image[brain].std(), name
    change = robustness.changes_of(SPACING)['brain mask up to 3 mm off'].made
    masks = [
        change(jax.random.key(k), healthy.image, brain.astype(np.float32))[1] for k in range(9)
    ]
    sizes = [float(mask.sum()) - brain.sum() for mask in masks]
    assert min(sizes) < -100 and max(sizes) > 100  # too tight, and too wide


@pytest.mark.slow
def test_what_is_marked_is_counted(smoke_run, monkeypatch, capsys):
    from fluidjax.runs.load import load_run

    grid = load_run(smoke_run).grid
    healthy = template(grid.shape, grid.spacing)
    monkeypatch.setattr(robustness, '_healthy', lambda run, scans: [healthy])
    monkeypatch.setattr(robustness.thresholds, 'load', lambda run, rule: -1.0)  # marks all
    table = robustness.measure(smoke_run, ['scan'], draws=2)
    everything = float(healthy.brain.sum()) * np.prod(grid.spacing) / 1000.0
    assert table['as they are']['most'] == pytest.approx(everything)
    assert table['as they are']['draws'] == 1 and table['ventricles + 6 mm']['draws'] == 2
    assert 0 < table['as they are']['ventricles'] < 0.5 * everything
    assert list(table['as they are']['scans']) == ['template'] and table['threshold'] == -1.0
    assert 'ventricles + 6 mm' in capsys.readouterr().err


def test_scans_and_models_that_cannot_be_used_are_named(smoke_run, tmp_path, capsys, monkeypatch):
    with pytest.raises(UserError, match='no scan in .*nothing.nii'):
        robustness.measure(smoke_run, [str(tmp_path / 'nothing.nii.gz')], draws=1)
    assert 'nothing.nii.gz' in capsys.readouterr().err
    mask = SimpleNamespace(method=SimpleNamespace(needs_mask=True), config=config_of('inpainting'))
    monkeypatch.setattr(robustness, 'load_run', lambda path: mask)
    with pytest.raises(UserError, match='inpainting needs a mask'):
        robustness.measure(smoke_run, ['scan'], draws=1)


def test_a_file_is_read_as_predict_reads_it(smoke_run, tmp_path, capsys):
    from data_pipelines.volume_io import save_volume
    from fluidjax.runs.load import load_run

    healthy = template(SHAPE, SPACING)
    save_volume(tmp_path / 'scan.nii.gz', healthy.image, healthy.affine)
    (tmp_path / 'broken.nii.gz').write_bytes(b'no image')
    (case,) = robustness._healthy(load_run(smoke_run), [str(tmp_path)])
    assert case.brain.any() and case.name.endswith('scan.nii.gz')
    assert 'broken.nii.gz' in capsys.readouterr().err
