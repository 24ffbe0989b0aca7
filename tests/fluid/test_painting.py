"""The intensity laws, and the texture of a lesion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import box, quick_jit, split

from fluidjax.fluid import Grid
from fluidjax.fluid.painting import (
    divide_by_maximum,
    equation_shift,
    lesion_shift,
    lesion_texture,
    mean_inside,
    paint,
)

GRID = Grid((6, 7, 8))
IMAGE = jnp.full(GRID.shape, 0.4)
INSIDE = box(GRID, *[np.s_[2:4]] * 3)
LESION = jnp.asarray(INSIDE, jnp.float32)
NO_TEXTURE = jnp.zeros(GRID.shape)


@pytest.mark.parametrize(
    ('law', 'bright', 'u', 'expected'),
    [
        ('paper', False, 0.0, 0.4 - 0.75 * 0.4),
        ('paper', False, 1.0, 0.0),
        ('paper', True, 1.0, 0.8),
        ('una', True, 0.5, 0.4 + 1.5 * 0.4),
        ('una', False, 0.5, 0.0),  # darker than black is black
    ],
)
def test_shift_in_units_of_the_mean_under_the_lesion(law, bright, u, expected):
    shift = lesion_shift(law, mean_inside(IMAGE, LESION), u, bright)
    painted = paint(IMAGE, LESION, shift, 0.0, NO_TEXTURE)
    np.testing.assert_allclose(painted[INSIDE], expected, atol=1e-6)
    np.testing.assert_array_equal(painted[~INSIDE], IMAGE[~INSIDE])


def test_mean_is_taken_inside_the_mask_alone_and_is_nothing_where_the_mask_is_empty():
    image = jnp.where(LESION > 0, 0.2, 1.0)
    assert float(mean_inside(image, LESION)) == pytest.approx(0.2)
    assert float(mean_inside(image, 0.0 * LESION)) == 0.0


def test_spread_times_texture_is_added_where_the_lesion_is():
    texture = jnp.asarray(np.random.default_rng(0).normal(size=GRID.shape), jnp.float32)
    painted = paint(IMAGE, LESION, 0.3, 0.1, texture)
    np.testing.assert_allclose(painted[INSIDE], 0.4 + 0.3 + 0.1 * texture[INSIDE], atol=1e-6)
    np.testing.assert_array_equal(painted[~INSIDE], IMAGE[~INSIDE])


@pytest.mark.parametrize('P', [0.1, 0.5, 1.0])
def test_faint_probability_paints_faintly(P):
    painted = paint(IMAGE, P * LESION, -0.3, 0.0, NO_TEXTURE)
    np.testing.assert_allclose(painted[INSIDE], 0.4 - 0.3 * P, atol=1e-6)


@pytest.mark.parametrize('white_matter_bright', [True, False])
@pytest.mark.parametrize('flipped', [True, False])
def test_the_equation_has_its_mean_and_deviation(flipped, white_matter_bright):
    n = jax.random.normal(jax.random.key(0), (20_000,))
    m = np.asarray(equation_shift(0.8, n, flipped, white_matter_bright))
    darker = white_matter_bright != flipped
    assert m.mean() == pytest.approx(-0.4 if darker else 0.4, abs=0.015)
    assert m.std() == pytest.approx(0.4, rel=0.03)


@pytest.mark.parametrize(
    ('grid', 'length_mm'),
    [
        (Grid((16, 18, 20), (2.0, 3.0, 2.0)), 0.0),
        (Grid((16, 18, 20), (2.0, 3.0, 2.0)), 12.0),
        (Grid((60, 50), (2.0, 3.0)), 24.0),
    ],
    ids=str,
)
def test_texture_has_unit_variance_everywhere_and_varies_over_its_length(grid, length_mm):
    texture = quick_jit(jax.vmap(lambda key: lesion_texture(key, grid, length_mm)))
    many = np.asarray(texture(split(0, 600)))
    assert np.abs(many.mean(axis=0)).max() < 0.3
    np.testing.assert_allclose(many.std(axis=0), 1.0, atol=0.2)
    assert many.std() == pytest.approx(1.0, abs=0.01)
    for axis, h in enumerate(grid.spacing, start=1):
        beside = np.mean(np.delete(many, 0, axis) * np.delete(many, -1, axis))
        away = int(np.ceil(3 * length_mm / h)) or 2  # further than cubic interpolation reaches
        n = grid.shape[axis - 1]
        if away < n:
            far = np.mean(np.take(many, 0, axis) * np.take(many, away, axis))
            assert abs(far) < 0.1
        assert (beside > 0.7) if length_mm else (abs(beside) < 0.02)


def test_divide_by_maximum_guards_zero():
    np.testing.assert_allclose(divide_by_maximum(jnp.array([0.0, 0.25])), [0.0, 1.0])
    np.testing.assert_array_equal(divide_by_maximum(jnp.zeros(3)), 0.0)
