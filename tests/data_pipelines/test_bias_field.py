"""N4 takes out a coil's shading, leaves a lesion, and is off by default."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic_heads as heads

from data_pipelines import bias_field, grids, preprocess
from data_pipelines.volume_io import Volume

DEMO = grids.GRIDS['demo']


@pytest.fixture
def quick(monkeypatch):
    """Fewer iterations, on fewer voxels."""
    monkeypatch.setattr(bias_field, 'ITERATIONS', (20, 10))
    monkeypatch.setattr(bias_field, 'WORKING_SPACING_MM', 6.0)


@pytest.fixture(scope='module')
def shaded():
    """Brain, its mask, and a field that doubles from back to front."""
    data, brain = heads.brain_and_mask()
    y = heads.GRID.positions()[..., 1]
    return data, brain, np.exp(np.log(2.0) * (y + 107) / 180).astype(np.float32)


def _spread(field, brain):
    return np.std(np.log(field[brain]))


@pytest.mark.slow
def test_shading_is_found(shaded):
    data, brain, truth = shaded
    field = bias_field.estimate(data * truth, brain, heads.GRID.affine)
    plain = bias_field.estimate(data, brain, heads.GRID.affine)
    assert field.shape == data.shape and field.dtype == np.float32 and (field > 0).all()
    assert _spread(truth / field, brain) < 0.4 * _spread(truth, brain)
    assert bias_field.strength(field, brain) > 1.4 > 1.25 > bias_field.strength(plain, brain)


def test_a_lesion_survives(shaded, quick):
    data, brain, _ = shaded
    distance = np.linalg.norm(heads.GRID.positions() - (30, -20, 20), axis=-1)
    lesion = (distance < 20) & brain
    dark = np.where(lesion, 0.6 * data, data)
    ratio = (
        dark
        / bias_field.estimate(dark, brain, heads.GRID.affine)
        / np.maximum(data / bias_field.estimate(data, brain, heads.GRID.affine), 1)
    )
    assert np.median(ratio[lesion]) < 0.7  # 0.6 without N4


def test_empty_and_tiny_brains_have_no_field():
    data = np.ones((5, 6, 7), np.float32)
    for brain in (data > 2, data > 0):
        field = bias_field.estimate(data, brain, np.eye(4))
        np.testing.assert_array_equal(field, data)


def test_it_is_a_step_of_preprocessing(shaded, quick):
    data, brain, truth = shaded
    scan = Volume(data * truth, heads.GRID.affine, 'scan.nii')
    plain = preprocess.preprocess(scan, DEMO, registration='none')
    made = preprocess.preprocess(scan, DEMO, registration='none', bias_field=True)
    assert plain.before is None and plain.shading == 1.0
    assert made.shading > 1.3
    np.testing.assert_allclose(made.before, plain.image, atol=1e-6)
    assert np.abs(made.image - plain.image).max() > 0.1


def test_it_repeats(shaded, quick):
    data, brain, truth = shaded
    first, second = (bias_field.estimate(data * truth, brain, heads.GRID.affine) for _ in range(2))
    np.testing.assert_array_equal(first, second)
