"""Values that describe no volume or no draw are refused in one line that names the field."""

import dataclasses
import math

import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.fluid import FluidSettings, Grid

NAN, INF = float('nan'), float('inf')


def _one_line(caught):
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 200


def test_grid_is_a_hashable_value():
    assert Grid([4, 5, 6], [1, 2, 3]) == Grid((4, 5, 6), (1.0, 2.0, 3.0))
    assert hash(Grid([4, 5, 6])) == hash(Grid((4, 5, 6)))
    assert Grid((4, 5, 6)) != Grid((4, 5, 6), boundary='periodic')
    assert Grid(np.array([4, 5]), np.array([1, 2], np.float32)) == Grid((4, 5), (1.0, 2.0))


def test_grid_knows_its_geometry():
    grid = Grid((4, 5, 6), (1, 2, 3))
    assert grid.extent == (4.0, 10.0, 18.0) and grid.voxel_ml == pytest.approx(0.006)
    assert (grid.ndim, grid.axes, grid.periodic) == (3, (-3, -2, -1), False)
    flat = Grid((4, 5), (10, 20), 'periodic')
    assert (flat.ndim, flat.axes, flat.periodic) == (2, (-2, -1), True)
    assert flat.voxel_ml == pytest.approx(0.2)  # of a slice 1 mm thick


@pytest.mark.parametrize(
    ('shape', 'spacing', 'word'),
    [
        ((4, 5), (1, 1, 1), 'spacing'),
        ((4,), (1,), 'shape'),
        ((4, 5, 6, 7), (1, 1, 1, 1), 'shape'),
        ((4, 5, 0), (1, 1, 1), 'shape'),
        ((4, 5, 1), (1, 1, 1), 'shape'),
        ((4, 5, -6), (1, 1, 1), 'shape'),
        ((4, 5, 2.5), (1, 1, 1), 'shape'),
        ((4, 5, NAN), (1, 1, 1), 'shape'),
        ((4, 5, INF), (1, 1, 1), 'shape'),
        ((4, 5, 'six'), (1, 1, 1), 'shape'),
        ((4, 5, None), (1, 1, 1), 'shape'),
        ((4, 5, 2j), (1, 1, 1), 'shape'),
        (5, None, 'shape'),
        (None, None, 'shape'),
        ((2**11, 2**10, 2**10), (1, 1, 1), 'shape'),
        ((2**16, 2**15), (1, 1), 'shape'),
        ((4, 5, 6), (1, 1, 0), 'spacing'),
        ((4, 5, 6), (1, -1, 1), 'spacing'),
        ((4, 5, 6), (1, NAN, 1), 'spacing'),
        ((4, 5, 6), (1, INF, 1), 'spacing'),
        ((4, 5, 6), (1, 'two', 1), 'spacing'),
        ((4, 5, 6), (1, None, 1), 'spacing'),
        ((4, 5, 6), (1, 1), 'spacing'),
        ((4, 5, 6), 2.0, 'spacing'),
    ],
)
def test_grid_refuses(shape, spacing, word):
    with pytest.raises(UserError, match=f'grid {word}') as caught:
        Grid(shape, spacing)
    _one_line(caught)


@pytest.mark.parametrize('boundary', ['open', None, 1, ['neumann']])
def test_grid_refuses_a_boundary_it_does_not_know(boundary):
    with pytest.raises(UserError, match='grid boundary') as caught:
        Grid((4, 5, 6), boundary=boundary)
    _one_line(caught)


SHARES = (
    'bank_probability',
    'diseased_probability',
    'bright_probability',
    'mass_effect',
    'perlin_persistence',
    'threshold',
    'min_peak',
    'cfl',
    'inside_share',
)
SIZES = (
    'velocity_scale',
    'border_mm',
    'diffusion_scale',
    'bank_shift_mm',
    'bank_rotation_degrees',
    'texture_mm',
)
RANGES = ('transport_time', 'seed_percentiles', 'size_ml', 'bank_scale', 'strength', 'lesion_count')
CHOICES = ('painting', 'scheme', 'storage', 'integrator')


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        *((name, value) for name in SHARES for value in (NAN, -0.1, 1.1, 'half', None, 1j)),
        *((name, 0.0) for name in ('threshold', 'min_peak', 'cfl', 'inside_share')),
        *((name, value) for name in SIZES for value in (NAN, -1.0, INF, 'far', None)),
        *(
            (name, value)
            for name in RANGES
            for value in (
                (0.9, 0.1),
                (1.0, NAN),
                (1.0, INF),
                (NAN, 1.0),
                (1.0,),
                (1, 2, 3),
                ('a', 'b'),
                0.5,
                None,
                (-1.0, 1.0),
            )
        ),
        *((name, value) for name in CHOICES for value in ('oil', None, 3, ['euler'])),
        *(
            (name, value)
            for name in ('parity', 'white_matter_bright')
            for value in (1, 'yes', None)
        ),
        *(('max_steps', value) for value in (0, -1, 2.5, NAN, INF, 'many')),
        *(('perlin_octaves', value) for value in (0, 9, 1.5, NAN, 'two', None)),
        *(
            ('perlin_periods', value)
            for value in (
                (2,),
                (2, 2, 0),
                (2, 2, 2, 2),
                (2, 2, 1.5),
                (2, 2, NAN),
                (2, 'two'),
                2,
                None,
            )
        ),
        ('seed_percentiles', (90.0, 100.0)),
        ('lesion_count', (0, 1)),
        ('lesion_count', (1, 2.5)),
        ('lesion_count', (1, 65)),
        ('size_ml', (0.0, 5.0)),
        ('bank_scale', (0.0, 1.0)),
        ('threshold', np.array([0.1, 0.2])),
        ('transport_time', (0.1, np.array([0.2, 0.3]))),
    ],
    ids=str,
)
def test_settings_refuse(field, value):
    with pytest.raises(UserError, match=rf'config\.fluid\.{field}: ') as caught:
        FluidSettings(**{field: value})
    _one_line(caught)


