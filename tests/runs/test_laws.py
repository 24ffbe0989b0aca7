"""The lesions of the validation cases: one of each law in each scan, and what a law promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs import ldm
from fluidjax.base.subject import Subject
from fluidjax.methods.variants import VariantSettings
from fluidjax.runs import laws, scoring
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import fluid_settings, variant_settings

CONFIG = ldm.get_config('smoke')
GRID = model_grid(CONFIG)


@pytest.fixture(scope='module')
def healthy():
    brain = np.zeros(GRID.shape, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    image = (0.6 * brain).astype(np.float32)
    return [Subject(name, image, brain, None, None, np.diag([12.0] * 3 + [1])) for name in 'ab']


def painted(chosen, cases, **changes):
    paint = laws.lesions_by(chosen, GRID, fluid_settings(CONFIG), seed=3, **changes)
    return list(laws.in_turns(paint, len(chosen), cases))


@pytest.fixture(scope='module')
def diseased(healthy):
    """The first scan with a lesion of each law, in their order."""
    return painted(laws.MIXTURE, healthy[:1], variety=None)


def test_every_scan_has_a_lesion_of_every_law_and_neighbours_differ_in_both(healthy, diseased):
    both = painted(laws.MIXTURE, healthy, variety=None)
    names = {f'{case.name}-{law.name}' for case in healthy for law in laws.MIXTURE}
    assert {case.name for case in both} == names and len(both) == len(names)
    assert [case.name for case in both[:2]] == ['a-as in training', 'b-faint']
    assert all(case.lesion.any() and not (case.lesion & ~case.brain).any() for case in both)
    (again,) = (case for case in both if case.name == diseased[4].name)
    np.testing.assert_array_equal(diseased[4].image, again.image)


def test_a_run_trained_on_variants_is_validated_on_them(healthy):
    few, seen = laws.MIXTURE[:1], VariantSettings(share=1.0, mask_mm=0.0)
    (plain,) = painted(few, healthy[:1], variety=None)
    (varied,) = painted(few, healthy[:1], variety=None, variants=seen)
    np.testing.assert_array_equal(plain.lesion, varied.lesion)
    assert np.abs(plain.healthy - varied.healthy)[plain.brain].mean() > 0.01
    assert 'variants' not in CONFIG and variant_settings(CONFIG) is None
    assert variant_settings(ldm.get_config('smoke,law=wide')).share > 0


def test_each_lesion_is_in_a_deformed_scan_of_its_own(healthy):
    made = painted(laws.MIXTURE[:2], healthy[:1])
    assert not np.array_equal(made[0].brain, made[1].brain)
    assert not np.array_equal(made[0].healthy, made[1].healthy)
    for case in made:
        assert case.lesion.any() and not (case.lesion & ~case.brain).any()
        overlap = 2 * (case.brain & healthy[0].brain).sum()
        assert 0.7 < overlap / (case.brain.sum() + healthy[0].brain.sum()) < 1


def test_scans_keep_their_level_though_a_bright_lesion_has_the_maximum(healthy):
    scan = dataclasses.replace(healthy[0], image=(0.9 * healthy[0].image).astype(np.float32))
    for case in painted(laws.MIXTURE, [scan], variety=None):
        outside = case.brain & ~case.lesion
        np.testing.assert_allclose(case.healthy[outside], 0.54, atol=2e-3)
        np.testing.assert_allclose(np.median(case.image[outside]), 0.54, atol=2e-3)
    for case in painted(laws.MIXTURE, [scan]):  # recoloured
        assert np.percentile(case.healthy[case.brain], 75) == pytest.approx(0.54, abs=0.01)


def test_laws_differ_from_training_as_they_say(diseased):
    by_law = {law.name: diseased[place] for place, law in enumerate(laws.MIXTURE)}

    def change(name):
        """Mean of the lesion relative to the tissue around it, which has one intensity."""
        case = by_law[name]
        outside = np.median(case.image[case.brain & ~case.lesion])
        return case.image[case.lesion].mean() / outside - 1

    assert change('bright') > 0 > change('as in training')
    assert change('as in training') < change('faint') < 0
    volumes = {name: case.lesion.sum() for name, case in by_law.items()}
    assert volumes['large'] > volumes['small']


def test_controls_are_healthy_and_cases_of_unknown_truth_are_not(healthy, diseased):
    control = dataclasses.replace(healthy[0], lesion=np.zeros(GRID.shape, bool))
    found = scoring.healthy_of([diseased[0], control, healthy[1]])
    assert [case.name for case in found] == [diseased[0].name, control.name]
    assert not any(case.lesion.any() for case in found)
    np.testing.assert_array_equal(found[0].image, diseased[0].healthy)


def test_brightness_is_chosen_whatever_the_painting(healthy):
    """`una_equation` draws it from the scan, so validation lesions have the painting `una`."""
    settings = dataclasses.replace(fluid_settings(CONFIG), painting='una_equation')
    bright = next(law for law in laws.MIXTURE if law.name == 'bright')
    for flipped in (False, True):
        paint = laws.lesions_by(
            [bright], GRID, settings, seed=3, variety=None, bright=lambda number, f=flipped: f
        )
        changes = [
            (case.image - case.healthy)[case.lesion].mean()
            for case in laws.in_turns(paint, 1, healthy)
        ]
        assert all(change < 0 if flipped else change > 0 for change in changes)
