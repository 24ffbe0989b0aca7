"""The rows of the table: what the trivial ones compare, and that all get the same treatment."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs import ldm
from fluidjax.base.subject import Subject
from fluidjax.detect.recipe import Recipe
from fluidjax.runs import rows
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.detector import Choice, Detector
from fluidjax.runs.load import Run

GRID = model_grid(ldm.get_config('smoke'))
BRAIN = np.zeros(GRID.shape, bool)
BRAIN[2:-2, 2:-2, 2:-2] = True


def case(seed, lesion=False):
    """A brain of noisy tissue, with or without a dark block on one side."""
    rng = np.random.default_rng(seed)
    healthy = (BRAIN * (0.6 + 0.1 * rng.random(GRID.shape))).astype(np.float32)
    mask = np.zeros(GRID.shape, bool)
    mask[3:6, 5:8, 5:8] = lesion
    image = np.where(mask, 0.2, healthy).astype(np.float32)
    return Subject(str(seed), image, BRAIN, mask, healthy, np.diag([12.0] * 3 + [1]))


@dataclasses.dataclass(frozen=True)
class Coder:
    """Returns the scan, a little darker."""

    def reconstruct(self, params, volumes, key):
        return 0.9 * volumes


@dataclasses.dataclass(frozen=True)
class Method:
    """Its counterpart is the scan, a little brighter."""

    needs_mask = False
    num_counterparts = 1
    autoencoder: Coder = Coder()

    def reconstruct(self, params, volumes, key):
        return 1.1 * volumes


@pytest.fixture(scope='module')
def detector():
    config = ldm.get_config('smoke')
    config.detect.map.update({'erosion_mm': 12.0, 'smoothing_mm': 0.0})
    return Detector(Run(config, GRID, Method(), {}, 7))


def test_without_a_search_trivial_rows_have_the_settings_of_the_run():
    config = ldm.get_config('smoke')
    config.detect.map.update({'smoothing_mm': 24.0, 'sign': 'darker'})
    config.detect.mirror = True
    detector = Detector(Run(config, GRID, Method(), {}, 7))
    table = rows.rows_of(detector, [case(seed) for seed in range(3)])
    cases = [case(7, lesion=True)]
    made = {
        name: rows.choose(row, cases, [case(8), case(9)], detector, search=False)
        for name, row in table.items()
    }
    for name, (choice, _) in made.items():
        recipe = choice.recipe
        assert recipe.smoothing_mm == 24.0, name
        assert recipe.sign == ('absolute' if name == 'intensity' else 'darker'), name
        assert recipe.mirror is (name not in ('intensity', 'mirror_image')), name
    maps = [
        detector.maps(made[name][1], cases, made[name][0]) for name in ('mean_brain', 'z_score')
    ]
    assert np.abs(maps[0] - maps[1]).max() > 0.01


@pytest.fixture(scope='module')
def table(detector):
    return rows.rows_of(detector, [case(seed) for seed in range(5)])


def test_every_row_loses_the_rim_that_one_loses(detector, table):
    inner = np.zeros_like(BRAIN)
    inner[3:-3, 3:-3, 3:-3] = True
    names = ['conddiff', 'autoencoder', 'mean_brain', 'z_score', 'mirror_image', 'intensity']
    assert list(table) == names
    for name, row in table.items():
        start = dataclasses.replace(row.start, unit=row.fixed.get('unit', ('intensity',))[0])
        made = rows.output(row, Choice(start, row.spreads or {}), [case(9, True)], detector)
        assert made.maps[0][inner].any(), name
        assert not made.maps[0][~inner].any(), name
        assert (made.counterparts is None) == (name in ('z_score', 'intensity'))


def test_what_trivial_rows_compare(detector, table):
    training = np.stack([case(seed).image for seed in range(5)])
    one = case(9, True)
    inner = (slice(3, -3),) * 3

    def map_of(name, **fields):
        row = table[name]
        recipe = dataclasses.replace(row.start, **fields)
        choice = Choice(recipe, row.spreads or {})
        return rows.output(row, choice, [one], detector).maps[0][inner]

    residual = (training.mean(axis=0) - one.image)[inner]
    spread = np.maximum(training.std(axis=0), 0.05)[inner]
    expected = np.maximum(residual, 0)
    np.testing.assert_allclose(map_of('mean_brain', sign='darker'), expected, atol=1e-5)
    z_score = map_of('z_score', sign='darker', unit='spread')
    np.testing.assert_allclose(z_score, expected / spread, atol=1e-4)
    mirrored = np.maximum(one.image[::-1] - one.image, 0)[inner]
    np.testing.assert_allclose(map_of('mirror_image', sign='darker'), mirrored, atol=1e-6)
    np.testing.assert_allclose(map_of('intensity'), 1.0 - one.image[inner], atol=1e-6)
    bright = map_of('intensity', reference='brightness')
    np.testing.assert_allclose(bright, one.image[inner], atol=1e-6)


def test_each_row_chooses_by_the_same_search(detector, table):
    validation = [case(seed, True) for seed in range(20, 26)]
    healthy = [case(seed) for seed in range(5)]
    for name in ('mean_brain', 'mirror_image', 'intensity'):
        choice, known = rows.choose(table[name], validation, healthy, detector)
        recipe = choice.recipe
        if name == 'intensity':
            assert recipe.reference == 'darkness'
        else:
            assert recipe.sign != 'brighter', name
        assert known.counterparts.shape[1] == len(validation)
        assert bool(choice.spreads) == (recipe.unit == 'spread')
        start, _ = rows.choose(table[name], validation, healthy, detector, search=False)
        assert start.recipe == table[name].unsearched
    limited = dataclasses.replace(table['mean_brain'], fixed={'sign': ('brighter',)})
    assert rows.choose(limited, validation, healthy, detector)[0].recipe.sign == 'brighter'
    assert Recipe().in_words() == 'absolute, 0 mm, scan'
