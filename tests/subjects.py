"""Small test subjects with known lesions."""

from __future__ import annotations

import numpy as np
import pytest

from fluidjax.base.subject import Subject


def _make_case(
    name: str, centre=(14, 12, 10), radius: float = 2.5, spacing=(4.0, 4.0, 4.0)
) -> Subject:
    """A brain of one tissue (an ellipsoid) with one dark ball in it."""
    places = np.indices((20, 24, 18)).astype(float)
    middle, half = np.array([10, 12, 9]), np.array([8, 10, 7])
    distance = ((places.T - middle) / half).T
    brain = (distance**2).sum(axis=0) < 1
    healthy = np.where(brain, 0.6 + 0.1 * np.sin(places[1]), 0.0).astype(np.float32)
    lesion = (((places.T - np.array(centre)) ** 2).sum(axis=-1).T < radius**2) & brain
    image = np.where(lesion, 0.2, healthy).astype(np.float32)
    return Subject(name, image, brain, lesion, healthy, np.diag([*spacing, 1.0]))


@pytest.fixture(scope='session')
def make_case():
    """A function (name, centre, radius, spacing) -> Subject."""
    return _make_case


@pytest.fixture(scope='session')
def cases(make_case):
    """Three subjects with lesions at different places."""
    return [
        make_case('a'),
        make_case('b', centre=(6, 8, 9), radius=2.0),
        make_case('c', centre=(10, 16, 9), radius=3.5),
    ]


def perfect(case: Subject) -> np.ndarray:
    """The anomaly map of a method that knows the healthy image."""
    return np.abs(case.image - case.healthy)


def noisy(case: Subject, seed: int) -> np.ndarray:
    """The same with noise in the brain."""
    rng = np.random.default_rng(seed)
    return np.where(case.brain, perfect(case) + 0.3 * rng.random(case.image.shape), 0.0)
