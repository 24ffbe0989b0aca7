"""Healthy variants: each does what it says, and nothing where it is off."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fluidjax.base.errors import UserError
from fluidjax.fluid.anatomy import CENTRE_MM, WALL_MM, from_ventricles
from fluidjax.fluid.grid import Grid
from fluidjax.methods import pairs, scans, variants
from fluidjax.methods.augment import AugmentSettings
from fluidjax.methods.variants import VariantSettings

SHAPE, SPACING = (40, 48, 40), (4.0, 4.0, 4.0)
GRID = Grid((8, 8, 8), (12.0, 12.0, 12.0))
OFF = {
    f.name: 0.0 for f in dataclasses.fields(VariantSettings) if f.name not in ('share', 'centre')
}


@pytest.fixture(scope='module')
def scan():
    """A bright ellipsoid with dark ventricles, and its mask."""
    axes = [np.linspace(-1, 1, n) for n in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing='ij')
    brain = (x**2 + y**2 + z**2 < 0.8).astype(np.float32)
    distance, _, _ = from_ventricles(SHAPE, SPACING, CENTRE_MM)
    image = brain * np.where(distance < WALL_MM, 0.2, 0.7).astype(np.float32)
    return jnp.asarray(image), jnp.asarray(brain)


@pytest.fixture(scope='module')
def vary():
    return jax.jit(variants.vary, static_argnums=(3, 4))


def test_the_ventricles_are_left_and_right_of_the_midline():
    found = from_ventricles(SHAPE, SPACING, CENTRE_MM)
    distance, outward, side = (np.asarray(volume) for volume in found)
    np.testing.assert_allclose(distance, distance[::-1], atol=1e-5)
    np.testing.assert_allclose(outward[..., 0], -outward[::-1, ..., 0], atol=1e-5)
    np.testing.assert_allclose(side, -side[::-1], atol=1e-6)
    norm = np.linalg.norm(outward, axis=-1)
    assert norm.max() <= 1.0 + 1e-5 and np.median(norm[distance > 2]) > 0.95
    x = (np.arange(SHAPE[0]) - 19.5) * 4.0
    inside = distance < WALL_MM
    assert not inside[np.abs(x) > 45].any() and inside[np.abs(np.abs(x) - 10) < 4].any()


def test_nothing_changes_where_all_is_off(scan, vary):
    image, brain = scan
    for settings in (VariantSettings(share=0.0), VariantSettings(share=1.0, **OFF)):
        out, mask = vary(jax.random.key(0), image, brain, SPACING, settings)
        np.testing.assert_allclose(out, image, atol=2e-5)
        np.testing.assert_array_equal(mask, brain)


def test_variants_stay_scans(scan, vary):
    image, brain = scan
    settings = VariantSettings(share=1.0)
    made = [vary(jax.random.key(i), image, brain, SPACING, settings) for i in range(6)]
    for out, mask in made:
        assert np.isfinite(out).all() and float(out.min()) >= 0.0 and float(out.max()) <= 1.0
        assert not np.asarray(out)[np.asarray(mask) == 0].any()
        assert 0.7 < float(mask.sum() / brain.sum()) < 1.3
    again, _ = vary(jax.random.key(0), image, brain, SPACING, settings)
    np.testing.assert_array_equal(made[0][0], again)
    assert float(jnp.abs(made[0][0] - made[1][0]).max()) > 0.05


def test_walls_of_the_ventricles_move_outwards(scan):
    image, _ = scan
    widen = jax.jit(
        lambda key, moved: variants.widen_ventricles(key, image, moved, SPACING, CENTRE_MM)
    )
    dark = lambda v: float(((np.asarray(v) < 0.45) & (np.asarray(image) > 0)).sum())
    before = dark(image)
    volumes = [dark(widen(jax.random.key(0), jnp.float32(moved))) for moved in (0.0, 6.0, 12.0)]
    assert volumes[0] == before and 1.5 * before < volumes[1] and 1.5 * volumes[1] < volumes[2]
    out, distance = (
        widen(jax.random.key(0), jnp.float32(8.0)),
        from_ventricles(SHAPE, SPACING, CENTRE_MM)[0],
    )
    far = distance > 40.0
    np.testing.assert_allclose(np.asarray(out)[far], np.asarray(image)[far], atol=1e-5)


def test_in_t2w_ventricles_and_sulci_become_bright(scan):
    image, brain = scan
    turned = brain * (1.0 - image)  # fluid is bright
    fluid = jnp.float32(0.9)
    wide = variants.widen_ventricles(
        jax.random.key(1), turned, jnp.float32(8.0), SPACING, CENTRE_MM, fluid
    )
    more = np.asarray((wide > 0.8) & (turned < 0.6))
    assert more.sum() > 20 and np.asarray(wide).max() <= 1.0
    distance = np.asarray(from_ventricles(SHAPE, SPACING, CENTRE_MM)[0])
    assert distance[more].max() < WALL_MM + 10.0
    rng = np.random.default_rng(0)
    rough = brain * jnp.asarray(ndimage.gaussian_filter(rng.uniform(size=SHAPE), 1.0), jnp.float32)
    change = np.asarray(
        variants.widen_sulci(rough, brain, jnp.float32(2.0), SPACING, fluid) - rough
    )
    assert change.min() >= -1e-6 and change.max() > 0.02


def test_sulci_widen_at_the_surface_only():
    rng = np.random.default_rng(0)
    image = jnp.asarray(ndimage.gaussian_filter(rng.uniform(size=SHAPE), 1.0), jnp.float32)
    brain = jnp.asarray(np.pad(np.ones((32, 40, 32), np.float32), 4))
    out = variants.widen_sulci(image * brain, brain, jnp.float32(2.0), SPACING)
    change = np.asarray(out - image * brain)
    assert change.max() <= 1e-6 and change[:, :, 4].min() < -0.02
    assert np.abs(change[14:26, 14:34, 14:26]).max() < 1e-3
    np.testing.assert_array_equal(
        variants.widen_sulci(image * brain, brain, jnp.float32(0.0), SPACING), image * brain
    )


def test_sulci_widen_by_more_than_a_voxel_on_a_fine_grid():
    image = jnp.ones((24, 24, 24)).at[12, 12, 2:4].set(0.0)
    brain = jnp.zeros_like(image).at[2:22, 2:22, 2:22].set(1.0)
    lost = [
        float(
            (1.0 - variants.widen_sulci(image, brain, jnp.float32(mm), (1.0,) * 3, None, 2.0))[
                2:22, 2:22, 2:22
            ].sum()
        )
        for mm in (0.0, 1.0, 1.5, 2.0)
    ]
    assert lost[0] == 2.0 and lost[1] < lost[2] < lost[3]


def test_a_mask_is_cut_by_the_distance(scan):
    image, brain = scan
    inside = np.asarray(brain) > 0
    depth = ndimage.distance_transform_edt(inside, SPACING)
    height = ndimage.distance_transform_edt(~inside, SPACING)
    cut = jax.jit(lambda key: variants.cut_mask(key, image, brain, jnp.float32(8.0), SPACING))
    seen = set()
    for number in range(8):
        out, mask = cut(jax.random.key(number))
        kept = np.asarray(mask) > 0
        lost, won = inside & ~kept, kept & ~inside
        assert not (lost.any() and won.any())
        seen.add('tight' if lost.any() else 'wide')
        assert depth[lost].max(initial=0) <= 12.0 and height[won].max(initial=0) <= 12.0
        same = kept & inside
        np.testing.assert_array_equal(np.asarray(out)[same], np.asarray(image)[same])
    assert seen == {'tight', 'wide'}


@pytest.mark.parametrize('change', [{'share': 1.5}, {'blur_mm': -1.0}, {'ventricle_mm': 16.0}])
def test_bad_settings_are_named(change):
    with pytest.raises(UserError, match=f'variants.{next(iter(change))}'):
        VariantSettings(**change)


def test_variants_do_not_follow_the_augmentation():
    """Keys that are used twice would tie the two together."""
    seen = []

    def note(keys, *given):
        seen.append(np.asarray(jax.random.key_data(keys)))
        return given[0], given[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans, 'augment_batch', note)
        patch.setattr(scans, 'vary_batch', note)
        maker = pairs.PairMaker(GRID, AugmentSettings(), None, variants=VariantSettings(share=1.0))
        volume = jnp.zeros((4, *GRID.shape, 1))
        maker({'image': volume, 'brain': volume}, jax.random.key(0))
    augmented, varied = seen
    children = np.asarray(
        jax.random.key_data(
            jax.vmap(lambda k: jax.random.split(k, 4))(
                jax.random.wrap_key_data(jnp.asarray(augmented))
            )
        )
    )
    known = {tuple(key) for key in np.concatenate([augmented, children.reshape(-1, 2)])}
    assert not known & {tuple(key) for key in varied}
