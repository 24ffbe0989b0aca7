"""A coil's shading is measured and divided out, a lesion is not; unasked only if it is strong."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic_heads as heads

from data_pipelines import bias_field, grids, mni_template, preprocess
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError

DEMO = grids.GRIDS['demo']
IN_MNI = (heads.GRID.affine, np.eye(4))


@pytest.fixture(scope='module')
def shaded():
    """Brain, its mask, and a field that triples from back to front, and falls to the sides."""
    data, brain = heads.brain_and_mask()
    x, y, _ = np.moveaxis(heads.GRID.positions(), -1, 0)
    field = np.exp(np.log(3.0) * (y + 107) / 180 - 0.2 * (x / 70.0) ** 2)
    return data, brain, field.astype(np.float32)


def _spread(field, brain):
    return np.std(np.log(field[brain]))


def test_shading_is_found(shaded):
    data, brain, truth = shaded
    field = bias_field.estimate(data * truth, *IN_MNI)
    plain = bias_field.estimate(data, *IN_MNI)
    assert field.shape == data.shape and field.dtype == np.float32 and (field > 0).all()
    assert _spread(truth * plain / field, brain) < 0.25 * _spread(truth, brain)
    strong, weak = (bias_field.strength(image, *IN_MNI) for image in (data * truth, data))
    assert strong > bias_field.STRONG > 1.2 > weak


def test_the_field_follows_the_scan_not_the_array(shaded):
    data, _, truth = shaded
    field = bias_field.estimate(data * truth, *IN_MNI)
    turned = np.transpose(data * truth, (1, 2, 0))[:, ::-1]
    to_given = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, data.shape[2] - 1], [0, 0, 0, 1.0]])
    other = bias_field.estimate(turned, heads.GRID.affine @ to_given, np.eye(4))
    np.testing.assert_allclose(other, np.transpose(field, (1, 2, 0))[:, ::-1], rtol=1e-4)


def test_a_lesion_survives(shaded):
    data, brain, truth = shaded
    distance = np.linalg.norm(heads.GRID.positions() - (30, -20, 20), axis=-1)
    lesion = (distance < 15) & brain
    dark = np.where(lesion, 0.6, 1.0) * data * truth
    with_lesion, without = (bias_field.estimate(image, *IN_MNI) for image in (dark, data * truth))
    assert np.median((without / with_lesion)[lesion]) < 1.1  # 1.67 would hide it


def test_a_scan_without_tissue_has_no_field():
    data = np.ones((5, 6, 7), np.float32)
    for image in (0 * data, data):
        np.testing.assert_array_equal(bias_field.estimate(image, np.eye(4), np.eye(4)), data)
        assert bias_field.strength(image, np.eye(4), np.eye(4)) == 1.0


def test_it_is_a_step_of_preprocessing(shaded):
    data, brain, truth = shaded
    made = {}
    for name, image in (('shaded', data * truth), ('even', data)):
        scan = Volume(image, heads.GRID.affine, 'scan.nii')
        for choice in bias_field.CHOICES:
            made[name, choice] = preprocess.preprocess(
                scan, DEMO, registration='none', bias_field=choice
            )
    for name, choice in made:
        corrected = choice == 'always' or (name, choice) == ('shaded', 'auto')
        one, plain = made[name, choice], made[name, 'none']
        assert (one.before is not None) == corrected
        assert any('shading was corrected' in warning for warning in one.warnings) == corrected
        np.testing.assert_array_equal(one.before if corrected else one.image, plain.image)
    even, brain = made['even', 'none'].image, made['even', 'none'].brain
    worse, better = (
        np.abs(made['shaded', choice].image - even)[brain].mean() for choice in ('none', 'auto')
    )
    assert better < 0.3 * worse
    with pytest.raises(UserError, match="bias_field 'n4' is unknown; choose one of none, auto"):
        preprocess.preprocess(scan, DEMO, bias_field='n4')


def test_the_contrast_is_that_of_the_corrected_scan():
    maps = mni_template.on_grid(DEMO)
    image = 0.9 * maps.wm + 0.77 * maps.gm + 0.25 * maps.csf
    distance = np.linalg.norm(DEMO.positions() - grids.MNI_BRAIN_CENTRE, axis=-1) / 100.0
    shaded = (image * np.exp(2.2 * distance**2)).astype(np.float32)
    scan = Volume(shaded, DEMO.affine, 'scan.nii')
    left, made = (
        preprocess.preprocess(scan, DEMO, registration='none', bias_field=choice)
        for choice in ('none', 'auto')
    )
    assert left.contrast != 't1w' and left.faults
    assert made.contrast == 't1w' and not made.faults
