"""Scans from tissue fractions: the order of the tissues, partial volume, slices, field of view."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.base.subject import TISSUES
from fluidjax.synthesis import generate
from fluidjax.synthesis.contrasts import CONTRASTS, draw_contrast
from fluidjax.synthesis.generate import SynthesisSettings, synthesise, synthesise_batch

SPACING = (4.0, 4.0, 4.0)
PLAIN = SynthesisSettings(contrasts=('t1w',), spread=0.0, sliced=0.0, cut=0.0)
ORDERS = {
    't1w': ('csf', 'grey', 'white'),
    't1ce': ('csf', 'grey', 'white'),
    't2w': ('white', 'grey', 'csf'),
    'flair': ('csf', 'white', 'grey'),
}


@pytest.fixture(scope='module')
def head():
    """Fractions of a cube of white matter, half of it mixed with CSF, and its mask."""
    brain = np.zeros((16, 16, 16), np.float32)
    brain[3:13, 3:13, 3:13] = 1.0
    tissue = np.zeros((*brain.shape, len(TISSUES)), np.uint8)
    tissue[3:13, 3:8, 3:13, TISSUES.index('white')] = 255
    tissue[3:13, 8:13, 3:13, TISSUES.index('white')] = 102
    tissue[3:13, 8:13, 3:13, TISSUES.index('csf')] = 153
    return jnp.asarray(tissue), jnp.asarray(brain)


@functools.partial(jax.jit, static_argnums=3)
def made(key, tissue, brain, settings):
    return synthesise(key, tissue, brain, SPACING, settings)


@pytest.mark.parametrize('name', CONTRASTS)
def test_tissues_have_the_order_of_the_contrast(name):
    keys = jax.random.split(jax.random.key(0), 200)
    drawn = jax.vmap(lambda key: draw_contrast(key, (name,)))(keys)
    means = np.asarray(drawn.means)
    assert means.min() > 0 and 0.6 <= means.max(axis=1).min() <= means.max() <= 0.9
    by_tissue = dict(zip(TISSUES, means.T, strict=True))
    if name == 'random':
        assert 0.1 < np.mean(by_tissue['csf'] < by_tissue['grey']) < 0.9
    else:
        dark, middle, bright = (by_tissue[tissue] for tissue in ORDERS[name])
        assert (dark < middle).all() and (middle < bright).all()
    np.testing.assert_array_equal(drawn.white, by_tissue['white'])
    np.testing.assert_array_equal(drawn.fluid, by_tissue['csf'])


def test_all_contrasts_are_drawn():
    keys = jax.random.split(jax.random.key(1), 100)
    drawn = jax.vmap(lambda key: draw_contrast(key, ('t1w', 't2w', 'flair', 't1ce')))(keys)
    assert 30 < np.sum(drawn.bright) < 70 and 10 < np.sum(drawn.enhancing > 0) < 40


def test_a_voxel_is_the_mean_of_its_tissues(head):
    tissue, brain = head
    image, kept, drawn = made(jax.random.key(2), tissue, brain, PLAIN)
    np.testing.assert_array_equal(kept, brain)
    assert not np.asarray(image)[np.asarray(brain) == 0].any()
    np.testing.assert_allclose(image[5, 5, 5], drawn.white, rtol=1e-5)
    np.testing.assert_allclose(image[5, 10, 5], 0.4 * drawn.white + 0.6 * drawn.fluid, rtol=1e-5)


def test_a_key_gives_one_scan_and_a_batch_gives_the_same(head):
    tissue, brain = head
    settings = SynthesisSettings()
    keys = jax.random.split(jax.random.key(3), 3)
    images, brains, drawn = jax.jit(
        lambda keys: synthesise_batch(
            keys, jnp.stack([tissue] * 3), jnp.stack([brain] * 3)[..., None], SPACING, settings
        )
    )(keys)
    assert images.shape == brains.shape == (3, 16, 16, 16, 1) and drawn.means.shape == (3, 6)
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose(
        images[1, ..., 0], made(keys[1], tissue, brain, settings)[0], atol=1e-6
    )
    assert np.abs(images[0] - images[1]).max() > 0.05


def test_spread_is_that_of_each_tissue(head):
    tissue, brain = head
    settings = dataclasses.replace(PLAIN, spread=0.2)
    white = np.s_[3:13, 3:8, 3:13]
    spreads = []
    for number in range(12):
        image, _, drawn = made(jax.random.key(number), tissue, brain, settings)
        spreads.append(np.std(image[white]) / float(drawn.white))
    assert 0.0 < min(spreads) and 0.05 < np.mean(spreads) < 0.2


def test_the_smooth_half_of_the_spread_has_the_same_variance_everywhere():
    shape = (24, 8, 8)
    tissue = np.zeros((*shape, len(TISSUES)), np.uint8)
    tissue[..., TISSUES.index('white')] = 255
    settings = dataclasses.replace(PLAIN, spread=0.2, texture_mm=24.0)
    means = jnp.zeros(len(TISSUES)).at[TISSUES.index('white')].set(1.0)
    fractions = jnp.asarray(tissue) / 255.0

    @jax.jit
    @jax.vmap
    def texture(key):
        spread = 0.2 * jax.random.uniform(jax.random.split(key, 3)[0], means.shape)
        made = generate._textured(key, fractions, means, SPACING, settings)
        return (made - 1.0) / spread[TISSUES.index('white')]

    drawn = np.asarray(texture(jax.random.split(jax.random.key(0), 400)))
    variance = (drawn**2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(variance, 1.0, atol=0.15)
    # Half of it is the same in neighbouring voxels.
    assert (drawn[:, 1:] * drawn[:, :-1]).mean() == pytest.approx(0.5, abs=0.1)


def test_thick_slices_smooth_and_stay_within_the_brain(head):
    tissue, brain = head
    thin = dataclasses.replace(PLAIN, spread=0.2)
    thick = dataclasses.replace(thin, sliced=1.0, slice_mm=20.0)
    rough = lambda image: np.abs(np.diff(np.asarray(image)[4:12, 4:7, 4:12], axis=0)).mean()
    pairs = [
        [made(jax.random.key(n), tissue, brain, settings)[0] for settings in (thin, thick)]
        for n in range(6)
    ]
    assert np.mean([rough(b) for _, b in pairs]) < 0.7 * np.mean([rough(a) for a, _ in pairs])
    assert all(not np.asarray(b)[np.asarray(brain) == 0].any() for _, b in pairs)


def test_the_field_of_view_cuts_from_above_or_below(head):
    tissue, brain = head
    settings = dataclasses.replace(PLAIN, cut=1.0, cut_mm=24.0)
    ends = set()
    for number in range(12):
        image, kept, _ = made(jax.random.key(number), tissue, brain, settings)
        levels = np.flatnonzero(np.asarray(kept).any(axis=(0, 1)))
        assert np.array_equal(levels, np.arange(levels[0], levels[-1] + 1))
        assert 10 - len(levels) <= 6 and (levels[0] == 3 or levels[-1] == 12)
        assert not np.asarray(image)[np.asarray(kept) == 0].any()
        ends |= {'below'} if levels[0] > 3 else {'above'} if levels[-1] < 12 else set()
    assert ends == {'above', 'below'}


@pytest.mark.parametrize(
    'field,value',
    [('contrasts', ('ct',)), ('contrasts', ()), ('spread', -1.0), ('sliced', 2.0),
     ('texture_mm', 0.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=f'config.synthesis.{field}'):
        SynthesisSettings(**{field: value})
