"""Scores of rows from cases that come in batches: no result depends on how many come at once."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from test_rows import BRAIN, GRID, Method, case

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.detect import calibrate, metrics
from fluidjax.detect import recipe as recipes
from fluidjax.runs import cases as cases_of_runs
from fluidjax.runs import rows, scoring
from fluidjax.runs.cases import Cases, Split
from fluidjax.runs.detector import Detector
from fluidjax.runs.load import Run
from fluidjax.sweep.cells import scan_of


def cases_from(seeds, lesion=True):
    return Cases(lambda: (case(seed, lesion) for seed in seeds))


def detector_of(batch_size):
    config = ldm.get_config('smoke')
    config.detect.update({'batch_size': batch_size, 'reference': 'scan'})
    config.detect.map.update({'erosion_mm': 0.0, 'smoothing_mm': 0.0})
    return Detector(Run(config, GRID, Method(), {}, 7))


def evaluated(batch_size):
    """Choices, lines, summaries and curves of two rows, and the maps that they came from."""
    detector = detector_of(batch_size)
    training = cases_from(range(6), lesion=False)
    table = rows.trivial_rows(detector, training)
    table = {name: table[name] for name in ('mirror_image', 'intensity')}
    split = Split(cases_from(range(20, 27)), cases_from(range(20, 30), False), None, None)
    chosen = scoring.calibrated(table, split, training, detector, search=True)
    maps, tests = {name: [] for name in table}, cases_from(range(40, 47))
    with scoring.scores_of(chosen) as scores:
        for _, outputs in scoring.scored(table, chosen, tests, detector, scores):
            for name, made in outputs.items():
                maps[name] += list(made.maps)
        found = {
            name: {'lines': one.lines(), 'summary': one.summary(), 'curve': one.curve()}
            for name, one in scores.items()
        }
    return chosen, found, maps, list(tests)


@pytest.fixture(scope='module')
def together():
    return evaluated(7)


def test_batches_change_nothing(together):
    chosen, found, _, _ = together
    others, again, _, _ = evaluated(1)
    assert {name: one.thresholds for name, one in others.items()} == {
        name: one.thresholds for name, one in chosen.items()
    }
    for name in found:
        assert others[name].choice.recipe == chosen[name].choice.recipe
        assert others[name].validation == chosen[name].validation
        assert again[name]['curve'] == found[name]['curve']
        for score, entry in found[name]['summary'].items():
            if score != 'seconds':
                assert again[name]['summary'][score] == entry, score


def test_thresholds_are_of_all_validation_cases_also_those_without_a_say_in_the_recipe(
    together, monkeypatch
):
    monkeypatch.setattr(recipes, 'MOST_VOXELS', 2 * BRAIN.size)
    detector = detector_of(3)
    row = rows.trivial_rows(detector, [case(0)])['intensity']
    split = Split(cases_from(range(20, 27)), cases_from(range(20, 30), False), None, None)
    of_two = scoring.calibrated({'intensity': row}, split, (), detector, search=True)['intensity']
    of_all = together[0]['intensity']
    assert of_two.choice.recipe == of_all.choice.recipe
    assert of_two.thresholds == of_all.thresholds


def test_scores_are_those_of_all_maps_at_once(together):
    chosen, found, maps, tests = together
    for name, one in found.items():
        threshold = chosen[name].thresholds['dice']
        dice = [metrics.dice_at(m, c.lesion, threshold, c.brain) for m, c in zip(maps[name], tests)]
        assert [line['dice_validated'] for line in one['lines']] == pytest.approx(dice)
        every = np.concatenate([m[c.brain] for m, c in zip(maps[name], tests)])
        truth = np.concatenate([c.lesion[c.brain] for c in tests])
        exact = metrics.best_dice(every, truth)[0]
        assert one['summary']['dice_global']['mean'] == pytest.approx(exact, abs=2e-3)
        best = calibrate.best_common(maps[name], tests).dice
        assert one['summary']['dice_best']['mean'] == pytest.approx(best, abs=2e-3)
        assert one['summary']['healthy_ml']['n'] == len(tests)
        assert one['summary']['seconds']['mean'] > 0


@pytest.fixture
def cohort(monkeypatch):
    """Five validation scans, and the number of scans that were read."""
    from data_pipelines import input_pipeline

    read = []

    def subjects(cohort, split):
        for seed in range(cohort.sizes[split]):
            read.append(seed)
            yield dataclasses.replace(case(seed), lesion=None, healthy=None)

    monkeypatch.setattr(input_pipeline, 'subjects', subjects)
    monkeypatch.setattr(input_pipeline, 'lesion_bank', lambda cohort: None)
    return SimpleNamespace(name='people', sizes={'validation': 5}, read=read)


def test_validation_scans_are_read_when_a_loop_reaches_them(cohort):
    config = ldm.get_config('smoke')
    every = cases_of_runs.split_validation(config, cohort, keep_half=True)
    assert not cohort.read
    first = [one.name for one in every.healthy]
    held_out = [one.name for one in every.held_out]
    assert (first, held_out) == (['0', '1'], ['2', '3', '4'])
    assert [one.name for one in every.healthy] == first  # every loop starts anew
    config.detect.validation_scans = 1
    few = cases_of_runs.split_validation(config, cohort, keep_half=True)
    assert [one.name for one in few.healthy] == first[:1]
    assert [one.name for one in few.held_out] == held_out
    del cohort.read[:]
    with_lesion, expected = next(iter(few.validation)), next(iter(every.validation))
    assert with_lesion.lesion.any() and cohort.read == [0, 0]
    np.testing.assert_array_equal(with_lesion.image, expected.image)
    config.detect.validation_scans = -1
    with pytest.raises(UserError, match='detect.validation_scans'):
        cases_of_runs.split_validation(config, cohort, keep_half=True)


def test_the_scans_held_out_are_those_of_the_user(cohort):
    """Embedded subjects, an eighth of those in training, come after them."""
    config = ldm.get_config('smoke')
    config.cohort.embedded = 8
    split = cases_of_runs.split_validation(config, cohort, keep_half=True)
    assert [one.name for one in split.healthy] == ['0', '1', '4']
    assert [one.name for one in split.held_out] == ['2', '3']
    split = cases_of_runs.split_validation(config, cohort, keep_half=False)
    assert [one.name for one in split.healthy] == ['0', '1', '2', '3', '4']


def test_a_scan_has_as_many_simulated_lesions_as_asked_for(cohort):
    config = ldm.get_config('smoke')
    scan = next(iter(cases_of_runs.split_validation(config, cohort, keep_half=True).healthy))
    made = list(cases_of_runs.with_simulated_lesions(config, [scan, scan], seed=1, draws=2))
    names = [f'{scan.name}-simulated-{draw}' for draw in (0, 1)]
    assert [one.name for one in made] == names * 2
    assert len({one.lesion.tobytes() for one in made}) == 4
    for one in made:
        np.testing.assert_array_equal(one.healthy, made[0].healthy)
        assert scan_of({'name': one.name}) == scan.name
    assert scan_of({'name': 'phantom-simulated-scan'}) == 'phantom-simulated-scan'


def test_validation_on_the_law_of_training_alone_leaves_the_scans_as_they_are(cohort):
    config = ldm.get_config('smoke')
    split = cases_of_runs.split_validation(config, cohort, keep_half=True, mixture=False)
    plain, with_lesion = next(iter(split.healthy)), next(iter(split.validation))
    np.testing.assert_array_equal(with_lesion.brain, plain.brain)
    np.testing.assert_allclose(with_lesion.healthy, plain.image, atol=1e-6)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_scans(checkout):
    """In a process of its own, because the peak of a process never falls.

    Recipes are compared on nine cases of this size, so that both numbers of scans have that peak.
    """
    import subprocess
    import sys

    code = (
        'from fluidjax.bench.evaluation import peak_memory;'
        'print(*(peak_memory(count, (96,) * 3) for count in (10, 40)))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=checkout, capture_output=True, text=True, check=True
    )
    few, many = map(float, done.stdout.split())
    assert many - few < 0.1  # GB; images, lesions and maps of 30 scans more are 0.24
