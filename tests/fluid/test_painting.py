"""The intensity laws."""

import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.fluid.painting import divide_by_maximum, paint_lesion

SHAPE = (6, 7, 8)
IMAGE = jnp.full(SHAPE, 0.4)
LESION = jnp.zeros(SHAPE).at[2:4, 2:4, 2:4].set(1.0)


@pytest.mark.parametrize(('law', 'bright', 'u', 'expected'), [
    ('paper', False, 0.0, 0.4 - 0.75 * 0.4),
    ('paper', False, 1.0, 0.0),
    ('paper', True, 1.0, 0.8),
    ('una', True, 0.5, 0.4 + 1.5 * 0.4),
    ('una', False, 0.5, 0.0),  # darker than black is black
])
def test_shift_in_units_of_the_mean_under_the_lesion(law, bright, u, expected):
    painted = paint_lesion(IMAGE, LESION, LESION, u, 0.0, jnp.zeros(SHAPE), bright, law)
    np.testing.assert_allclose(painted[LESION > 0], expected, atol=1e-6)
    np.testing.assert_array_equal(painted[LESION == 0], IMAGE[LESION == 0])


def test_mean_is_taken_inside_the_mask_alone():
    image = jnp.where(LESION > 0, 0.2, 1.0)
    painted = paint_lesion(image, LESION, LESION, 0.0, 0.0, jnp.zeros(SHAPE), True)
    np.testing.assert_allclose(painted[LESION > 0], 0.2 * 1.75, atol=1e-6)


def test_spread_is_up_to_a_quarter_of_the_mean():
    noise = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    painted = paint_lesion(IMAGE, LESION, LESION, 0.0, 1.0, noise, True)
    expected = 0.4 + 0.3 + 0.1 * noise[LESION > 0]
    np.testing.assert_allclose(painted[LESION > 0], expected, atol=1e-6)


def test_faint_probability_paints_faintly():
    painted = paint_lesion(IMAGE, 0.5 * LESION, LESION, 0.0, 0.0, jnp.zeros(SHAPE))
    np.testing.assert_allclose(painted[LESION > 0], 0.4 - 0.15, atol=1e-6)


def test_divide_by_maximum_guards_zero():
    np.testing.assert_allclose(divide_by_maximum(jnp.array([0.0, 0.5])), [0.0, 1.0])
    np.testing.assert_array_equal(divide_by_maximum(jnp.zeros(3)), 0.0)
