"""Thick slices and blur as matrices."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.synthesis import resolution


@pytest.mark.parametrize('thickness', [0.0, 2.0, 3.3, 6.0, 9.0])
def test_thick_slices_average_and_keep_constants_and_the_mean(thickness):
    matrix = np.asarray(resolution.slice_matrix(40, 2.0, jnp.float32(thickness)))
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-5)
    if thickness <= 2.0:
        np.testing.assert_allclose(matrix, np.eye(40), atol=1e-6)
        return
    line = np.linspace(0.0, 1.0, 40)
    inner = slice(6, -6)
    np.testing.assert_allclose((matrix @ line)[inner], line[inner], atol=0.02)
    alternating = (-1.0) ** np.arange(40)
    assert np.abs((matrix @ alternating)[inner]).max() < 0.8


def test_a_blur_has_its_width():
    matrix = np.asarray(resolution.blur_matrix(41, 1.0, jnp.float32(2.5)))
    row, at = matrix[20], np.arange(41) - 20
    assert np.sqrt((row * at**2).sum()) == pytest.approx(2.5, rel=0.02)
    np.testing.assert_allclose(resolution.blur_matrix(41, 1.0, jnp.float32(0.0)), np.eye(41))


def test_within_the_brain_the_surroundings_do_not_count():
    brain = np.zeros((12, 12, 12), np.float32)
    brain[3:9, 3:9, 3:9] = 1.0
    matrices = [resolution.blur_matrix(12, 1.0, jnp.float32(2.0))] * 3
    image = jnp.asarray(np.where(brain > 0, 0.7, 0.2), jnp.float32)
    np.testing.assert_allclose(resolution.within_brain(image, brain, matrices), image, atol=1e-6)
