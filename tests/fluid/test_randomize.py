"""Pairs, as training sees them: what every pair satisfies, and what each setting does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import box, head, places_mm, quick_jit, split
from scipy import ndimage

from fluidjax.base.errors import UserError
from fluidjax.fluid import (
    FluidSettings,
    Grid,
    draw_pair,
    randomize,
    randomize_batch,
    randomize_drawn,
)
from fluidjax.fluid.randomize import lesion_of, paint_drawn

GRID = Grid((24, 26), (7.0, 7.0))  # in 3-D: test_many_draws
DRAWS = 64
IMAGE, BRAIN = head(GRID)
GREY = (0.5 * BRAIN).astype(np.float32)
BANK = np.stack(
    [box(GRID, np.s_[6:10], np.s_[9:13]), box(GRID, 8, 9), box(GRID, np.s_[:2], np.s_[:3])]
)
ALWAYS = FluidSettings(diseased_probability=1.0)  # an open flow, the default


@functools.cache
def _programs():
    """The draws of many keys, and the pairs of given draws."""
    draw = jax.vmap(lambda key: draw_pair(key, ALWAYS, len(BANK)))
    pair = lambda draw, image, brain, bank: randomize_drawn(draw, image, brain, GRID, ALWAYS, bank)
    return jax.jit(draw)(split(0, DRAWS)), quick_jit(jax.vmap(pair, in_axes=(0, *[None] * 3)))


def _pairs(image=IMAGE, brain=BRAIN, bank=BANK, from_bank=False, bank_index=None, **changed):
    """Pairs of many draws, (draws, x, y) NumPy arrays, and the draws; what is named is set."""
    draws, pair = _programs()
    set_ = lambda numbers, named: numbers._replace(
        **{
            name: np.broadcast_to(
                np.asarray(value, getattr(numbers, name).dtype), getattr(numbers, name).shape
            )
            for name, value in named.items()
            if value is not None
        }
    )
    seeds = set_(draws.seeds, {'from_bank': from_bank, 'bank_index': bank_index})
    draws = set_(draws, changed)._replace(seeds=seeds)
    pairs = pair(draws, image, brain, bank)
    return type(pairs)(*map(np.asarray, pairs)), draws


def _check(pairs, brain, settings=ALWAYS):
    """Holds what every pair must satisfy; returns which have a lesion."""
    healthy, diseased, mask, P = pairs
    space = tuple(range(1, P.ndim))
    for volume in (healthy, diseased, P):
        assert np.isfinite(volume).all() and volume.min() >= 0.0 and volume.max() <= 1.0
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert not mask[:, ~brain].any() and not P[:, ~brain].any()
    peak = P.max(axis=space, keepdims=True)
    np.testing.assert_array_equal(mask > 0, (P > 0) & (P >= settings.threshold * peak))
    lesioned = mask.any(axis=space)
    np.testing.assert_array_equal(healthy[~lesioned], diseased[~lesioned])
    return lesioned


def test_a_batch_is_the_draws_of_its_keys():
    batch = lambda volume: np.repeat(volume[None, ..., None], DRAWS, axis=0)
    # Given as arguments: XLA would compute with constants while it compiles.
    many = jax.jit(lambda key, *volumes: randomize_batch(key, *volumes, GRID, ALWAYS))
    drawn = many(jax.random.key(0), batch(IMAGE), batch(BRAIN))
    for together, one_by_one in zip(drawn, _pairs()[0]):
        np.testing.assert_allclose(together[..., 0], one_by_one, atol=1e-4)


BRAINS = {'head': BRAIN, 'corner': box(GRID, np.s_[:2], np.s_[:3]), 'one voxel': box(GRID, 23, 25)}


@pytest.mark.parametrize('from_bank', [False, True])
@pytest.mark.parametrize('brain', BRAINS)
def test_a_lesion_that_was_asked_for_is_never_empty(brain, from_bank):
    image = np.float32(0.5 * BRAINS[brain])
    pairs, _ = _pairs(image, BRAINS[brain], from_bank=from_bank)
    assert _check(pairs, BRAINS[brain]).all()


def test_an_empty_brain_gives_healthy_pairs():
    pairs, _ = _pairs(0.0 * IMAGE, BRAIN & False, from_bank=None)
    assert not any(volume.any() for volume in pairs)


def test_an_empty_mask_of_the_bank_gives_healthy_pairs():
    pairs, _ = _pairs(bank=BANK & False, from_bank=True)
    assert not _check(pairs, BRAIN).any()


def test_lesions_of_the_bank_keep_their_size():
    pairs, _ = _pairs(from_bank=True, bank_index=0)
    sizes = pairs.mask.sum(axis=(1, 2))
    assert 0.8 * BANK[0].sum() < np.median(sizes) < 1.6 * BANK[0].sum()


@pytest.fixture
def hardly_optimized():
    """Without jit every operation is compiled on its own: let that be quick."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def test_same_numbers_with_jit_and_without_and_without_a_mask_of_the_brain(hardly_optimized):
    key = split(0, DRAWS)[3]
    alone = randomize(key, jnp.asarray(IMAGE), None, GRID, ALWAYS)  # the brain: where the image is
    for single, many in zip(alone, _pairs()[0]):
        np.testing.assert_allclose(single, many[3], atol=1e-4)


