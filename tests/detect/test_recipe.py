"""Recipes: the maps that they make, the search, and the residual in healthy scans."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fluidjax.base.subject import Subject
from fluidjax.detect import recipe as recipes
from fluidjax.detect.anomaly_map import MapSettings
from fluidjax.detect.recipe import Evidence, Recipe

SHAPE, SPACING = (12, 12, 10), (4.0, 4.0, 4.0)
SETTINGS = MapSettings(smoothing_mm=0.0, erosion_mm=0.0)


@pytest.fixture(scope='module')
def cases():
    """Brains of one tissue with a lesion each, darker by half, and a bright rim of noise."""
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    made = []
    for number in range(6):
        lesion = np.zeros(SHAPE, bool)
        lesion[2 + number : 5 + number, 4:7, 3:6] = True
        image = brain * (0.6 + 0.05 * rng.random(SHAPE))
        image[1] += brain[1] * rng.choice([0.0, 0.4], size=SHAPE[1:])
        healthy = image.astype(np.float32)
        image = np.where(lesion, 0.5 * image, image).astype(np.float32)
        made.append(Subject(f'{number}', image, brain, lesion, healthy, np.diag([4.0] * 3 + [1])))
    return made


def evidence(cases, mirrored=True, probabilities=None):
    """The counterpart is the healthy tissue; the coded scan has a bias that the scan lacks."""
    images = np.stack([case.image for case in cases])
    flat = np.where(np.stack([case.brain for case in cases]), np.float32(0.62), 0)[None]
    return Evidence(
        {'scan': images, 'autoencoder': images + 0.01},
        flat,
        flat + 0.02 if mirrored else None,
        probabilities,
    )


def maps(known, recipe, cases, spreads=None):
    brains = [case.brain for case in cases]
    return recipes.maps_of(known, recipe, brains, SPACING, SETTINGS, spreads)


def test_maps_are_residuals_of_the_recipe(cases):
    known = evidence(cases)
    brain = np.stack([case.brain for case in cases])
    residual = np.where(brain, known.references['scan'] - known.counterparts[0], 0.0)
    for sign, expected in (
        ('darker', np.maximum(-residual, 0)),
        ('brighter', np.maximum(residual, 0)),
        ('absolute', np.abs(residual)),
    ):
        [made] = maps(known, Recipe('scan', sign=sign), cases)
        np.testing.assert_allclose(made, expected, atol=1e-6)
    mirrored = maps(known, Recipe('scan', True, 'darker'), cases)
    np.testing.assert_allclose(
        mirrored[1], np.where(brain, np.maximum(0.02 - residual, 0), 0), atol=1e-6
    )
    one = maps(known, Recipe('scan', sign='darker'), cases)
    other = maps(known, Recipe('autoencoder', sign='darker'), cases)
    both = maps(known, Recipe('both', sign='darker'), cases)
    np.testing.assert_allclose(both, np.sqrt(one * other), atol=1e-6)


def test_the_head_weights_the_map(cases):
    share = np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE)
    given = np.stack([np.stack([share] * len(cases)), np.stack([share[::-1]] * len(cases))])
    known, brain = evidence(cases, probabilities=given), np.stack([c.brain for c in cases])
    plain = maps(known, Recipe('scan', sign='darker'), cases)
    product = maps(known, Recipe('scan', sign='darker', head='product'), cases)
    np.testing.assert_allclose(product, plain * share, atol=1e-6)
    only = maps(known, Recipe('scan', mirror=True, head='only'), cases)
    np.testing.assert_allclose(only[0], (share + share[::-1]) / 2 * brain, atol=1e-6)


def test_the_search_finds_what_the_lesions_are(cases):
    known = evidence(cases)
    space = recipes.space_of(known, with_spread=False)
    assert space['reference'] == ('scan', 'autoencoder', 'both') and space['head'] == ('none',)
    found = recipes.choose(known, cases, space, Recipe('scan'), SPACING, SETTINGS)
    assert found.sign == 'darker'
    bright = [dataclasses.replace(c, image=2 * c.healthy - c.image) for c in cases]
    dark = Recipe('scan', sign='darker')
    found = recipes.choose(evidence(bright), bright, space, dark, SPACING, SETTINGS)
    assert found.sign in ('brighter', 'absolute')
    limited = space | {'sign': ('absolute',), 'smoothing_mm': (5.0,)}
    found = recipes.choose(known, cases, limited, Recipe('scan'), SPACING, SETTINGS)
    assert (found.sign, found.smoothing_mm) == ('absolute', 5.0)


def test_the_search_tries_what_is_configured(cases):
    known = evidence(cases)
    assert 4.0 in recipes.space_of(known, False, Recipe(smoothing_mm=4.0))['smoothing_mm']
    share = np.stack([[case.lesion.astype(np.float32) for case in cases]])
    blind = dataclasses.replace(
        known, counterparts=known.references['scan'][None], probabilities=share
    )
    own = Recipe('scan', head='only')
    space = recipes.space_of(blind, False, own)
    assert recipes.choose(blind, cases, space, own, SPACING, SETTINGS).head == 'only'


def test_the_residual_in_healthy_scans_is_taken_off_and_is_the_unit(cases):
    healthy = [dataclasses.replace(c, image=c.healthy, lesion=None) for c in cases]
    brains = [case.brain for case in cases]
    usual, inside = evidence(healthy), brains[0]
    sums = recipes.SpreadSums()
    for few in (healthy[:1], healthy[1:4], healthy[4:]):
        sums.add(evidence(few), [case.brain for case in few])
    spreads = sums.spreads(SPACING)
    together = recipes.SpreadSums()
    together.add(usual, brains)
    for name, spread in together.spreads(SPACING).items():
        for field in ('mean', 'deviation'):
            np.testing.assert_allclose(
                getattr(spreads[name], field), getattr(spread, field), rtol=1e-3, atol=1e-4
            )
    residuals = usual.references['scan'] - usual.samples(True)
    smooth = recipes.smooth_inside(residuals.mean(axis=(0, 1)), inside, SPACING, 10.0)
    np.testing.assert_allclose(spreads['scan'].mean, smooth, atol=1e-4)
    square = ((residuals - np.asarray(smooth)) ** 2).mean(axis=(0, 1))
    square = recipes.smooth_inside(square, inside, SPACING, 10.0)
    noisy = inside & (np.indices(SHAPE)[0] == 1)  # elsewhere the least deviation may hold
    found = spreads['scan'].deviation[noisy]
    np.testing.assert_allclose(found, np.sqrt(np.asarray(square))[noisy], rtol=2e-3)
    scan = spreads['scan']
    assert scan.deviation[inside].min() >= 0.499 * np.median(scan.deviation[inside])
    # The noisy rim varies most, so a difference there counts least.
    assert scan.deviation[1][inside[1]].mean() > 1.3 * scan.deviation[8][inside[8]].mean()
    recipe = Recipe('scan', sign='brighter', unit='spread')
    [made] = maps(usual, recipe, healthy, spreads)
    expected = (healthy[0].image - usual.counterparts[0, 0] - scan.mean) / scan.deviation
    np.testing.assert_allclose(made[0][inside], np.maximum(expected, 0)[inside], atol=2e-3)


def test_the_first_few_cases_fit_into_memory(cases, monkeypatch):
    left = iter(cases)
    monkeypatch.setattr(recipes, 'MOST_VOXELS', 2.5 * np.prod(SHAPE))
    assert recipes.first_few(left) == cases[:2] and next(left) is cases[2]
    monkeypatch.setattr(recipes, 'MOST_VOXELS', 1)
    assert recipes.first_few(cases) == cases[:1] and recipes.first_few([]) == []


def test_words(cases):
    recipe = Recipe('both', True, 'darker', 5.0, 'spread', 'product')
    assert recipe.in_words() == 'darker, 5 mm, both, mirrored, per healthy spread, times head'


def test_shifts_are_searched_before_the_division_by_a_spread():
    """Divided first, a neighbour with another spread would explain a lesion."""
    rng = np.random.default_rng(0)
    shape = (14, 14, 14)
    healthy = np.full(shape, 0.6, np.float32)
    spread = recipes.Spread(np.zeros(shape), rng.uniform(0.05, 0.25, shape).astype(np.float32))
    lesion = np.zeros(shape, bool)
    lesion[5:9, 5:9, 5:9] = True
    scan = np.where(lesion, 0.3, healthy).astype(np.float32)
    evidence = Evidence({'scan': scan[None]}, healthy[None, None])
    settings = MapSettings(smoothing_mm=0.0, erosion_mm=0.0, max_shift_voxels=2)
    made = recipes.maps_of(
        evidence,
        Recipe(unit='spread'),
        [np.ones(shape, bool)],
        (1.0, 1.0, 1.0),
        settings,
        {'scan': spread},
    )[0, 0]
    np.testing.assert_allclose(made[lesion], (0.3 / spread.deviation)[lesion], rtol=1e-4)
