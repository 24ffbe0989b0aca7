"""Runs whose scans are synthesised: their validation scans and lesions."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ldm
from configs.methods import config_of
from data_pipelines import input_pipeline
from fluidjax.base.errors import UserError
from fluidjax.base.subject import TISSUES, Subject
from fluidjax.runs import cases, contrasts, evaluate
from fluidjax.runs.cohort import derived_seed, model_grid, open_cohort, trained_contrasts
from fluidjax.runs.load import Run
from fluidjax.runs.stages import build_stages, synthesis_settings

CONFIG = ldm.get_config('smoke,method=fluidjax,contrast=any')
GRID = model_grid(CONFIG)


@pytest.fixture(scope='module')
def cohort(store):
    CONFIG.cohort.store = str(store)
    return open_cohort(CONFIG)


def test_contrasts_take_turns_and_say_how_lesions_look():
    settings = synthesis_settings(CONFIG)
    names = [contrasts.contrast_of(settings, number) for number in range(5)]
    assert names == ['t1w', 't2w', 'flair', 't1ce', 't1w']
    bright = [contrasts.has_bright_lesions(settings, number) for number in range(4)]
    assert bright == [False, True, True, False]
    assert contrasts.contrast_of(None, 3) == 't1w'
    only = dataclasses.replace(settings, contrasts=('random',))
    assert contrasts.contrast_of(only, 1) == 'random'


def test_validation_scans_are_synthesised_each_in_its_contrast(cohort):
    scans = list(cases.healthy_of(CONFIG, cohort, 'train', stop=4))
    again = list(cases.healthy_of(CONFIG, cohort, 'train', stop=4))
    given = list(input_pipeline.subjects(cohort, 'train'))[:4]
    for scan, same, own in zip(scans, again, given, strict=True):
        np.testing.assert_array_equal(scan.image, same.image)
        assert not scan.image[~own.brain].any() and 0 < scan.image.max() <= 1
        assert np.abs(scan.image - own.image).max() > 0.05
    csf = [scan.image[scan.tissue[..., 0] > 128].mean() for scan in scans]
    white = [scan.image[scan.tissue[..., 2] > 128].mean() for scan in scans]
    assert [a > b for a, b in zip(csf, white)] == [False, True, False, False]
    assert [scan.name.rsplit('-', 1)[1] for scan in scans] == ['t1w', 't2w', 'flair', 't1ce']


def test_synthesised_scans_have_the_level_of_real_ones(cohort):
    for scan in cases.healthy_of(CONFIG, cohort, 'validation', stop=4):
        white = scan.tissue[..., TISSUES.index('white')]
        pure = scan.image[scan.brain & (white >= np.quantile(white[scan.brain], 0.75))]
        contrast = scan.name.rpartition('-')[2]
        expected = {'t1w': 0.82, 't1ce': 0.82, 't2w': 0.28, 'flair': 0.5}[contrast]
        assert np.median(pure) == pytest.approx(expected, abs=0.02)


def test_splits_have_random_numbers_of_their_own(cohort):
    scan = next(iter(input_pipeline.subjects(cohort, 'train')))
    settings = dataclasses.replace(synthesis_settings(CONFIG), contrasts=('flair',))
    make = lambda seed, first: next(contrasts.synthesised([scan], settings, GRID, seed, first))
    seeds = [derived_seed(0, f'scans of {split}') for split in ('train', 'validation', 'test')]
    images = [make(seed, 0).image for seed in seeds] + [make(seeds[0], 1).image]
    for a, b in itertools.combinations(images, 2):
        assert np.abs(a - b).max() > 0.02


def test_validation_lesions_are_as_bright_as_the_contrast_calls_for(cohort):
    split = cases.split_validation(CONFIG, cohort, keep_half=False)
    for case in split.validation:
        if 'as in training' not in case.name:
            continue
        change = (case.image - case.healthy)[case.lesion].mean()
        assert change > 0 if '-t2w-' in case.name else change < 0, case.name
    name, tested, _ = cases.own_test_set(CONFIG, cohort)
    assert name.endswith('-simulated') and len(list(tested)) == cohort.sizes['test']


def test_lesions_of_embedded_subjects_have_the_brightness_of_their_contrast_too(cohort):
    config = CONFIG.copy_and_resolve_references()
    config.cohort.embedded = 8  # so the second validation scan is an embedded one
    split = cases.split_validation(config, cohort, keep_half=False)
    found = [case.name.rpartition('-')[2] for case in split.healthy]
    settings = synthesis_settings(config)
    assert found == [contrasts.contrast_of(settings, number) for number in range(2)]


def test_a_cohort_without_tissue_is_refused():
    blank = np.zeros(GRID.shape, np.float32)
    bare = Subject('bare', blank, blank > 0, None, None, np.eye(4))
    with pytest.raises(UserError, match='bare: has no tissue fractions'):
        list(contrasts.synthesised([bare], synthesis_settings(CONFIG), GRID, 0))


def test_label_maps_are_not_scans():
    config = ldm.get_config('smoke,cohort=labels')
    config.cohort.data_dir = 'somewhere'
    with pytest.raises(UserError, match='config.cohort.labels'):
        open_cohort(config)


def test_a_run_of_several_contrasts_is_evaluated_for_one():
    run = Run(CONFIG, GRID, None, {}, 1)
    one = evaluate._for_contrast(run, 'flair')
    assert trained_contrasts(one.config) == ('flair',)
    assert trained_contrasts(run.config) == ('t1w', 't2w', 'flair', 't1ce')
    plain = dataclasses.replace(run, config=ldm.get_config('smoke'))
    assert evaluate._for_contrast(plain, 't1w') is plain
    for each, wrong in ((run, 'ct'), (plain, 'flair')):
        with pytest.raises(UserError, match=f'--contrast: {wrong} is none of those of this run'):
            evaluate._for_contrast(each, wrong)


@pytest.mark.parametrize('method', ['conddiff', 'fluidjax', 'severity', 'ldm', 'vae'])
def test_every_method_is_trained_on_any_contrast(method):
    config = config_of(method, 'smoke,contrast=any')
    grid = model_grid(config)
    volume = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    tissue = jax.ShapeDtypeStruct((1, *grid.shape, len(TISSUES)), jnp.uint8)
    batch, key = {'image': volume, 'brain': volume, 'tissue': tissue}, jax.random.key(0)
    for stage in build_stages(config, grid):
        params = jax.eval_shape(stage.method.init, key)
        assert jax.eval_shape(stage.method.loss, params, batch, key)[0].shape == ()
    del config.wide
    if method not in ('ldm', 'vae'):
        with pytest.raises(UserError, match='only law=wide paints lesions in other contrasts'):
            build_stages(config, grid)


def test_a_run_of_label_maps_is_evaluated_on_scans_or_on_label_maps(tmp_path):
    config = ldm.get_config('smoke,cohort=labels,contrast=any')
    config.cohort.data_dir = 'elsewhere'
    made = {}
    for folder, name in (('maps', 'subject01_seg.nii'), ('scans', 'sub-01_T1w.nii')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b'x')
        scans = {'data_dir': str(tmp_path / folder)}
        made[folder] = evaluate._with_scans(config, tmp_path, scans).cohort.labels
    assert made == {'maps': 'freesurfer', 'scans': ''}
    assert evaluate._with_scans(config, tmp_path, {'name': 'template'}).cohort.labels == ''
