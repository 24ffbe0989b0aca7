"""Fifteen hundred pairs, of every kind of grid, brain, bank and setting: each of them is sound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import box, head, split

from fluidjax.fluid import FluidSettings, Grid, draw_pair, randomize_drawn

DRAWS, BATCH = 216, 72  # of each of seven cases
DEEP, SLABS = Grid((8, 9, 7), (18.0, 16.0, 20.0)), Grid((11, 10, 4), (13.0, 15.0, 40.0))
FLAT, ROUND = Grid((16, 13), (9.0, 12.0)), Grid((13, 16), (12.0, 9.0), 'periodic')

CASES = {
    'default': (SLABS, FluidSettings(texture_mm=40.0)),
    'steps': (
        DEEP,
        FluidSettings(
            scheme='koren',
            border_mm=16.0,
            storage='bfloat16',
            diffusion_scale=50.0,
            lesion_count=(1, 3),
            bank_probability=0.0,
        ),
    ),
    'published': (SLABS, FluidSettings(parity=True, border_mm=0.0, bank_probability=0.0)),
    'in a plane': (
        FLAT,
        FluidSettings(
            perlin_octaves=2,
            border_mm=16.0,
            diffusion_scale=50.0,
            mass_effect=0.5,
            painting='una',
            bright_probability=0.5,
            lesion_count=(1, 2),
            size_ml=(1.0, 10.0),
            bank_probability=0.0,
        ),
    ),
    'violent': (
        FLAT,
        FluidSettings(
            velocity_scale=25_000.0,
            border_mm=0.0,
            painting='una_equation',
            white_matter_bright=False,
            bank_probability=1.0,
            bank_rotation_degrees=180.0,
            bank_scale=(0.2, 5.0),
            inside_share=1.0,
        ),
    ),
    'violent steps': (
        FLAT,
        FluidSettings(
            scheme='upwind',
            integrator='euler',
            cfl=1.0,
            velocity_scale=1e6,
            border_mm=16.0,
            max_steps=30,
            strength=(0.0, 3.0),
            bank_probability=0.0,
        ),
    ),
    'around a circle': (
        ROUND,
        FluidSettings(
            scheme='koren',
            integrator='rk4',
            border_mm=0.0,
            diffusion_scale=50.0,
            texture_mm=30.0,
            painting='una_equation',
            bank_probability=0.0,
        ),
    ),
}


def _brains(grid):
    """A head, one cut in two, the whole volume, a corner, two far voxels: (kinds, x, y (, z))."""
    halves = head(grid)[1] & ~box(grid, np.s_[grid.shape[0] // 2 - 1 : grid.shape[0] // 2 + 1])
    return np.stack(
        [
            head(grid)[1],
            halves,
            np.ones(grid.shape, bool),
            box(grid, *[np.s_[:2]] * grid.ndim),
            _ends(grid),
        ]
    )


def _bank(grid):
    """A lump, a voxel, a sheet, two far voxels, the whole volume: (masks, x, y (, z))."""
    middle = [n // 2 for n in grid.shape]
    return np.stack(
        [
            box(grid, *(np.s_[m - 2 : m + 1] for m in middle)),
            box(grid, *middle),
            box(grid, 1),
            _ends(grid),
            np.ones(grid.shape, bool),
        ]
    )


def _ends(grid):
    return box(grid, *[0] * grid.ndim) | box(grid, *[-1] * grid.ndim)


# One in three dimensions and one in two; the other settings are slow.
OFTEN = ('default', 'in a plane')


@pytest.mark.parametrize(
    'case', [pytest.param(case, marks=() if case in OFTEN else pytest.mark.slow) for case in CASES]
)
def test_every_pair_is_sound(case):
    grid, settings = CASES[case]
    bank = jnp.asarray(_bank(grid)) if settings.bank_probability > 0 else None

    def one(key, image, brain):
        draw = draw_pair(key, settings, 0 if bank is None else len(bank))
        return draw.diseased, randomize_drawn(draw, image, brain, grid, settings, bank)

    run, rng, brains = jax.jit(jax.vmap(one)), np.random.default_rng(0), _brains(grid)
    images = np.float32(brains * rng.uniform(0.2, 1.0, brains.shape))
    for keys in split(1, DRAWS).reshape(-1, BATCH):
        kind = rng.integers(len(brains), size=BATCH)
        diseased, pairs = run(keys, images[kind], brains[kind])
        healthy, painted, mask, P = (np.asarray(volume).reshape(BATCH, -1) for volume in pairs)
        outside = ~brains[kind].reshape(BATCH, -1)
        for volume in (healthy, painted, P):  # a NaN fails the comparison too
            assert np.all((volume >= 0.0) & (volume <= 1.0))
        assert np.isin(mask, (0.0, 1.0)).all()
        assert not mask[outside].any() and not P[outside].any()
        np.testing.assert_array_equal(mask.any(axis=1), diseased, err_msg=str(kind))
        expected = images[kind].reshape(BATCH, -1)
        peak = healthy.max(axis=1, keepdims=True)
        expected = expected / expected.max(axis=1, keepdims=True) * peak
        np.testing.assert_allclose(healthy, expected, rtol=1e-6)
        # Below 1 the maximum is a bright lesion's: both are divided by it.
        bright = peak < 1.0 - 1e-6
        same = (P == 0.0) & bright
        np.testing.assert_allclose(healthy[same], painted[same], rtol=1e-6)
        assert painted.max(axis=1)[bright[:, 0]].min(initial=1.0) > 1.0 - 1e-6
        lifts = settings.bright_probability > 0.0 or settings.painting == 'una_equation'
        assert lifts == bright.any()
        ill = np.asarray(diseased)
        np.testing.assert_array_equal(healthy[~ill], painted[~ill])
        assert not P[~ill].any()
        assert settings.parity or P[ill].max(axis=1).min() > 0.999 * settings.min_peak
