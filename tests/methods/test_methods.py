"""Every method on a small grid: it learns from a fixed batch, and it reconstructs."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs.methods import config_of
from fluidjax.fluid.grid import Grid
from fluidjax.methods.bridge import between
from fluidjax.methods.latents import touched
from fluidjax.methods.pairs import PairMaker
from fluidjax.models.autoencoder import Autoencoder
from fluidjax.runs.stages import METHODS, build_stages
from fluidjax.training.loop import StageSettings
from fluidjax.training.settings import OptimizerSettings, make_optimizer
from fluidjax.training.state import run_once

GRID = Grid((16, 16, 16), (12.0, 12.0, 12.0))
STEPS = 20


def brains(count: int, seed: int = 0) -> np.ndarray:
    """Smooth bright balls on black, each its own, with maximum 1: `(n, x, y, z, 1)`."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in GRID.shape], indexing='ij')
    radius = np.sqrt(sum(axis**2 for axis in axes))
    inside = ndimage.gaussian_filter((radius < 0.8).astype(np.float32), 0.5) > 0.5
    texture = [ndimage.gaussian_filter(rng.normal(size=GRID.shape), 2.0) for _ in range(count)]
    images = np.stack([inside * np.clip(0.6 + 1.5 * t, 0.05, 1.0) for t in texture])
    images /= images.max(axis=(1, 2, 3), keepdims=True)
    return images[..., None].astype(np.float32)


def method_of(name: str):
    """The last stage of a method's smoke configuration, on a grid of 16^3."""
    return build_stages(config_of(name, 'smoke'), GRID)[-1].method


def initial(method, autoencoder, seed=2):
    """Random parameters of a method, and those of an autoencoder, whose drawing is left out."""

    def draw(key):
        return {name: group for name, group in method.init(key).items() if name != 'autoencoder'}

    params = run_once(draw, jax.random.key(seed))
    if method.autoencoder is not None:
        params['autoencoder'] = autoencoder[1]['autoencoder']
    return params


class DrawnPairs(PairMaker):
    """Returns the same pairs again and again, so that a training step need not compile them."""

    def __call__(self, batch, key, share=None):
        return _drawn(self)


@functools.cache
def _drawn(pairs):
    return run_once(lambda key: PairMaker.__call__(pairs, _batch(), key), jax.random.key(6))


def with_drawn_pairs(method):
    pairs = method.pairs
    drawn = DrawnPairs(pairs.grid, pairs.augment, pairs.randomization, pairs.stored)
    _drawn(drawn)  # before anything is traced
    return dataclasses.replace(method, pairs=drawn)


def fit(method, params, batch, learning_rate=3e-3):
    """Losses of a few steps on one batch with one key, and the parameters after them."""
    settings = StageSettings(STEPS, 2, OptimizerSettings(learning_rate, clip_norm=1.0))
    optimizer = make_optimizer(settings.optimizer, STEPS, method.trainable)
    trained = {name: params[name] for name in method.trainable}
    state = optimizer.init(trained)

    def step(trained, state):
        def loss(p):
            return method.loss({**params, **p}, batch, jax.random.key(5))[0]

        value, grads = jax.value_and_grad(loss)(trained)
        updates, state = optimizer.update(grads, state, trained)
        return jax.tree.map(jnp.add, trained, updates), state, value

    # Twenty small steps: compiling with optimisation would take longer than running without.
    step = jax.jit(step).lower(trained, state).compile({'xla_backend_optimization_level': 0})
    losses = []
    for _ in range(STEPS):
        trained, state, value = step(trained, state)
        losses.append(float(value))
    return losses, {**params, **trained}


@functools.cache
def _batch():
    images = jnp.asarray(brains(2))
    hole = np.zeros((2, *GRID.shape), np.uint8)
    hole[:, 5:9, 6:10, 6:10] = 1
    return {'image': images, 'brain': (images > 0).astype(jnp.uint8), 'lesions': hole}


@pytest.fixture(scope='module')
def batch():
    return _batch()


@pytest.fixture(scope='module')
def autoencoder():
    method = method_of('conddiff').autoencoder
    return method, method.prepare(run_once(method.init, jax.random.key(0)), brains(8))


