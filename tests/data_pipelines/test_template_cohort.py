"""The embedded cohort: anatomy, lesions, and records that depend on (seed, split, number) alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines import grids, resampling, template_cohort, template_lesions, template_subjects

DEMO, SMOKE = grids.GRIDS['demo'], grids.GRIDS['smoke']


@pytest.fixture(scope='module')
def diseased():
    """Four test subjects at demo scale."""
    return [template_cohort.make_record(DEMO, 'test', number) for number in range(4)]


def test_displacement_is_a_diffeomorphism():
    displacement = template_subjects.random_displacement(np.random.default_rng(3))
    assert 2.0 < displacement.std() < 5.0  # mm
    gradient = np.stack(
        [np.stack(np.gradient(displacement[..., c], 4.0), axis=-1) for c in range(3)], axis=-2
    )
    assert np.linalg.det(np.eye(3) + gradient).min() > 0.05


def test_exponential_of_a_constant_is_a_shift():
    velocity = np.broadcast_to(
        np.float32([3.0, -2.0, 1.0]), (*template_subjects.FIELD_GRID.shape, 3)
    )
    np.testing.assert_allclose(template_subjects.exponentiate(velocity), velocity, atol=1e-5)


def test_exponential_of_minus_v_is_the_inverse():
    rng = np.random.default_rng(0)
    velocity = 3.0 * np.stack(
        [template_subjects.smooth_noise(rng, 30.0) for _ in range(3)], axis=-1
    )
    forward = template_subjects.exponentiate(velocity)
    backward = template_subjects.exponentiate(-velocity)
    positions = template_subjects.FIELD_GRID.positions()
    back_home = forward + template_subjects.sample_field(backward, positions + forward)
    inner = (slice(6, -6),) * 3  # Away from the faces, where fields are held constant.
    assert np.abs(back_home[inner]).max() < 0.4
    assert np.abs(forward[inner]).max() > 4.0


def test_image_is_a_t1w_brain(diseased):
    for record in diseased:
        image, brain = record['healthy'], record['brain'].astype(bool)
        assert 0 <= image.min() and image.max() <= 1 and not image[~brain].any()
        assert 1200 < brain.sum() * DEMO.voxel_volume_ml < 2600
        assert 0.5 < np.median(image[brain]) < 0.8


def test_tissue_order_and_partition():
    anatomy = template_subjects.random_anatomy(np.random.default_rng(1), DEMO)
    scanner = template_subjects.random_scanner(np.random.default_rng(2), DEMO)
    image = template_subjects.clean_image(anatomy, scanner)
    csf, gm, wm = (image[f > 0.8].mean() for f in (anatomy.csf, anatomy.gm, anatomy.wm))
    assert csf < gm < wm
    deep = (anatomy.csf + anatomy.gm + anatomy.wm)[anatomy.brain]
    assert deep.min() >= 0.5 - 1e-4 and deep.max() <= 1 + 1e-4


def test_subjects_differ(diseased):
    images = np.stack([record['healthy'] for record in diseased])
    a, b = images[0][images[0] > 0], images[1][images[0] > 0]
    assert 0.3 < np.corrcoef(a, b)[0, 1] < 0.97


def test_the_same_subject_on_two_grids():
    fine = template_cohort.make_record(DEMO, 'train', 5)
    coarse = template_cohort.make_record(SMOKE, 'train', 5)
    seen = resampling.sample(
        resampling.antialias(fine['image'], DEMO.affine, 12.0), DEMO.affine, SMOKE.positions()
    )
    inside = coarse['brain'] > 0
    assert np.corrcoef(seen[inside], coarse['image'][inside])[0, 1] > 0.9


def test_records_repeat_and_do_not_depend_on_order(diseased):
    again = template_cohort.make_record(DEMO, 'test', 2)
    for key, value in diseased[2].items():
        np.testing.assert_array_equal(again[key], value)
    other_seed = template_cohort.make_record(DEMO, 'test', 2, seed=1)
    assert not np.array_equal(other_seed['image'], again['image'])


def test_records_do_not_depend_on_the_number_of_threads():
    one, four = (list(template_cohort.make_records(SMOKE, 'test', 3, n)) for n in (1, 4))
    for first, second in zip(one, four, strict=True):
        for key, value in first.items():
            np.testing.assert_array_equal(second[key], value)


def test_lesions_are_visible_and_inside_the_brain(diseased):
    for record in diseased:
        lesion, brain = record['lesion'].astype(bool), record['brain'].astype(bool)
        volume = lesion.sum() * DEMO.voxel_volume_ml
        low, high = template_lesions.VOLUME_RANGE_ML
        assert 0.95 * low < volume < 1.02 * high and not lesion[~brain].any()
        healthy, image = record['healthy'], record['image']
        assert (healthy - image)[lesion].mean() > 0.05  # Darker, as on T1w.
        assert healthy[lesion].mean() > 0.45  # Tissue lies there, not CSF.
        far = brain & ~_grown(lesion, 5)  # 12 mm and more.
        np.testing.assert_allclose(image[far], healthy[far], atol=5e-3)


def _grown(mask, iterations):
    return ndimage.binary_dilation(mask, iterations=iterations)


@pytest.mark.parametrize('volume_ml', [2.0, 12.0, 60.0])
def test_lesion_has_the_volume_asked_for(volume_ml):
    anatomy = template_subjects.random_anatomy(np.random.default_rng(4), DEMO)
    rng = np.random.default_rng(5)
    lesion = template_lesions.random_lesion(rng, DEMO, anatomy, volume_ml)
    assert lesion.mask.sum() == round(volume_ml / DEMO.voxel_volume_ml)
    np.testing.assert_array_equal(lesion.mask, lesion.profile >= 0.5)


def test_fresh_subjects_are_in_no_cohort():
    from data_pipelines import input_pipeline  # imports TensorFlow

    first, again = (
        next(input_pipeline.embedded_subjects(SMOKE, 1, number)) for number in (1000, 1000)
    )
    assert first.name == 'test-1000' and first.lesion.any() and first.healthy is not None
    np.testing.assert_array_equal(first.image, again.image)
    known = template_cohort.make_record(SMOKE, 'test', 0)
    assert not np.array_equal(first.image, known['image'])
