"""fluidjax from Python: images in, images out, on the scan's own voxels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import fluidjax
from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.predict import api

SLOW_FLOW = {'perlin_periods': (2, 2, 2), 'velocity_scale': 50.0}  # compiled once for all tests


@pytest.fixture(scope='module')
def scan():
    """The template as an oblique scan, voxels stored left to right, back to front."""
    from data_pipelines import grids, mni_template, resampling

    maps = mni_template.load_template(8.0)
    turn = np.deg2rad(10)
    axes = np.array(
        [[-np.cos(turn), np.sin(turn), 0], [-np.sin(turn), -np.cos(turn), 0], [0, 0, 1.2]]
    )
    affine = np.eye(4)
    affine[:3, :3] = 7.0 * axes
    shape = (28, 32, 24)
    centre = (np.array(shape) - 1) / 2
    affine[:3, 3] = np.array(grids.MNI_BRAIN_CENTRE) - affine[:3, :3] @ centre
    affine = affine.astype(np.float32).astype(float)  # as a file holds it
    positions = grids.voxel_positions(shape, affine)
    image = resampling.sample(maps.t1, maps.affine, positions)
    brain = resampling.sample(maps.brain, maps.affine, positions) >= 0.5
    return nib.Nifti1Image(np.where(brain, 1000 * image, 0).astype(np.float32), affine)


@pytest.fixture(scope='module')
def model(smoke_run):
    return fluidjax.load(smoke_run)


@pytest.fixture(scope='module')
def found(model, scan):
    return model.detect(scan)


def test_importing_fluidjax_stays_light(checkout):
    code = (
        "import sys, fluidjax; dir(fluidjax); assert 'load' in dir(fluidjax); "
        "assert not {'jax', 'tensorflow', 'numpy', 'nibabel'} & set(sys.modules); "
        "assert not hasattr(fluidjax, 'lode'); fluidjax.load; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, '-c', code], cwd=checkout, check=True)


def test_a_detection_lies_on_the_scan(found, scan):
    images = (found.healthy, found.anomaly_map, found.mask, found.brain_mask)
    for image in images:
        assert image.shape == scan.shape
        np.testing.assert_array_equal(image.affine, scan.affine)
    assert found.uncertainty is None and found.threshold == 0.1 and found.overlap > 0.8
    brain = np.asarray(found.brain_mask.dataobj) > 0
    truth = scan.get_fdata() > 0
    assert 2 * (brain & truth).sum() / (brain.sum() + truth.sum()) > 0.9
    mask = np.asarray(found.mask.dataobj)
    assert mask.dtype == np.uint8 and mask.any() and not mask[~brain].any()
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    assert found.volume_ml == pytest.approx(mask.sum() * voxel_ml)


def test_paths_and_images_and_lists_give_the_same(model, found, scan, tmp_path):
    path = tmp_path / 'scan.nii.gz'
    nib.save(scan, path)
    four = nib.Nifti1Image(np.asarray(scan.dataobj)[..., None], scan.affine)
    both = model.detect([path, four])
    assert len(both) == 2
    for one in both:
        assert one.mask.shape == scan.shape
        np.testing.assert_allclose(
            one.anomaly_map.get_fdata(), found.anomaly_map.get_fdata(), atol=1e-5
        )


def test_a_threshold_in_numbers(model, scan):
    assert not np.asarray(model.detect(scan, threshold=1e3).mask.dataobj).any()
    with pytest.raises(UserError, match='is not one of'):
        model.detect(scan, threshold='best')


def test_a_lesion_is_filled_and_the_rest_of_the_head_is_the_scan(model, scan):
    lesion = np.zeros(scan.shape, np.uint8)
    lesion[8:11, 14:17, 11:14] = 1
    data = np.asarray(scan.dataobj) + 50 * (np.asarray(scan.dataobj) == 0)  # a skull, so to say
    brain = np.asarray(scan.dataobj) > 0
    diseased = nib.Nifti1Image(np.where(brain & (lesion > 0), 0.3 * data, data), scan.affine)
    filled = model.fill(diseased, nib.Nifti1Image(lesion, scan.affine)).get_fdata()
    inside = brain & (lesion > 0)
    far = np.ones(scan.shape, bool)
    far[7:12, 13:18, 10:15] = False
    np.testing.assert_allclose(filled[far], diseased.get_fdata()[far], rtol=1e-6)
    assert np.abs(filled - diseased.get_fdata())[inside].min() > 0
    elsewhere = scan.affine + 1000 * np.eye(4, k=3)
    with pytest.raises(UserError, match='lies elsewhere by its header'):
        model.fill(diseased, nib.Nifti1Image(lesion, elsewhere))


@pytest.fixture
def filler(monkeypatch):
    """A model that fills with 7 where the brain is, x < 5, and that was not loaded."""
    brain = np.zeros((10, 10, 10), bool)
    brain[:5] = True

    def predicted(self, volume, marked, steps, counterpart):
        healthy = np.where(marked(None), 7.0, volume.data).astype(np.float32)
        made = SimpleNamespace(brain=brain, healthy_in_scan_units=healthy)
        return made, SimpleNamespace(warnings=('strong shading',)), None

    monkeypatch.setattr(api.Model, '_predicted', predicted)
    return object.__new__(api.Model)


def _ball(where, shift=0.0):
    data = np.zeros((10, 10, 10), np.float32)
    data[where] = 1.0
    return nib.Nifti1Image(data, np.eye(4) + shift * np.eye(4, k=3))


SCAN = nib.Nifti1Image(np.ones((10, 10, 10), np.float32), np.eye(4))


def test_what_is_not_filled_is_said(filler):
    """A mask of 64 voxels, of which half lie outside the brain, and its affine is a little off."""
    with pytest.warns(UserWarning) as warned:
        filled = filler.fill(SCAN, _ball(np.s_[3:7, 3:7, 3:7], 0.01)).get_fdata()
    assert (filled[3:5, 3:7, 3:7] == 7).all() and (filled == 7).sum() == 32
    lines = [str(one.message) for one in warned]
    assert 'the image: strong shading' in lines
    assert any('0.032 ml of the lesion mask' in line and 'not filled' in line for line in lines)
    assert {one.filename for one in warned} == {__file__}


def test_a_lesion_outside_the_brain_is_refused(filler):
    with pytest.raises(UserError, match='20 % of this lesion mask lie in the brain'):
        filler.fill(SCAN, _ball(np.s_[4:9, 3:7, 3:7]))


def test_the_counterpart_is_the_scan_or_the_models(model, found, scan):
    plain = model.detect(scan, counterpart='model')
    np.testing.assert_array_equal(plain.mask.dataobj, found.mask.dataobj)
    marked = np.asarray(found.mask.dataobj) > 0
    brain = np.asarray(found.brain_mask.dataobj) > 0
    away = brain & ~ndimage.binary_dilation(marked, iterations=2)
    of_scan = np.abs(found.healthy.get_fdata() - scan.get_fdata())
    np.testing.assert_allclose(of_scan[away], 0.0, atol=1e-3)
    assert np.abs(plain.healthy.get_fdata() - scan.get_fdata())[brain].mean() > 1.0
    with pytest.raises(UserError, match="counterpart: 'both' is not one of filled, model"):
        model.detect(scan, counterpart='both')


def test_a_package_detects_as_its_run_does(smoke_run, found, scan, tmp_path):
    from fluidjax.runs import export

    export.export(smoke_run, tmp_path / 'model.zip')
    again = fluidjax.load(str(tmp_path / 'model.zip')).detect(scan)
    np.testing.assert_array_equal(again.anomaly_map.dataobj, found.anomaly_map.dataobj)
    assert again.threshold == found.threshold


def test_what_cannot_be_used_is_said(model, scan, smoke_run, tmp_path):
    for data, message in (
        (np.full(scan.shape, np.nan), 'the image.*NaN'),
        (np.zeros(scan.shape), 'the image.*zeros'),
        (np.zeros((*scan.shape, 2)), 'the image'),
    ):
        with pytest.raises(UserError, match=message):
            model.detect(nib.Nifti1Image(data.astype(np.float32), scan.affine))
    with pytest.raises(UserError, match='no such file'):
        model.detect(tmp_path / 'none.nii')
    with pytest.raises(UserError, match='no such file'):
        fluidjax.load(tmp_path / 'none')
    run = tmp_path / 'run'
    shutil.copytree(smoke_run, run)
    (run / 'calibration.json').unlink()
    with pytest.raises(UserError, match='has no threshold yet'):
        fluidjax.load(run).detect(scan)
    with pytest.raises(ValueError):  # users need not know our exception
        fluidjax.load(run).detect(scan)


def test_pseudo_pathology_is_repeatable_and_local(scan):
    diseased, mask = fluidjax.pseudo_pathology(scan, 3, SLOW_FLOW)
    again, _ = fluidjax.pseudo_pathology(scan, 3, SLOW_FLOW)
    other, _ = fluidjax.pseudo_pathology(scan, 4, SLOW_FLOW)
    np.testing.assert_array_equal(diseased.dataobj, again.dataobj)
    assert (np.asarray(diseased.dataobj) != np.asarray(other.dataobj)).any()
    values, lesion = np.asarray(diseased.dataobj), np.asarray(mask.dataobj) > 0
    original = np.asarray(scan.dataobj)
    for image in (diseased, mask):
        np.testing.assert_array_equal(image.affine, scan.affine)
    assert values.dtype == np.float32 and lesion.any()
    assert values[lesion].mean() < 0.8 * original[lesion].mean()
    np.testing.assert_array_equal(values[original == 0], 0)


def test_pseudo_pathology_is_what_randomize_writes(scan, tmp_path):
    from configs import fluid
    from fluidjax.fluid.settings import FluidSettings
    from fluidjax.randomize import pairs

    path = tmp_path / 'scan.nii'
    nib.save(scan, path)
    settings = FluidSettings(**{**fluid.get_config().to_dict(), **SLOW_FLOW})
    pairs.make(pairs.Request((str(path),), settings, 1, seed=2), tmp_path / 'out')
    written = nib.load(tmp_path / 'out' / 'scan' / '001_diseased.nii.gz')
    diseased, _ = fluidjax.pseudo_pathology(path, 2, settings)
    np.testing.assert_allclose(diseased.dataobj, written.get_fdata(), rtol=1e-6)


@pytest.mark.parametrize(
    'seed,settings,message',
    [(-1, None, 'seed'), (0.5, None, 'seed'), (1, {'colour': 'red'}, 'colour')],
)
def test_settings_that_cannot_be_are_named(scan, seed, settings, message):
    with pytest.raises(UserError, match=message):
        fluidjax.pseudo_pathology(scan, seed, settings)


def test_the_checkpoint_in_use_is_the_last_or_the_best(tmp_path):
    from fluidjax.runs.load import _chosen_step
    from fluidjax.training import checkpoint

    with checkpoint.Writer(tmp_path / 'c') as writer:
        for step, loss in ((2, 0.5), (4, 0.1), (6, 0.3), (8, 0.4)):
            writer.save(step, {'w': np.zeros(2)})
            writer.record(step, loss)
    checkpoint.save(tmp_path / 'unmeasured', 2, {'w': np.zeros(2)})
    config = ldm.get_config('smoke')
    assert _chosen_step(config, tmp_path / 'c') == 8
    config.detect.checkpoint = 'best'
    assert _chosen_step(config, tmp_path / 'c') == 4
    assert _chosen_step(config, tmp_path / 'none') is None
    with pytest.raises(UserError, match='detect.checkpoint.*no checkpoint with a validation'):
        _chosen_step(config, tmp_path / 'unmeasured')
    config.detect.checkpoint = 'first'
    with pytest.raises(UserError, match='neither last nor best'):
        _chosen_step(config, tmp_path / 'c')