def test_autoencoder_learns_and_keeps_a_scan(autoencoder, batch):
    method, params = autoencoder
    losses, params = fit(method, params, batch)
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]
    recon = run_once(method.reconstruct, params, batch['image'], jax.random.key(0))
    noise = jax.random.uniform(jax.random.key(1), recon.shape)
    assert jnp.mean((recon - batch['image']) ** 2) < 0.2 * jnp.mean((recon - noise) ** 2)


def test_autoencoder_starts_from_principal_components(autoencoder):
    """Before any step its error is that of the best linear code of its size."""
    method, params = autoencoder
    volumes = brains(8)
    z = method.encode(params, volumes)
    # Before `decode` clips to [0, 1], which is better than linear.
    network = Autoencoder(method.network)
    recon = network.apply({'params': params['autoencoder']}, z, method='decode')
    patches = volumes[..., 0].reshape(8, 4, 4, 4, 4, 4, 4).transpose(0, 1, 3, 5, 2, 4, 6)
    inside = patches.reshape(-1, 64)
    inside = inside[(inside > 0).any(1)]
    spectrum = np.linalg.svd(inside, compute_uv=False) ** 2
    best = spectrum[method.network.latent_channels :].sum() / volumes.size
    error = float(((np.asarray(recon) - volumes) ** 2).mean())
    assert best <= error * 1.0001 and error < 1.5 * best + 1e-4


@pytest.mark.parametrize('name', METHODS)
def test_every_method_learns_and_reconstructs(name, autoencoder, batch):
    """Its loss falls on a fixed batch, and a scan's counterpart is nearer to it than to noise."""
    method = with_drawn_pairs(method_of(name))
    params = method.prepare(initial(method, autoencoder), brains(8))
    losses, params = fit(method, params, batch)
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0]
    masks = [batch['lesions'][..., None]] if method.needs_mask else []
    recon = run_once(method.reconstruct, params, batch['image'], jax.random.key(0), *masks)
    assert recon.shape == batch['image'].shape and jnp.isfinite(recon).all()
    noise = jax.random.uniform(jax.random.key(1), recon.shape)
    assert jnp.mean((recon - batch['image']) ** 2) < jnp.mean((recon - noise) ** 2)


def test_latents_are_centred_and_of_unit_variance(autoencoder):
    method = method_of('conddiff')
    params = method.prepare(initial(method, autoencoder), brains(8))
    z = method.encode(params, brains(8))
    assert float(z.std()) == pytest.approx(1.0, rel=0.05)
    assert float(jnp.abs(z.mean(0)).max()) < 1e-3


def test_inpainting_changes_nothing_outside_the_mask(batch):
    method = method_of('inpainting')
    params = run_once(method.init, jax.random.key(0))
    mask = batch['lesions'][..., None].astype(jnp.float32)
    filled = method.reconstruct(params, batch['image'], jax.random.key(0), mask)
    np.testing.assert_array_equal(filled * (1 - mask), batch['image'] * (1 - mask))
    assert jnp.abs(filled - batch['image']).max() > 0.1  # before training the hole is black


def test_the_bridge_ends_in_both_images_and_is_noisiest_between():
    z_0, z_1 = jnp.zeros((3, 4)), jnp.ones((3, 4))
    eps = jnp.ones_like(z_0)
    z_t = between(z_0, z_1, jnp.array([0.0, 1.0, 0.5]), 2.0, eps)
    np.testing.assert_allclose(z_t[0], 0.0)
    np.testing.assert_allclose(z_t[1], 1.0)
    np.testing.assert_allclose(z_t[2], 0.5 + 2.0 * 0.5)


def test_a_latent_is_touched_where_any_of_its_voxels_is_lesion():
    mask = jnp.zeros((2, 8, 4, 4, 1)).at[1, 5, 3, 0].set(1.0)
    expected = np.zeros((2, 2, 1, 1, 1))
    expected[1, 1] = 1.0
    np.testing.assert_array_equal(touched(mask, (2, 2, 1, 1, 16)), expected)


