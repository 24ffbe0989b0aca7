"""Restoration by severity, with a network that is replaced by the true healthy image."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from configs.methods import config_of
from fluidjax.base.errors import UserError
from fluidjax.base.share import Share
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized
from fluidjax.methods.pairs import PairMaker
from fluidjax.methods.severity import SeverityProcess, SeverityRestoration
from fluidjax.runs.stages import build_stages

GRID = Grid((16, 16, 16), (12.0, 12.0, 12.0))
SHAPE = (4, *GRID.shape, 1)


class GivenPairs(PairMaker):
    """Returns the pairs that are in the batch."""

    def __call__(self, batch, key, share=None):
        return batch['pair']


@pytest.fixture
def pair():
    """Healthy images, and diseased ones whose maximum is 1, as that of a scan after division."""
    rng = np.random.default_rng(0)
    healthy, diseased = rng.uniform(0.1, 0.9, size=(2, *SHAPE)).astype(np.float32)
    diseased[:, 0, 0, 0] = 1.0
    return Randomized(healthy, diseased, np.ones_like(healthy), np.ones_like(healthy))


@pytest.fixture
def perfect(monkeypatch, pair):
    """The method with a network that knows the healthy images, and the list of what it saw."""
    method = build_stages(config_of('severity', 'smoke'), GRID)[-1].method
    seen = []

    def restore(self, params, image):
        del self, params
        seen.append(np.asarray(image))
        return pair.healthy[: len(image)]

    monkeypatch.setattr(SeverityRestoration, '_restore', restore)
    return dataclasses.replace(method, pairs=GivenPairs(GRID, method.pairs.augment, None)), seen


@pytest.mark.parametrize('steps', [1, 4])
def test_a_scan_passes_through_the_severities_of_training(perfect, pair, steps):
    """Its corrections are then equal parts of the lesion and add up to scan minus counterpart."""
    method, seen = perfect
    method = dataclasses.replace(method, process=SeverityProcess(steps))
    with jax.disable_jit():
        counterpart = method.reconstruct({}, pair.diseased, jax.random.key(0))
    np.testing.assert_allclose(counterpart, pair.healthy, atol=1e-6)
    assert len(seen) == steps
    lesion = pair.diseased - pair.healthy
    for number, image in enumerate(seen):
        severity = 1.0 - number / steps
        np.testing.assert_allclose(image[..., 1], severity, rtol=1e-5)
        np.testing.assert_allclose(image[..., :1], pair.healthy + severity * lesion, atol=1e-5)
    path = [image[..., :1] for image in seen] + [counterpart]
    corrections = [before - after for before, after in zip(path[:-1], path[1:], strict=True)]
    for correction in corrections:
        np.testing.assert_allclose(correction, lesion / steps, atol=1e-5)
    np.testing.assert_allclose(sum(corrections), lesion, atol=1e-5)


def test_training_shows_each_image_with_its_own_severity(perfect, pair):
    method, seen = perfect
    loss, _ = method.loss({}, {'pair': pair}, jax.random.key(1))
    assert float(loss) == 0.0  # the network knows the healthy images
    severity = seen[0][:, :1, :1, :1, 1:]
    np.testing.assert_array_equal(seen[0][..., 1:], np.broadcast_to(severity, SHAPE))
    assert len(np.unique(severity)) == len(severity) and 0 <= severity.min() < severity.max() < 1
    expected = pair.healthy + severity * (pair.diseased - pair.healthy)
    np.testing.assert_allclose(seen[0][..., :1], expected, atol=1e-6)


def test_severities_do_not_depend_on_the_number_of_devices(perfect, pair):
    method, seen = perfect
    method.loss({}, {'pair': pair}, jax.random.key(1))
    half = Randomized(*(volume[2:] for volume in pair))
    method.loss({}, {'pair': half}, jax.random.key(1), Share(first=2, total=4))
    np.testing.assert_array_equal(seen[1][..., 1], seen[0][2:, ..., 1])


def test_no_steps_get_one_line():
    with pytest.raises(UserError, match='restoration.process.steps: 0 must be 1 or more'):
        SeverityProcess(0)
