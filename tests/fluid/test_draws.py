"""What a pair draws: each number's distribution, and none that hangs on another."""

import functools

import jax
import numpy as np
import pytest
from heads import quick_jit, split
from scipy import stats

from fluidjax.fluid import FluidSettings, draw_pair

COUNT, BANK = 4000, 5
SETTINGS = FluidSettings(
    diseased_probability=0.7,
    bright_probability=0.25,
    bank_probability=0.4,
    lesion_count=(2, 4),
    transport_time=(0.2, 0.6),
    size_ml=(0.5, 32.0),
    strength=(0.5, 1.5),
    bank_scale=(0.5, 2.0),
    seed_percentiles=(80.0, 95.0),
    bank_rotation_degrees=30.0,
)


@functools.cache
def _draws(settings=SETTINGS, bank_size=BANK):
    """Draws of many keys as NumPy arrays, keys as the words they are made of."""
    draw = quick_jit(jax.vmap(lambda key: draw_pair(key, settings, bank_size)))(split(0, COUNT))
    plain = lambda x: (
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    return jax.tree.map(lambda x: np.asarray(plain(x)), draw)


@pytest.mark.parametrize(
    ('name', 'low', 'high', 'scale'),
    [
        ('time', 0.2, 0.6, None),
        ('strength', 0.5, 1.5, None),
        ('u_shift', 0, 1, None),
        ('u_spread', 0, 1, None),
        ('seeds.share', 0.05, 0.2, None),
        ('seeds.size_ml', 0.5, 32, np.log),
        ('seeds.scale', 0.5, 2.0, np.log),
        ('seeds.angles', -np.pi / 6, np.pi / 6, None),
    ],
)
def test_is_uniform_between_its_limits(name, low, high, scale):
    value = functools.reduce(getattr, name.split('.'), _draws()).ravel()
    assert value.min() >= low * (1 - 1e-5) - 1e-6 * (low < 0) and value.max() <= high * (1 + 1e-5)
    if scale is not None:  # uniform in its logarithm
        low, high, value = (scale(v) for v in (low, high, value))
    assert stats.kstest(value, 'uniform', args=(low, high - low)).pvalue > 0.01


def test_the_normal_draw_is_normal():
    assert stats.kstest(_draws().n_shift, 'norm').pvalue > 0.01


@pytest.mark.parametrize(
    ('name', 'share'),
    [
        ('diseased', 0.7),
        ('bright', 0.25),
        ('flipped', 0.2),
        ('seeds.from_bank', 0.4),
        ('seeds.mirrored', 0.5),
    ],
)
def test_happens_with_its_probability(name, share):
    value = functools.reduce(getattr, name.split('.'), _draws()).ravel()
    assert value.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / value.size))


@pytest.mark.parametrize(
    ('name', 'values'), [('count', [2, 3, 4]), ('seeds.bank_index', list(range(BANK)))]
)
def test_reaches_every_value_equally_often(name, values):
    value = functools.reduce(getattr, name.split('.'), _draws()).ravel()
    found, counts = np.unique(value, return_counts=True)
    np.testing.assert_array_equal(found, values)
    assert stats.chisquare(counts).pvalue > 0.01


def test_no_number_hangs_on_another_nor_on_those_of_the_next_key():
    draw = _draws()
    columns = [
        np.asarray(x, float).reshape(COUNT, -1)
        for name, x in draw._asdict().items()
        if name not in ('seeds', 'key_flow', 'key_texture')
    ]
    columns += [
        np.asarray(x, float).reshape(COUNT, -1)
        for name, x in draw.seeds._asdict().items()
        if name != 'key'
    ]
    table = np.concatenate(columns, axis=1)
    assert table.shape[1] == 9 + 4 * 9  # four seeds of nine numbers
    both = np.concatenate([table[:-1], table[1:]], axis=1)
    correlation = np.corrcoef(both.T) - np.eye(both.shape[1])
    assert np.abs(correlation).max() < 5.0 / np.sqrt(COUNT)


def test_every_key_within_a_draw_and_between_draws_is_its_own():
    draw = _draws()
    keys = np.concatenate(
        [draw.key_flow, draw.key_texture, draw.seeds.key.reshape(-1, draw.key_flow.shape[-1])]
    )
    assert len(np.unique(keys, axis=0)) == len(keys) == COUNT * (2 + SETTINGS.lesion_count[1])


def test_without_a_bank_no_seed_comes_from_one_and_without_sizes_none_is_wanted():
    draw = _draws(FluidSettings(), 0)
    assert not draw.seeds.from_bank.any() and not draw.seeds.size_ml.any()
    assert draw.count.max() == 1 and not draw.seeds.bank_index.any()