def test_every_setting_is_held_to_something():
    tried = {
        *SHARES,
        *SIZES,
        *RANGES,
        *CHOICES,
        'parity',
        'white_matter_bright',
        'max_steps',
        'perlin_octaves',
        'perlin_periods',
    }
    assert tried == {field.name for field in dataclasses.fields(FluidSettings)}


def test_settings_take_lists_and_are_hashable():
    listed = FluidSettings(perlin_periods=[2, 2, 2], transport_time=[0.1, 0.9])
    assert listed == FluidSettings() and hash(listed) == hash(FluidSettings())


@pytest.mark.parametrize(
    'settings',
    [{'perlin_octaves': 2}, {'lesion_count': (1, 2)}, {'perlin_periods': (2, 3)}, {'max_steps': 3}],
    ids=str,
)
def test_a_whole_number_may_be_written_with_a_point(settings):
    grid = Grid((40, 40), (4.0, 4.0))
    pointed = {
        name: float(v) if isinstance(v, int) else [float(n) for n in v]
        for name, v in settings.items()
    }
    one, other = FluidSettings(**settings), FluidSettings(**pointed)
    assert one == other and one.num_steps(grid) == other.num_steps(grid)


def test_periods_are_those_of_the_axes_there_are():
    assert FluidSettings(perlin_periods=(2, 3, 4)).periods(2) == (2, 3)
    with pytest.raises(UserError, match=r'perlin_periods: \(2, 3\) must have 3 numbers'):
        FluidSettings(perlin_periods=(2, 3)).periods(3)


@pytest.mark.parametrize('scheme', ['koren', 'upwind'])
def test_finer_grids_get_proportionally_more_steps(scheme):
    settings = FluidSettings(scheme=scheme)
    steps = [settings.num_steps(Grid((n,) * 3, (160.0 / n,) * 3)) for n in (40, 80, 160)]
    assert steps[1] == pytest.approx(2 * steps[0], abs=1)
    assert steps[2] == pytest.approx(4 * steps[0], abs=3)
    assert FluidSettings(scheme=scheme, max_steps=3).num_steps(Grid((8, 8, 8))) == 3


def test_limited_differences_need_twice_the_steps_of_upwind_ones():
    grid = Grid((80, 80, 80), (2.0,) * 3)
    koren, upwind = (FluidSettings(scheme=name).num_steps(grid) for name in ('koren', 'upwind'))
    assert koren == pytest.approx(2 * upwind, abs=1)


def test_steps_grow_with_the_flow_and_its_time_and_the_map_does_not_ask_for_more_than_64():
    grid = Grid((40, 40, 40), (4.0,) * 3)
    fast, slow, long = (
        FluidSettings(scheme='koren', velocity_scale=v, transport_time=(0.0, t), border_mm=16.0)
        for v, t in ((1000.0, 0.5), (500.0, 0.5), (500.0, 1.0))
    )
    assert fast.num_steps(grid) == long.num_steps(grid)
    assert fast.num_steps(grid) == pytest.approx(2 * slow.num_steps(grid), abs=1)
    assert slow.map_steps(grid) < fast.map_steps(grid) == long.map_steps(grid)
    assert FluidSettings(velocity_scale=1e6).map_steps(grid) == 64
    assert FluidSettings(velocity_scale=0.0).map_steps(grid) >= 1
    assert slow.map_steps(grid, 0.1) <= slow.map_steps(grid)


def test_diffusion_shortens_the_steps_and_octaves_quicken_the_flow():
    grid = Grid((40, 40, 40), (4.0,) * 3)
    still, diffusing = (FluidSettings(scheme='koren', diffusion_scale=d) for d in (0.0, 200.0))
    assert diffusing.num_steps(grid) > still.num_steps(grid)
    assert still.peak_diffusion_rate(grid) == 0.0
    one, three = (FluidSettings(perlin_octaves=n) for n in (1, 3))
    assert three.peak_speed(grid) > one.peak_speed(grid)
    assert math.isclose(
        FluidSettings(border_mm=0.0, velocity_scale=100.0).peak_speed(grid),
        FluidSettings(border_mm=0.0).peak_speed(grid) / 5,
    )