def test_numpy_arrays_will_do_without_jit():
    batch = lambda volume: np.repeat(volume[None, ..., None], 2, axis=0)
    bank = BANK.astype(np.uint8)
    pairs = jax.eval_shape(
        lambda key: randomize_batch(key, batch(IMAGE), batch(BRAIN), GRID, ALWAYS, bank),
        jax.random.key(0),
    )
    assert pairs.mask.shape == (2, *GRID.shape, 1)
    pair = jax.eval_shape(
        lambda key: randomize(key, IMAGE, BRAIN, GRID, ALWAYS, bank), jax.random.key(0)
    )
    assert pair.mask.shape == GRID.shape


def test_one_key_one_pair_and_each_its_own():
    first, again = _pairs()[0], _pairs()[0]
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)
    for volume in (first.mask, first.probability, first.diseased):
        assert len(np.unique(volume.reshape(DRAWS, -1), axis=0)) == DRAWS


def test_seeds_and_flows_of_many_pairs_are_independent():
    P = _pairs()[0].probability[:, BRAIN]
    correlation = np.corrcoef(P)[np.triu_indices(DRAWS, 1)]
    assert abs(correlation.mean()) < 0.05 and np.median(np.abs(correlation)) < 0.3


def test_the_healthy_image_is_the_image_over_its_maximum():
    asked = np.arange(DRAWS) % 3 > 0
    pairs, _ = _pairs(diseased=asked)
    for healthy in pairs.healthy:
        np.testing.assert_allclose(healthy, IMAGE / IMAGE.max(), rtol=1e-6)
    np.testing.assert_array_equal(_check(pairs, BRAIN), asked)


def _painted(image, settings, **changed):
    """`paint_drawn` of many lesions with no spread: images, the lesions P, the draws."""
    pairs, draws = _pairs(image, **changed, u_spread=0.0)
    one = lambda draw, P, mask: paint_drawn(draw, image, BRAIN, P, mask, GRID, settings)
    painted = jax.jit(jax.vmap(one))(draws, pairs.probability, pairs.mask)
    return np.asarray(painted), pairs.probability, draws


def _expected(image, P, shift):
    return np.maximum(image + P * np.asarray(shift)[:, None, None], 0.0)


@pytest.mark.parametrize(
    ('law', 'bright', 'expected'),
    [
        ('paper', False, lambda u: -(0.75 + 0.25 * u)),
        ('paper', True, lambda u: 0.75 + 0.25 * u),
        ('una', False, lambda u: -(1.0 + u)),
        ('una', True, lambda u: 1.0 + u),
    ],
)
def test_the_laws_of_code_paint_their_shift_softly_where_the_lesion_is_soft(law, bright, expected):
    painted, P, draws = _painted(GREY, FluidSettings(painting=law), bright=bright)
    shift = 0.5 * expected(np.asarray(draws.u_shift))
    np.testing.assert_allclose(painted, _expected(GREY, P, shift), atol=1e-5)
    assert np.mean((P > 0.1) & (P < 0.9)) > 0.01


@pytest.mark.parametrize('white_matter_bright', [True, False])
def test_the_equation_paints_around_half_of_white_matter(white_matter_bright):
    painted, P, draws = _painted(
        IMAGE, FluidSettings(painting='una_equation', white_matter_bright=white_matter_bright)
    )
    white = np.quantile(IMAGE[BRAIN], 0.75 if white_matter_bright else 0.25)
    sign = np.where(draws.flipped, -1, 1) * (-1 if white_matter_bright else 1)
    shift = 0.5 * white * (sign + np.asarray(draws.n_shift))
    np.testing.assert_allclose(painted, _expected(IMAGE, P, shift), atol=0.02)


def test_mu_is_the_mean_under_the_lesion_strength_multiplies_and_the_maximum_divides():
    pairs, _ = _pairs(strength=0.3, u_shift=0.0, u_spread=0.0)
    mu = np.array([IMAGE[mask > 0].mean() for mask in pairs.mask])
    expected = _expected(IMAGE, pairs.probability, -0.3 * 0.75 * mu)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(pairs.diseased, expected, atol=1e-5)
    assert np.std(mu) > 0.05


@functools.cache
def _rough(strength):
    """(painted - image) / P (voxels,) inside bright lesions with the largest spread in grey."""
    pairs, _ = _pairs(GREY, u_spread=1.0, u_shift=0.0, bright=True, strength=strength)
    P = pairs.probability
    scale = [0.5 / d[(p == 0) & BRAIN].mean() for d, p in zip(pairs.diseased, P)]
    change = pairs.diseased * np.reshape(scale, (-1, 1, 1)) - 0.5
    return change[P > 0.5] / P[P > 0.5]


