"""Augmentation keeps a scan a scan."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fluidjax.methods.augment import AugmentSettings, augment_batch, random_affine

SPACING = (8.0, 8.0, 8.0)
NOTHING = AugmentSettings(0.0, 0.0, 0.0, 0.0, 0.0, 32.0, 0.0, 0.0, 0.0)


def brain(n=2):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing='ij')
    inside = (x**2 + y**2 + z**2 < 0.7).astype(np.float32)
    image = inside * (0.5 + 0.3 * x)
    return (jnp.asarray(np.repeat(v[None, ..., None], n, 0)) for v in (image, inside))


def test_without_settings_nothing_changes():
    image, mask = brain()
    out, out_mask = augment_batch(jax.random.key(0), image, mask, SPACING, NOTHING)
    np.testing.assert_allclose(out, image, atol=1e-6)
    np.testing.assert_array_equal(out_mask, mask)


def test_samples_differ_stay_in_range_and_background_stays_zero():
    image, mask = brain()
    out, out_mask = augment_batch(jax.random.key(1), image, mask, SPACING, AugmentSettings())
    assert float(jnp.abs(out[0] - out[1]).max()) > 0.05
    assert float(out.min()) >= 0.0 and float(out.max()) <= 1.0
    assert bool(jnp.all(jnp.where(out_mask == 0, out, 0.0) == 0.0))
    share = float(out_mask.mean() / mask.mean())
    assert 0.4 < share < 2.5
    again, _ = augment_batch(jax.random.key(1), image, mask, SPACING, AugmentSettings())
    np.testing.assert_array_equal(out, again)


def test_mirroring_is_left_right():
    image, mask = brain(1)
    always = dataclasses.replace(NOTHING, flip_probability=1.0)
    out, _ = augment_batch(jax.random.key(0), image, mask, SPACING, always)
    np.testing.assert_allclose(out, image[:, ::-1], atol=1e-6)


def test_a_pure_rotation_is_orthogonal():
    settings = dataclasses.replace(NOTHING, rotation_degrees=15.0)
    R = random_affine(jax.random.key(3), settings)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-5)
    assert float(jnp.linalg.det(R)) > 0.99
