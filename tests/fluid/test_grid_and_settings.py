"""Values that describe no volume or no draw are refused in one line that names the field."""

import pytest

from fluidjax.errors import UserError
from fluidjax.fluid import FluidSettings, Grid


def test_grid_is_a_hashable_value():
    assert Grid([4, 5, 6], [1, 2, 3]) == Grid((4, 5, 6), (1.0, 2.0, 3.0))
    assert hash(Grid([4, 5, 6])) == hash(Grid((4, 5, 6)))
    assert Grid((4, 5, 6), (1, 2, 3)).extent == (4.0, 10.0, 18.0)


@pytest.mark.parametrize(('shape', 'spacing', 'word'), [
    ((4, 5), (1, 1, 1), 'shape'),
    ((4, 5, 0), (1, 1, 1), 'shape'),
    ((4, 5, 2.5), (1, 1, 1), 'shape'),
    ((4, 5, 6), (1, 1, 0), 'spacing'),
    ((4, 5, 6), (1, -1, 1), 'spacing'),
    ((4, 5, 6), (1, float('nan'), 1), 'spacing'),
    ((4, 5, 6), (1, 1), 'spacing'),
])
def test_grid_refuses(shape, spacing, word):
    with pytest.raises(UserError, match=f'grid {word}'):
        Grid(shape, spacing)


@pytest.mark.parametrize(('field', 'value'), [
    ('perlin_periods', (2, 2)),
    ('perlin_periods', (2, 2, 0)),
    ('velocity_scale', -1.0),
    ('velocity_scale', float('nan')),
    ('transport_time', (0.9, 0.1)),
    ('transport_time', (0.1, float('inf'))),
    ('transport_time', (0.1,)),
    ('seed_percentiles', (90.0, 100.0)),
    ('bank_probability', 1.1),
    ('diseased_probability', -0.1),
    ('threshold', 0.0),
    ('min_peak', 2.0),
    ('cfl', 1.5),
    ('painting', 'oil'),
    ('scheme', 'rk45'),
    ('max_steps', 0),
])
def test_settings_refuse(field, value):
    with pytest.raises(UserError, match=f'fluid setting {field} = '):
        FluidSettings(**{field: value})


def test_settings_take_lists_and_are_hashable():
    listed = FluidSettings(perlin_periods=[2, 2, 2], transport_time=[0.1, 0.9])
    assert hash(listed) == hash(FluidSettings())


@pytest.mark.parametrize(('spacing', 'expected'), [(4.0, 9), (2.0, 18), (1.0, 36)])
def test_finer_grids_get_proportionally_more_steps(spacing, expected):
    shape = tuple(int(160 / spacing) for _ in range(3))
    assert FluidSettings().num_steps(Grid(shape, (spacing,) * 3)) == expected


def test_max_steps_overrides_the_grid():
    assert FluidSettings(max_steps=3).num_steps(Grid((8, 8, 8))) == 3
