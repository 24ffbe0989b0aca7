"""Recipes and thresholds kept beside the checkpoint, and a detector's maps of one scan."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Subject
from fluidjax.detect.recipe import Recipe, Spread
from fluidjax.runs import thresholds
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.detector import Choice, Detector, configured
from fluidjax.runs.load import Run

CONFIG = ldm.get_config('smoke')
GRID = model_grid(CONFIG)


@pytest.fixture(scope='module')
def cases():
    """Two brains with a dark block each."""
    brain = np.zeros(GRID.shape, bool)
    brain[3:13, 3:13, 3:13] = True
    made = []
    for number in range(2):
        lesion = np.zeros(GRID.shape, bool)
        lesion[5:8, 5:8, 5 + number : 8 + number] = True
        image = np.where(lesion, 0.1, 0.7 * brain).astype(np.float32)
        made.append(Subject(f'case{number}', image, brain, lesion, None, np.diag([12.0] * 3 + [1])))
    return made


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A method whose counterparts are the scan and a constant more or less of it."""

    needs_mask = False
    autoencoder = None
    num_counterparts: int = 2

    def reconstruct(self, params, volumes, key):
        return volumes + 0.1

    def counterparts(self, params, volumes, key):
        return jax.numpy.stack([volumes + 0.1, volumes + 0.3])


def detector(method):
    config = ldm.get_config('smoke')
    config.detect.reference = 'scan'
    config.detect.map.smoothing_mm = 0.0
    return Detector(Run(config, GRID, method, {}, 7))


def test_a_map_is_the_mean_over_counterparts_and_their_spread_its_uncertainty(cases):
    output = detector(Drawing()).detect(cases)
    inside = np.stack([case.brain for case in cases])
    np.testing.assert_allclose(output.maps[inside], 0.2, atol=1e-6)
    np.testing.assert_allclose(output.uncertainty[inside], 0.1, atol=1e-6)
    assert not output.maps[~inside].any() and not output.uncertainty[~inside].any()
    expected = np.stack([case.image for case in cases])[inside] + 0.2
    np.testing.assert_allclose(output.counterparts[inside], expected, atol=1e-6)


