"""The wide law of lesions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fluidjax.base.errors import UserError
from fluidjax.fluid import wide
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.settings import FluidSettings
from fluidjax.fluid.wide import Look, WideSettings

GRID = Grid((40, 48, 40), (4.0, 4.0, 4.0))
ALWAYS = WideSettings(fluid=FluidSettings(diseased_probability=1.0), size_ml=(0.5, 60.0))
PLAIN = Look(
    shift=-0.5, spread=0.0, flattened=0.0, softness=0.02, core=2.0, fluid=0.2, rim=0.0, smooth=True
)


@pytest.fixture(scope='module')
def head():
    """A brain of two intensities, and its mask."""
    axes = [np.linspace(-1, 1, n) for n in GRID.shape]
    x, y, z = np.meshgrid(*axes, indexing='ij')
    brain = x**2 + y**2 + z**2 < 0.8
    image = brain * np.where(np.sin(9 * x) * np.sin(9 * y) > 0, 0.8, 0.6)
    return jnp.asarray(image, jnp.float32), jnp.asarray(brain, jnp.float32)


@pytest.fixture(scope='module')
def pairs(head):
    """Pairs of twenty keys."""
    # Given as arguments: XLA would compute with constants while it compiles.
    one = jax.jit(lambda key, *head: wide.randomize_wide(key, *head, GRID, ALWAYS))
    return [jax.tree.map(np.asarray, one(jax.random.key(i), *head)) for i in range(20)]


def test_pairs_differ_only_in_the_lesion(head, pairs):
    image, brain = (np.asarray(volume) for volume in head)
    peak = image.max()
    for pair in pairs:
        scale = image[image > 0] / pair.healthy[image > 0]
        np.testing.assert_allclose(scale, scale[0], rtol=1e-5)
        assert scale[0] >= peak - 1e-6
        assert set(np.unique(pair.mask)) == {0.0, 1.0}
        assert not pair.mask[brain == 0].any() and not pair.diseased[brain == 0].any()
        assert pair.diseased.min() >= 0.0 and pair.diseased.max() <= 1.0
        outside = (pair.mask == 0) & (brain > 0)
        ratio = pair.diseased[outside] / pair.healthy[outside]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
        # A dark lesion over the brightest voxel, or a bright one whose maximum both have.
        assert ratio[0] == pytest.approx(1.0, abs=1e-5) or scale[0] == pytest.approx(peak)


def test_lesions_are_of_all_sizes_and_numbers(pairs):
    volumes = np.array([pair.mask.sum() * GRID.voxel_ml for pair in pairs])
    assert volumes.min() < 2.0 and volumes.max() > 20.0 and volumes.max() < 100.0
    numbers = {ndimage.label(pair.mask)[1] for pair in pairs}
    assert 1 in numbers and max(numbers) >= 4


def test_seeds_have_their_volumes_and_their_places(head):
    _, brain = head
    single = dataclasses.replace(ALWAYS, count=(1, 1), size_ml=(20.0, 20.0))
    made = jax.jit(lambda key, brain: wide.seeds(key, brain > 0, GRID, single))
    inside = np.asarray(brain) > 0
    distance = np.asarray(wide.from_ventricles(GRID.shape, GRID.spacing, single.centre)[0])
    depth = ndimage.distance_transform_edt(inside, GRID.spacing)
    volumes, deep, near, shallow = [], 0, 0, 0
    for number in range(40):
        P0 = np.asarray(made(jax.random.key(number), brain))
        assert P0.max() == pytest.approx(1.0)
        middle = np.unravel_index(P0.argmax(), P0.shape)
        volumes.append((P0 >= single.fluid.threshold).sum() * GRID.voxel_ml)
        near += distance[middle] < 16
        shallow += depth[middle] < 12
        deep += distance[middle] >= 16 and depth[middle] >= 12
    assert np.median(volumes) == pytest.approx(20.0, rel=0.3)
    assert near >= 8 and shallow >= 8 and deep >= 2


def test_seeds_beside_wide_ventricles_lie_in_tissue(head):
    """The ventricles of a scan may be much wider than those of the atlas."""
    image, brain = map(np.asarray, head)
    distance = np.asarray(wide.from_ventricles(GRID.shape, GRID.spacing, ALWAYS.centre)[0])
    widened = np.where((brain > 0) & (distance < 12), 0.15, image).astype(np.float32)
    single = dataclasses.replace(ALWAYS, count=(1, 1), size_ml=(5.0, 5.0))

    @jax.jit
    def middles(keys, image, brain):
        tissue = wide._tissue(image, jnp.float32(0.8), jnp.float32(0.2))
        made = jax.lax.map(lambda key: wide.seeds(key, brain > 0, GRID, single, tissue), keys)
        return made.reshape(len(keys), -1).argmax(axis=1)

    keys = jax.random.split(jax.random.key(0), 40)
    found = distance.ravel()[np.asarray(middles(keys, widened, brain))]
    assert (found < 16).sum() >= 8
    assert (found < 12).sum() <= 4  # of those that may lie anywhere; 8 without the tissue


def test_looks_have_their_shares():
    draw = jax.jit(jax.vmap(lambda key: wide.draw_look(key, ALWAYS)))
    looks = draw(jax.random.split(jax.random.key(0), 2000))
    shift = np.asarray(looks.shift)
    assert np.mean(shift > 0) == pytest.approx(ALWAYS.bright, abs=0.03)
    assert np.mean(shift == 0) == pytest.approx(ALWAYS.alike, abs=0.03)
    assert np.mean(np.asarray(looks.core) < 1) == pytest.approx(0.9 * ALWAYS.core, abs=0.03)
    assert np.mean(np.asarray(looks.rim) != 0) == pytest.approx(ALWAYS.rim, abs=0.03)
    assert -1.0 <= shift.min() < -0.9 and np.asarray(looks.softness).max() <= 0.8


def painted(head, look, P):
    mask = (P >= 0.2).astype(np.float32)
    made = _paint(jax.random.key(0), head[0], P, mask, Look(*map(jnp.asarray, look)))
    return np.asarray(made), mask > 0


@jax.jit
def _paint(*arguments):
    return wide.paint_look(*arguments, GRID, 0.2, white=jnp.float32(0.8))


@pytest.fixture(scope='module')
def ball():
    """P of a ball of 24 mm: 1 in its middle, 0.2 at its edge."""
    at = np.stack(np.meshgrid(*[np.arange(n) * 4.0 for n in GRID.shape], indexing='ij'), axis=-1)
    distance = np.linalg.norm(at - [80.0, 92.0, 80.0], axis=-1) / 24.0
    return np.where(distance <= 1, 1 - 0.8 * distance, 0.0).astype(np.float32)


def test_looks_do_what_they_say(head, ball):
    image = np.asarray(head[0])
    made, mask = painted(head, PLAIN, ball)
    mean = image[mask].mean()
    inner = ball > 0.25
    np.testing.assert_allclose((made - image)[inner], -0.5 * mean, atol=1e-5)
    np.testing.assert_array_equal(made[~mask], image[~mask])
    soft, _ = painted(head, PLAIN._replace(softness=0.8), ball)
    change = (image - soft)[mask]
    assert np.corrcoef(change, ball[mask])[0, 1] > 0.9  # it fades towards its edge
    flat, _ = painted(head, PLAIN._replace(shift=0.0, flattened=1.0), ball)
    np.testing.assert_allclose(flat[inner], mean, atol=1e-5)
    cored, _ = painted(head, PLAIN._replace(core=0.5), ball)
    assert cored[ball > 0.65].max() < 0.25 and np.allclose(
        cored[inner & (ball < 0.5)], made[inner & (ball < 0.5)]
    )
    rimmed, _ = painted(head, PLAIN._replace(rim=0.4), ball)
    assert rimmed[np.abs(ball - 0.3) < 0.05].mean() > made[np.abs(ball - 0.3) < 0.05].mean() + 0.15
    np.testing.assert_allclose(rimmed[ball > 0.8], made[ball > 0.8], atol=1e-3)


def test_the_bank_is_used(head):
    image, brain = head
    bank = np.zeros((2, *GRID.shape), np.uint8)
    bank[:, 24:28, 20:30, 18:22] = 1
    still = FluidSettings(
        diseased_probability=1.0,
        bank_probability=1.0,
        transport_time=(0.0, 0.0),
        bank_shift_mm=0.0,
        bank_rotation_degrees=0.0,
        bank_scale=(1.0, 1.0),
    )
    settings = WideSettings(fluid=still)
    made = jax.jit(
        lambda key, *volumes: wide.randomize_wide(key, *volumes[:2], GRID, settings, bank)
    )
    pair = made(jax.random.key(1), image, brain)
    mask = np.asarray(pair.mask) > 0
    assert any((mask == side).all() for side in (bank[0] > 0, bank[0, ::-1] > 0))
    inner = np.asarray(pair.probability)[mask]  # it rises to its middle, as an ellipsoid does
    assert inner.max() == pytest.approx(1.0, abs=1e-4) and inner.min() < 0.7


@pytest.mark.parametrize(
    'change',
    [{'count': (0, 3)}, {'size_ml': (5.0, 1.0)}, {'bright': 0.8, 'alike': 0.5}, {'core': 2.0}],
)
def test_bad_settings_are_named(change):
    with pytest.raises(UserError, match=f'wide.{list(change)[-1]}'):
        WideSettings(**change)


@pytest.fixture(scope='module')
def in_contrast(head):
    """The compiled (key, look) -> a pair with strong lesions."""
    image, brain = head
    settings = dataclasses.replace(ALWAYS, bright=0.0, alike=0.0, core=1.0, strength=(0.4, 0.8))
    made = jax.jit(
        lambda key, image, brain, look: wide.randomize_wide(
            key, image, brain, GRID, settings, None, look
        )
    )
    return lambda key, look: made(key, 0.7 * image, brain, look)


@pytest.mark.parametrize('bright', [0.0, 1.0])
def test_in_a_contrast_lesions_are_as_bright_as_it_calls_for(head, in_contrast, bright):
    _, brain = head
    fluid = 0.9 if bright else 0.1
    look = wide.Appearance(*map(jnp.float32, (bright, 0.0, 0.6, fluid)))
    for number in range(5):
        pair = in_contrast(jax.random.key(number), look)
        inside = np.asarray(pair.mask) > 0
        outside = (np.asarray(brain) > 0) & ~inside
        ratio = np.median(np.asarray(pair.diseased / jnp.maximum(pair.healthy, 1e-6))[outside])
        if bright:  # healthy tissue is as bright in both images, so that a network keeps it
            assert ratio == pytest.approx(1.0, abs=1e-4)
        change = (np.asarray(pair.diseased) / ratio - np.asarray(pair.healthy))[inside].mean()
        assert change > 0 if bright else change < 0


def test_looks_in_a_contrast_have_its_fluid_and_its_exceptions():
    settings = dataclasses.replace(ALWAYS, bright=0.2, alike=0.0, core=0.5)
    look = wide.Appearance(*map(jnp.float32, (1.0, 1.0, 0.3, 0.9)))
    keys = jax.random.split(jax.random.key(0), 400)
    looks = jax.jit(jax.vmap(lambda key: wide.draw_look(key, settings, look)))(keys)
    assert 0.7 < np.mean(looks.shift > 0) < 0.9
    assert 0.4 < np.mean(looks.core < 1) < 0.6
    assert (looks.rim >= 0.3).all() and (looks.fluid >= 2.4).all() and (looks.fluid <= 3.6).all()
