"""Pairs, as training sees them: invariants over hundreds of draws, and reproducibility."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.errors import UserError
from fluidjax.fluid import FluidSettings, Grid, randomize, randomize_batch

GRID = Grid((20, 24, 18), (8.0, 8.0, 8.0))
BATCH = 32


def _head():
    axes = [np.linspace(-1, 1, n) for n in GRID.shape]
    x, y, z = np.meshgrid(*axes, indexing='ij')
    brain = x**2 + y**2 + z**2 < 0.7
    return (brain * (0.6 + 0.3 * np.sin(5 * x) * np.cos(4 * z))).astype(np.float32), brain


IMAGE, BRAIN = _head()
BANK = np.zeros((3, *GRID.shape), np.uint8)
BANK[0, 4:9, 8:15, 6:12] = 1
BANK[1, 6:7, 6:7, 6:7] = 1  # one voxel
BANK[2, 0:2, 0:2, 0:2] = 1  # outside the brain


def _batch(volume, n=BATCH):
    return jnp.asarray(np.tile(volume[None, ..., None].astype(np.float32), (n, 1, 1, 1, 1)))


@functools.partial(jax.jit, static_argnames='settings')
def _pairs(key, images, brains, bank, settings=FluidSettings()):
    return randomize_batch(key, images, brains, GRID, settings, bank)


def _check(pairs, brain, settings=FluidSettings()):
    """Holds what every batch must satisfy; returns which samples are diseased."""
    healthy, diseased, mask, P = (np.asarray(a)[..., 0] for a in pairs)
    for volume in (healthy, diseased, P):
        assert np.isfinite(volume).all() and volume.min() >= 0.0 and volume.max() <= 1.0
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert not mask[:, ~brain].any() and not P[:, ~brain].any()
    peak = P.max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_array_equal(mask > 0, (P > 0) & (P >= settings.threshold * peak))
    changed = (healthy != diseased).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, mask.any(axis=(1, 2, 3)))
    return changed


@pytest.mark.parametrize('bank', [None, BANK], ids=['perlin', 'bank'])
def test_invariants_over_256_draws(bank):
    diseased = np.concatenate([
        _check(_pairs(jax.random.key(i), _batch(IMAGE), _batch(BRAIN), bank), BRAIN)
        for i in range(8)])
    assert 0.8 * 256 - 26 < diseased.sum() < 0.8 * 256 + 26  # four standard deviations


ALWAYS = FluidSettings(diseased_probability=1.0)


@pytest.mark.parametrize('bank_probability', [0.5, 1.0])
def test_a_lesion_that_was_asked_for_is_never_empty(bank_probability):
    """Even in a tiny brain at the corner, under a flow fifty times the published one."""
    settings = FluidSettings(diseased_probability=1.0, velocity_scale=25_000.0, max_steps=40,
                             bank_probability=bank_probability)
    brain = np.zeros(GRID.shape, bool)
    brain[:2, :3, :2] = True
    image = (0.5 * brain).astype(np.float32)
    for i in range(4):
        pairs = _pairs(jax.random.key(i), _batch(image), _batch(brain), BANK, settings)
        assert _check(pairs, brain, settings).all()


def test_lesions_of_the_bank_keep_their_size_and_perlin_follows_its_percentiles():
    only_bank = FluidSettings(diseased_probability=1.0, bank_probability=1.0)
    sizes = np.asarray(_pairs(jax.random.key(0), _batch(IMAGE), _batch(BRAIN), BANK[:1],
                              only_bank).mask).sum(axis=(1, 2, 3, 4))
    assert 0.6 * BANK[0].sum() < np.median(sizes) < 2.0 * BANK[0].sum()
    small = FluidSettings(diseased_probability=1.0, seed_percentiles=(99.0, 99.6))
    sizes = np.asarray(_pairs(jax.random.key(0), _batch(IMAGE), _batch(BRAIN), None,
                              small).mask).sum(axis=(1, 2, 3, 4))
    assert np.median(sizes) < 0.05 * BRAIN.sum()


def test_healthy_pairs_where_no_disease_is_drawn_or_possible():
    never = FluidSettings(diseased_probability=0.0)
    assert not _check(_pairs(jax.random.key(0), _batch(IMAGE), _batch(BRAIN), None, never),
                      BRAIN).any()
    nothing = np.zeros(GRID.shape)
    pairs = _pairs(jax.random.key(0), _batch(nothing), _batch(nothing), None, ALWAYS)
    assert not any(np.asarray(volume).any() for volume in pairs)
    only_bank = FluidSettings(diseased_probability=1.0, bank_probability=1.0)
    pairs = _pairs(jax.random.key(0), _batch(IMAGE), _batch(BRAIN), 0 * BANK, only_bank)
    assert not _check(pairs, BRAIN).any()


def test_one_key_one_result_and_each_sample_its_own():
    first, again, other = (
        _pairs(jax.random.key(k), _batch(IMAGE), _batch(BRAIN), None, ALWAYS) for k in (7, 7, 8))
    np.testing.assert_array_equal(first.diseased, again.diseased)
    assert not np.array_equal(first.diseased, other.diseased)
    masks = np.asarray(first.mask).reshape(BATCH, -1)
    assert len(np.unique(masks, axis=0)) == BATCH


def test_a_sample_of_a_batch_is_the_single_draw_of_its_key():
    key = jax.random.key(9)
    batch = _pairs(key, _batch(IMAGE), _batch(BRAIN), None, ALWAYS)
    alone = jax.jit(lambda key, image, brain: randomize(key, image, brain, GRID, ALWAYS))
    one = alone(jax.random.split(key, BATCH)[3], IMAGE, BRAIN)
    for single, many in zip(one, batch):
        np.testing.assert_allclose(single, many[3, ..., 0], atol=1e-5)


def test_without_a_mask_the_brain_is_where_the_image_is():
    given = _pairs(jax.random.key(3), _batch(IMAGE), _batch(BRAIN), None, ALWAYS)
    found = _pairs(jax.random.key(3), _batch(IMAGE), None, None, ALWAYS)
    np.testing.assert_allclose(found.diseased, given.diseased, atol=1e-6)


def test_lesions_are_dark_or_bright_as_set():
    for share, brighter in ((0.0, False), (1.0, True)):
        settings = FluidSettings(diseased_probability=1.0, bright_probability=share)
        pairs = _pairs(jax.random.key(1), _batch(IMAGE), _batch(BRAIN), None, settings)
        # Ratio to the rest of the brain: both images are divided by their own maximum.
        lesion, rest = pairs.mask > 0, (pairs.probability == 0) & (_batch(BRAIN) > 0)
        contrast = jnp.mean(pairs.diseased, where=lesion) / jnp.mean(pairs.diseased, where=rest)
        assert bool(contrast > 1.2) == brighter and bool(contrast < 0.8) != brighter


@pytest.mark.parametrize(('images', 'brains', 'bank', 'message'), [
    ((2, 20, 24, 18), None, None, 'give .batch, x, y, z, 1.'),
    ((2, 20, 24, 16, 1), None, None, 'image has shape'),
    ((2, 20, 24, 18, 1), (1, 20, 24, 18, 1), None, 'one mask an image'),
    ((2, 20, 24, 18, 1), None, (3, 20, 24, 16), 'lesion bank, after its first axis'),
    ((2, 20, 24, 18, 1), None, (0, 20, 24, 18), 'lesion bank has no mask'),
])
def test_wrong_shapes_are_named(images, brains, bank, message):
    brains = None if brains is None else jnp.zeros(brains)
    bank = None if bank is None else jnp.zeros(bank, jnp.uint8)
    with pytest.raises(UserError, match=message):
        randomize_batch(jax.random.key(0), jnp.zeros(images), brains, GRID, lesion_bank=bank)