def test_one_counterpart_has_no_uncertainty(cases):
    output = detector(Drawing(num_counterparts=1)).detect(cases)
    assert output.uncertainty is None
    np.testing.assert_allclose(output.maps[0][cases[0].brain], 0.1, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Sided(Drawing):
    """Sees lesions in the half of low x alone."""

    num_counterparts: int = 1

    def reconstruct(self, params, volumes, key):
        low = jax.numpy.arange(volumes.shape[1])[:, None, None, None] < volumes.shape[1] // 2
        return volumes + 0.2 * low


def test_a_mirrored_scan_has_its_say(cases):
    run = detector(Sided()).run
    alone = Detector(run).detect(cases)
    run.config.detect.mirror = True
    both = Detector(run).detect(cases)
    brain = cases[0].brain
    assert alone.uncertainty is None and np.ptp(alone.maps[0][brain]) == pytest.approx(0.2)
    np.testing.assert_allclose(both.maps[0][brain], 0.1, atol=1e-6)
    np.testing.assert_allclose(both.uncertainty[0][brain], 0.1, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Returns the scan and a little more."""

    def reconstruct(self, params, volumes, key):
        return volumes + 0.04


@dataclasses.dataclass(frozen=True)
class Coded(Drawing):
    num_counterparts: int = 1
    autoencoder: Autoencoder = Autoencoder()


@pytest.mark.parametrize(
    'reference,expected', [('scan', 0.1), ('autoencoder', 0.06), ('both', np.sqrt(0.1 * 0.06))]
)
def test_a_counterpart_is_held_against_the_chosen_reference(cases, reference, expected):
    run = detector(Coded()).run
    run.config.detect.reference = reference
    output = Detector(run).detect(cases)
    np.testing.assert_allclose(output.maps[0][cases[0].brain], expected, atol=1e-6)


def test_an_autoencoder_is_asked_for_where_there_is_none():
    config = ldm.get_config('smoke')
    config.detect.reference = 'autoencoder'
    with pytest.raises(UserError, match='detect.reference: conddiff has no autoencoder'):
        Detector(Run(config, GRID, Drawing(), {}, 7))


def run_at(folder, step=7, method=Drawing()):
    return Run(ldm.get_config('smoke'), GRID, method, {}, step, folder)


def saved(folder, rules, recipe=None, spreads=None):
    """Thresholds of a run at step 7, as its evaluation writes them."""
    run = run_at(folder)
    choice = Choice(recipe or Recipe(), spreads or {})
    thresholds.save(folder, run, {'conddiff': rules}, {'conddiff': choice})


def test_thresholds_are_kept_with_their_step_and_found_again(cases, tmp_path):
    maps = np.stack([np.where(case.lesion, 0.5, 0.1) for case in cases])
    healthy = [dataclasses.replace(case, lesion=None) for case in cases]
    rules = thresholds.Rules()
    rules.add_healthy(maps, healthy)
    for one, case in zip(maps, cases):
        rules.add([one], [case])
    chosen = rules.thresholds()
    assert list(chosen) == list(thresholds.RULES)
    assert rules.scores() == {'ap': 1.0, 'dice': 1.0}
    saved(tmp_path, chosen)
    run = run_at(tmp_path)
    assert thresholds.load(run) == pytest.approx(0.5)
    # All healthy voxels have 0.1: the threshold that marks at most 1 % of them must be higher.
    assert 0.1 < thresholds.load(run, 'fpr_1') <= 0.5
    with pytest.raises(UserError, match='healthy_1ml of conddiff .it needs 9 healthy'):
        thresholds.load(run, 'healthy_1ml')


@pytest.mark.parametrize(
    'step,rule,message',
    [
        (8, 'dice', 'is of step 7, the run is at step 8'),
        (7, 'fpr_1', 'no threshold fpr_1 of conddiff'),
        (7, 'best', "'best': is not one of dice"),
    ],
)
def test_a_missing_threshold_says_what_to_do(tmp_path, step, rule, message):
    saved(tmp_path, {'dice': 0.5, 'fpr_1': float('nan')})
    assert json.loads((tmp_path / 'calibration.json').read_text())['step'] == 7  # NaN is null
    with pytest.raises(UserError, match=message):
        thresholds.load(run_at(tmp_path, step), rule)


def test_thresholds_of_other_settings_are_refused(tmp_path):
    saved(tmp_path, {'dice': 0.5})
    run = run_at(tmp_path)
    run.config.detect.batch_size = 7  # changes no map
    assert thresholds.load(run) == 0.5
    run.config.detect.map.erosion_mm = 8.0
    for read in (thresholds.load, thresholds.load_choice):
        with pytest.raises(UserError, match=r'other settings \(config.detect.map has changed\)'):
            read(run)


def test_a_recipe_and_its_healthy_residual_are_found_again(tmp_path):
    rng = np.random.default_rng(0)
    spread = Spread(*(rng.random((2, *GRID.shape)).astype(np.float16).astype(np.float32)))
    recipe = Recipe('scan', True, 'darker', 5.0, 'spread')
    saved(tmp_path, {'dice': 0.5}, recipe, {'scan': spread})
    found = thresholds.load_choice(run_at(tmp_path))
    assert found.recipe == recipe
    np.testing.assert_array_equal(found.spreads['scan'].mean, spread.mean)
    np.testing.assert_array_equal(found.spreads['scan'].deviation, spread.deviation)
    (tmp_path / thresholds.HEALTHY_FILE).unlink()
    with pytest.raises(UserError, match='is missing; evaluate it again'):
        thresholds.load_choice(run_at(tmp_path))


def test_without_a_choice_the_configuration_says_how_maps_are_made(tmp_path):
    run = run_at(tmp_path, method=Coded())
    choice = thresholds.load_choice(run)
    assert choice.recipe == configured(run.config, run.method)
    assert choice.recipe.reference == 'autoencoder'
    assert not choice.spreads


class Headed(Drawing):
    """It has a head, which is not asked."""

    probability = Drawing.reconstruct


@pytest.mark.parametrize('method,usual', [(Drawing(), 'none'), (Headed(), 'product')])
def test_a_head_is_used_where_there_is_one(method, usual):
    config = ldm.get_config('smoke')
    config.detect.reference = 'scan'
    assert config.detect.head == 'auto' and configured(config, method).head == usual
    config.detect.head = 'none'
    assert configured(config, method).head == 'none'
    config.detect.head = 'some'
    with pytest.raises(UserError, match="config.detect.head: 'some' is not one of auto, none"):
        configured(config, method)
    del config.detect.head  # an older run
    assert configured(config, method).head == usual


def test_thresholds_of_a_run_from_before_the_field_head_still_hold(tmp_path):
    older = run_at(tmp_path)
    del older.config.detect.head
    thresholds.save(tmp_path, older, {'conddiff': {'dice': 0.5}}, {'conddiff': Choice(Recipe())})
    assert thresholds.load(older) == 0.5 and thresholds.load_choice(older).recipe == Recipe()


@dataclasses.dataclass(frozen=True)
class Noisy(Drawing):
    """Its counterparts are noise."""

    num_counterparts: int = 1

    def reconstruct(self, params, volumes, key):
        return volumes + jax.random.normal(key, volumes.shape)


def test_the_noise_of_a_scan_does_not_depend_on_its_place(cases):
    other = dataclasses.replace(cases[1], image=0.9 * cases[1].image)
    first = detector(Noisy()).detect([cases[0], other, cases[1]])
    second = detector(Noisy()).detect([cases[1], cases[0]])
    np.testing.assert_array_equal(first.maps[0], second.maps[1])
    np.testing.assert_array_equal(first.maps[2], second.maps[0])
    assert not np.array_equal(first.maps[0], first.maps[2])


def test_a_run_that_was_not_evaluated_says_so(tmp_path):
    with pytest.raises(UserError, match='fluidjax eval'):
        thresholds.load(Run(CONFIG, GRID, Drawing(), {}, 7, tmp_path))