def test_the_spread_is_a_quarter_of_the_mean_at_most():
    n = (_rough(1.0) - 0.75 * 0.5) / (0.25 * 0.5)
    assert n.std() == pytest.approx(1.0, abs=0.05) and abs(n.mean()) < 0.05


def test_a_faint_lesion_has_a_faint_texture():
    """Else its noise would betray it, however little it is darker or brighter."""
    faint, full = _rough(0.1), _rough(1.0)
    np.testing.assert_allclose(faint, 0.1 * full, atol=1e-4)
    assert faint.std() == pytest.approx(0.1 * full.std(), rel=1e-3) and full.std() > 0.1
    pairs, _ = _pairs(u_spread=1.0, strength=0.0)
    np.testing.assert_array_equal(pairs.diseased, pairs.healthy)


@functools.cache
def _pusher(share):
    settings = FluidSettings(mass_effect=share, border_mm=0.0)
    one = lambda draw, image, P, mask: paint_drawn(draw, image, BRAIN, P, mask, GRID, settings)
    return jax.jit(jax.vmap(one, in_axes=(0, None, 0, 0)))


def _pushed(share, image):
    """An image (draws, x, y) after the mass effect of many lesions that paint nothing; masks."""
    pairs, draws = _pairs(strength=0.0, u_spread=0.0)
    return np.asarray(_pusher(share)(draws, image, pairs.probability, pairs.mask)), pairs.mask


def test_mass_effect_moves_the_tissue_near_the_lesion_alone_and_by_its_share_of_the_flow():
    ramp = np.float32(places_mm(GRID)[0] + 50.0) / 300.0  # it shows its displacement
    half, whole = (_pushed(share, ramp)[0] - ramp for share in (0.5, 1.0))
    assert not whole[:, ~BRAIN].any() and np.abs(whole).max() > 0.01  # 3 mm
    # At the brain's border what lies outside it is left out of the interpolation.
    inner = ndimage.binary_erosion(BRAIN, iterations=2)
    np.testing.assert_allclose(whole[:, inner], 2.0 * half[:, inner], atol=1e-4)
    masks = _pushed(1.0, ramp)[1]
    away = np.stack([ndimage.distance_transform_edt(mask == 0) for mask in masks]) * 7.0
    near, far = (np.abs(whole[at & BRAIN]).mean() for at in (away < 10.0, away > 50.0))
    assert far < 0.05 * near, (near, far)


def test_mass_effect_lets_no_darkness_in_from_outside_the_brain():
    pushed, _ = _pushed(1.0, np.float32(0.7 * BRAIN))
    np.testing.assert_allclose(pushed[:, BRAIN], 0.7, atol=1e-5)


def test_transport_changes_the_lesion_and_no_time_leaves_the_seed():
    moved, still = _pairs()[0].probability, _pairs(time=0.0)[0].probability
    change = np.abs(moved - still).sum(axis=(1, 2)) / still.sum(axis=(1, 2))
    assert np.median(change) > 0.15
    np.testing.assert_allclose(still.max(axis=(1, 2)), 1.0, atol=1e-5)


def test_a_lesion_that_left_the_brain_is_painted_where_it_was_seeded():
    settings = dataclasses.replace(ALWAYS, border_mm=0.0, velocity_scale=10_000.0, min_peak=1.0)
    lesion = jax.jit(jax.vmap(lambda draw: lesion_of(draw, BRAIN, GRID, settings)[0]))
    draws = _programs()[0]
    moved, still = (np.asarray(lesion(draws._replace(time=time * draws.time))) for time in (1, 0))
    assert np.mean((moved == still).all(axis=(1, 2))) > 0.5
    assert np.all(moved.max(axis=(1, 2)) >= still.max(axis=(1, 2)))  # a peak of 1, or the seed


@pytest.mark.parametrize(
    ('images', 'brains', 'bank', 'message'),
    [
        ((2, 24, 26), None, None, 'give .batch, x, y, 1.'),
        ((2, 24, 26, 2), None, None, 'give .batch, x, y, 1.'),
        ((2, 24, 25, 1), None, None, 'image has shape .* resample it'),
        ((2, 24, 26, 1), (1, 24, 26, 1), None, 'one per image'),
        ((2, 24, 26, 1), None, (3, 24, 25), 'lesion bank, after its first axis'),
        ((2, 24, 26, 1), None, (24, 26), 'lesion bank, after its first axis'),
        ((2, 24, 26, 1), None, (0, 24, 26), 'lesion bank has no mask'),
    ],
)
def test_wrong_shapes_are_named(images, brains, bank, message):
    brains = None if brains is None else jnp.zeros(brains)
    bank = None if bank is None else jnp.zeros(bank, jnp.uint8)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            lambda key: randomize_batch(key, jnp.zeros(images), brains, GRID, lesion_bank=bank),
            jax.random.key(0),
        )