def test_before_training_the_bridge_leaves_the_scan_alone(autoencoder, batch):
    """Its counterpart is then what the autoencoder makes of the scan, whatever the steps."""
    method = method_of('fluidjax')
    params = method.prepare(initial(method, autoencoder), brains(8))
    recon = run_once(method.reconstruct, params, batch['image'], jax.random.key(0))
    alone = autoencoder[0].reconstruct(params, batch['image'], jax.random.key(0))
    np.testing.assert_allclose(recon, alone, atol=1e-4)


def test_decode_undoes_encode_but_for_the_autoencoder(autoencoder, batch):
    method = method_of('conddiff')
    params = method.prepare(initial(method, autoencoder), brains(8))
    through = method.decode(params, method.encode(params, batch['image']))
    alone = autoencoder[0].reconstruct(params, batch['image'], jax.random.key(0))
    np.testing.assert_allclose(through, alone, atol=1e-4)


def test_a_scan_of_another_brightness_has_a_counterpart_as_bright(autoencoder, batch):
    """Training divides by the maximum; `reconstruct` does so too, and undoes it."""
    method = method_of('conddiff')
    params = method.prepare(initial(method, autoencoder), brains(8))
    reconstruct = jax.jit(method.reconstruct)
    bright, dim = (
        reconstruct(params, scale * batch['image'], jax.random.key(0)) for scale in (1.0, 0.5)
    )
    np.testing.assert_allclose(dim, 0.5 * bright, atol=1e-4)


def test_steps_are_drawn_where_the_setting_says():
    method = method_of('conddiff')
    for bias, mean in ((1.0, 500), (4.0, 800)):
        process = dataclasses.replace(method.process, time_bias=bias)
        u = jax.random.uniform(jax.random.key(0), (4000,))
        t = dataclasses.replace(method, process=process)._draw_steps(u)
        assert int(t.min()) >= 0 and int(t.max()) <= 999
        assert float(t.mean()) == pytest.approx(mean, abs=15)


def test_pairs_are_fresh_and_half_of_each_is_the_scan(batch):
    method = method_of('conddiff')
    draw = jax.jit(lambda batch, key: method.pairs(batch, key))
    first, second = (draw(batch, jax.random.key(i)) for i in (0, 1))
    assert float(jnp.abs(first.diseased - second.diseased).max()) > 0.01
    outside = first.probability == 0
    np.testing.assert_allclose(
        jnp.where(outside, first.diseased, 0), jnp.where(outside, first.healthy, 0), atol=1e-6
    )


def test_stored_pairs_come_again_whatever_the_batch(batch):
    """One pair a scan: the same under every key and in every order; with ten they differ."""
    pairs = dataclasses.replace(method_of('conddiff').pairs, stored=1)
    images = {name: batch[name] for name in ('image', 'brain')}
    turned = {name: value[::-1] for name, value in images.items()}
    draw = jax.jit(lambda images, key: pairs(images, key))
    first, again = draw(images, jax.random.key(0)), draw(turned, jax.random.key(1))
    np.testing.assert_allclose(first.diseased, again.diseased[::-1], atol=1e-6)
    several = run_once(dataclasses.replace(pairs, stored=10), images, jax.random.key(1))
    assert float(jnp.abs(several.diseased - first.diseased).max()) > 0.01


def test_a_lesion_bank_in_the_batch_is_used(batch):
    """With the bank as the only source and no transport, lesions are its masks, mirrored or not."""
    method = method_of('conddiff')
    fluid = dataclasses.replace(
        method.pairs.randomization,
        bank_probability=1.0,
        diseased_probability=1.0,
        transport_time=(0.0, 0.0),
        bank_shift_mm=0.0,
        bank_rotation_degrees=0.0,
        bank_scale=(1.0, 1.0),
    )
    mask = np.zeros((2, *GRID.shape), np.uint8)
    mask[:, 9:12, 6:9, 6:9] = 1
    pairs = dataclasses.replace(method.pairs, randomization=fluid)
    pair = run_once(pairs, {**batch, 'lesions': jnp.asarray(mask)}, jax.random.key(0))
    for lesion in np.asarray(pair.mask)[..., 0]:
        assert (lesion == mask[0]).all() or (lesion == mask[0][::-1]).all()
