"""From the model's grid to the scan's voxels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.grids import voxel_positions
from data_pipelines.resampling import to_scan
from data_pipelines.volume_io import Volume
from fluidjax.base.subject import Subject
from fluidjax.predict import on_scan
from fluidjax.predict.on_scan import intensity_scale, predicted_on_scan
from fluidjax.runs.detector import Output

TURN = np.array([[0.96, -0.28, 0, 3], [0.28, 0.96, 0, -2], [0, 0, 1, 5], [0, 0, 0, 1]])
MODEL = np.array([[4.0, 0, 0, -60], [0, 4.0, 0, -64], [0, 0, 4.0, -56], [0, 0, 0, 1]])
SHAPE = (30, 32, 28)


def scan_of(values=None) -> Volume:
    affine = TURN @ np.diag([1.5, 2.5, 3.0, 1.0])
    shape = (12, 10, 9)
    return Volume(
        np.zeros(shape, np.float32)
        if values is None
        else values(voxel_positions(shape, affine)).astype(np.float32),
        affine,
        'scan.nii',
    )


def test_a_linear_field_is_carried_exactly():
    def field(positions):
        return positions @ np.array([0.3, -0.2, 0.5]) + 1

    carried = to_scan(field(voxel_positions(SHAPE, MODEL)), MODEL, scan_of())
    np.testing.assert_allclose(carried, scan_of(field).data, atol=1e-4)
    assert carried.dtype == np.float32


def test_beyond_the_models_grid_is_zero():
    far = Volume(
        np.zeros((4, 4, 4), np.float32), np.diag([1, 1, 1, 1.0]) + np.eye(4, k=3) * 500, 'far.nii'
    )
    assert not to_scan(np.ones(SHAPE), MODEL, far).any()


def ball(positions) -> np.ndarray:
    return (np.linalg.norm(positions - [8, 8, 16], axis=-1) < 9).astype(float)


@pytest.fixture(params=['filled', 'model'])
def predicted(request):
    return _predicted(request.param)


def _predicted(counterpart, marked=0.5):
    positions = voxel_positions(SHAPE, MODEL)
    brain, image = ball(positions) > 0, 0.5 + 0.01 * (positions[..., 0] - 8)
    case = Subject('a', (image * brain).astype(np.float32), brain, None, None, MODEL)
    scan = scan_of(lambda p: 20 + ball(p) * 400 * (0.5 + 0.01 * (p[..., 0] - 8)))
    anomaly = np.where(positions[..., 0] > 8, 1.0, 0.0)
    output = Output(anomaly[None], case.image[None], 0.0, 0.1 * anomaly[None])
    return predicted_on_scan(case, output, 0, marked, scan, 20.0, counterpart), scan


def test_the_models_counterpart_is_on_the_scans_scale():
    found, scan = _predicted('model')
    inside = found.brain & (scan.data > 20)
    assert found.offset == 20 and found.slope == pytest.approx(400, rel=0.03)
    error = np.abs(found.healthy_in_scan_units - scan.data)[inside]
    assert error.max() < 15  # its rim is as bright as its inside
    assert not found.healthy_in_scan_units[~found.brain].any()
    assert 0 <= found.image.min() and found.image.max() <= 1


def test_outside_the_marked_voxels_the_filled_counterpart_is_the_scan():
    found, scan = _predicted('filled')
    distance = ndimage.distance_transform_edt(~found.mask, sampling=(1.5, 2.5, 3.0))
    away = found.brain & (distance > 4.1)
    assert away.any()
    np.testing.assert_array_equal(found.healthy_in_scan_units[away], scan.data[away])
    known, _ = _predicted('filled', marked=found.mask & False)
    np.testing.assert_array_equal(
        known.healthy_in_scan_units, np.where(found.brain, scan.data, 0.0).astype(np.float32)
    )


def test_the_other_side_is_unknown_where_it_is_marked_too():
    rng = np.random.default_rng(0)
    image, mask = rng.random(SHAPE).astype(np.float32), rng.random(SHAPE) < 0.3
    case = Subject('a', image, np.ones(SHAPE, bool), None, None, MODEL)
    other = on_scan._other_side(case, mask, Volume(image, MODEL, 'scan.nii'))
    expected = np.where(mask[::-1], np.nan, image[::-1])
    np.testing.assert_allclose(other, expected, atol=1e-5)


def test_the_mask_is_where_the_written_map_reaches_the_threshold(predicted):
    found, _ = predicted
    np.testing.assert_array_equal(found.mask, (found.anomaly_map >= 0.5) & found.brain)
    assert 0 < found.mask.sum() < found.brain.sum()
    assert found.uncertainty.max() == pytest.approx(0.1)
    assert not found.anomaly_map[~found.brain].any()


def test_a_scan_without_contrast_has_a_scale_all_the_same():
    flat = np.zeros((4, 4, 4))
    for brain in (np.ones((4, 4, 4), bool), np.zeros((4, 4, 4), bool)):
        slope, offset = intensity_scale(flat, flat, brain, 0.0)
        assert slope > 0 and offset == 0


def test_the_scale_goes_through_the_background_that_preprocessing_took():
    brain = np.zeros((6, 6, 6), bool)
    brain[2:4, 2:4, 2:4] = True
    image = np.where(brain, 0.5, 0.0)
    data = np.where(brain, 560.0, 500.0)  # tissue at the faces; the skull, at 60, is darkest
    slope, offset = intensity_scale(data, image, brain, 60.0)
    assert (slope, offset) == (1000.0, 60.0)
