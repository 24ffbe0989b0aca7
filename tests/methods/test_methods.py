"""Every method on a small grid: it learns from a fixed batch, and it reconstructs."""

from __future__ import annotations

import dataclasses
import functools
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import ndimage

from configs.methods import config_of
from fluidjax.base.errors import UserError
from fluidjax.base.share import WHOLE
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized
from fluidjax.fluid.settings import FluidSettings
from fluidjax.methods.bridge import between
from fluidjax.methods.latents import touched
from fluidjax.methods.pairs import PairMaker
from fluidjax.models.autoencoder import Autoencoder
from fluidjax.runs.stages import METHODS, build_stages
from fluidjax.training.settings import OptimizerSettings, make_optimizer

GRID = Grid((16, 16, 16), (12.0, 12.0, 12.0))
STEPS = 20
# A stage before the last that is tested as the methods are: its name, and that of its method.
EARLIER = {'bridge': 'fluidjax'}
# Methods whose networks and losses are, but for what they are given, those of `conddiff`.
ALIKE = ('cldm', 'icdm', 'ldm')
# Smaller steps for a method that starts near its goal: slight severities of a slight lesion.
RATES = {'severity': 1e-4}


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


@functools.cache
def method_of(name: str):
    """The last stage of a method's smoke configuration, or an `EARLIER` one, on a grid of 16^3."""
    stages = build_stages(config_of(EARLIER.get(name, name), 'smoke'), GRID)
    return {stage.method.stage: stage.method for stage in stages}.get(name, stages[-1].method)


def initial(method):
    """The parameters that a method starts from; NumPy draws those that are random.

    JAX's random generators take long to compile, one for each array.
    """
    rng = np.random.default_rng(0)

    def draw(key, shape, dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), dtype)

    with mock.patch.object(nn.initializers, 'lecun_normal', lambda: draw):
        return jax.jit(lambda key: method.init(key))(jax.random.key(0))


@functools.cache
def started(name: str):
    """The prepared parameters of a method; those of an autoencoder are the same for all."""
    method = method_of(name)
    params = initial(method)
    if method.autoencoder is not None:
        params['autoencoder'] = _autoencoder()[1]['autoencoder']
    if method.stage == 'head':  # it is trained beside a bridge
        params |= started('bridge')
    return method.prepare(params, brains(8))


@functools.cache
def _draw(pairs):
    """The compiled pairs of a batch and a key."""
    return jax.jit(lambda batch, key: pairs(batch, key))


class GivenPairs(PairMaker):
    """Returns the pairs that are in the batch, so that a training step need not compile them."""

    def __call__(self, batch, key, share=None):
        return batch['pair']


def with_given_pairs(method):
    """The method with pairs of the batch; equal for methods that differ in their pairs alone."""
    return dataclasses.replace(method, pairs=GivenPairs(GRID, method.pairs.augment, None))


@functools.cache
def _stepper(method, rate):
    """The optimiser of a method, and its compiled training step."""
    optimizer = make_optimizer(OptimizerSettings(rate, clip_norm=1.0), STEPS, method.trainable)

    def step(trained, state, frozen, batch):
        def loss(p):
            return method.loss({**frozen, **p}, batch, jax.random.key(5))[0]

        value, grads = jax.value_and_grad(loss)(trained)
        # One vector a group: the optimiser of every array by itself takes long to compile.
        flat, unravel = _raveled(trained)
        updates, state = optimizer.update(_raveled(grads)[0], state, flat)
        return unravel(jax.tree.map(jnp.add, flat, updates)), state, value

    return jax.jit(lambda trained: optimizer.init(_raveled(trained)[0])), jax.jit(step)


def _raveled(groups):
    """Each group as a vector, and the way back."""
    pairs = {name: ravel_pytree(group) for name, group in groups.items()}
    back = lambda flat: {name: pairs[name][1](vector) for name, vector in flat.items()}
    return {name: vector for name, (vector, _) in pairs.items()}, back


@functools.cache
def _reconstruct(method):
    return jax.jit(lambda *arguments: method.reconstruct(*arguments))


def fit(method, params, batch, rate=3e-3):
    """Losses of a few steps on one batch with one key, and the parameters after them."""
    first, step = _stepper(method, rate)
    trained = {name: params[name] for name in method.trainable}
    frozen = {name: group for name, group in params.items() if name not in trained}
    state, losses = first(trained), []
    for _ in range(STEPS):
        trained, state, value = step(trained, state, frozen, batch)
        losses.append(float(value))
    return losses, {**frozen, **trained}


@functools.cache
def _batch():
    images = jnp.asarray(brains(2))
    hole = np.zeros((2, *GRID.shape), np.uint8)
    hole[:, 5:9, 6:10, 6:10] = 1
    return {'image': images, 'brain': (images > 0).astype(jnp.uint8), 'lesions': hole}


@pytest.fixture(scope='module')
def batch():
    return _batch()


@functools.cache
def _autoencoder():
    method = method_of('conddiff').autoencoder
    return method, method.prepare(initial(method), brains(8))


@pytest.fixture(scope='module')
def autoencoder():
    return _autoencoder()


def test_autoencoder_learns_and_keeps_a_scan(autoencoder, batch):
    method, params = autoencoder
    losses, params = fit(method, params, batch)
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]
    recon = _reconstruct(method)(params, batch['image'], jax.random.key(0))
    noise = jax.random.uniform(jax.random.key(1), recon.shape)
    assert jnp.mean((recon - batch['image']) ** 2) < 0.2 * jnp.mean((recon - noise) ** 2)


def test_autoencoder_starts_from_principal_components(autoencoder):
    """Before any step its error is that of the best linear code of its size."""
    method, params = autoencoder
    volumes = brains(8)
    # Before `decode` clips to [0, 1], which is better than linear.
    network = Autoencoder(method.network)

    @jax.jit
    def through(params):
        z = method.encode(params, volumes)
        return network.apply({'params': params['autoencoder']}, z, method='decode')

    patches = volumes[..., 0].reshape(8, 4, 4, 4, 4, 4, 4).transpose(0, 1, 3, 5, 2, 4, 6)
    inside = patches.reshape(-1, 64)
    inside = inside[(inside > 0).any(1)]
    spectrum = np.linalg.svd(inside, compute_uv=False) ** 2
    best = spectrum[method.network.latent_channels :].sum() / volumes.size
    error = float(((np.asarray(through(params)) - volumes) ** 2).mean())
    assert best <= error * 1.0001 and error < 1.5 * best + 1e-4


def _pairs_for(name):
    """The pairs a method learns from; those with lesions of the flow are the same for all."""
    pairs = method_of(name).pairs
    fluid = isinstance(pairs.randomization, FluidSettings)
    return method_of('conddiff').pairs if fluid else pairs


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name
        for name in (*METHODS, *EARLIER)
    ],
)
def test_every_method_learns_and_reconstructs(name, batch):
    """Its loss falls on a fixed batch, and a scan's counterpart is nearer to it than to noise."""
    method = with_given_pairs(method_of(name))
    pair = _draw(_pairs_for(name))(batch, jax.random.key(6))
    rate = RATES.get(name, 3e-3)
    losses, params = fit(method, started(name), {**batch, 'pair': pair}, rate)
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0]
    masks = [batch['lesions'][..., None]] if method.needs_mask else []
    recon = _reconstruct(method)(params, batch['image'], jax.random.key(0), *masks)
    assert recon.shape == batch['image'].shape and jnp.isfinite(recon).all()
    noise = jax.random.uniform(jax.random.key(1), recon.shape)
    assert jnp.mean((recon - batch['image']) ** 2) < jnp.mean((recon - noise) ** 2)


def test_latents_are_centred_and_of_unit_variance():
    z = jax.jit(method_of('conddiff').encode)(started('conddiff'), brains(8))
    assert float(z.std()) == pytest.approx(1.0, rel=0.05)
    assert float(jnp.abs(z.mean(0)).max()) < 1e-3


def _untrained(name, *arguments):
    """The counterparts of a method before any training."""
    reconstruct = _reconstruct(with_given_pairs(method_of(name)))
    return reconstruct(started(name), *arguments)


def test_inpainting_changes_nothing_outside_the_mask(batch):
    mask = batch['lesions'][..., None]
    filled = _untrained('inpainting', batch['image'], jax.random.key(0), mask)
    np.testing.assert_array_equal(filled * (1 - mask), batch['image'] * (1 - mask))
    assert jnp.abs(filled - batch['image']).max() > 0.1  # before training the hole is black


@pytest.mark.parametrize('name', ['regression', 'severity'])
def test_restoration_starts_from_a_black_image_or_from_the_scan(name, batch):
    black = _untrained(name, batch['image'], jax.random.key(0))
    np.testing.assert_array_equal(black, 0.0)
    method = dataclasses.replace(with_given_pairs(method_of(name)), identity=True)
    counterpart = _reconstruct(method)(started(name), 0.5 * batch['image'], None)
    np.testing.assert_allclose(counterpart, 0.5 * batch['image'], atol=1e-6)


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
    recon = _untrained('bridge', batch['image'], jax.random.key(0))
    alone = _reconstruct(autoencoder[0])(autoencoder[1], batch['image'], jax.random.key(0))
    np.testing.assert_allclose(recon, alone, atol=1e-4)


def test_decode_undoes_encode_but_for_the_autoencoder(autoencoder, batch):
    method = method_of('conddiff')
    through = jax.jit(lambda params, scans: method.decode(params, method.encode(params, scans)))
    alone = _reconstruct(autoencoder[0])(autoencoder[1], batch['image'], jax.random.key(0))
    np.testing.assert_allclose(through(started('conddiff'), batch['image']), alone, atol=1e-4)


def test_a_scan_of_another_brightness_has_a_counterpart_as_bright(batch):
    """Training divides by the maximum; `reconstruct` does so too, and undoes it."""
    bright, dim = (
        _untrained('conddiff', scale * batch['image'], jax.random.key(0)) for scale in (1.0, 0.5)
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
    draw = _draw(method_of('conddiff').pairs)
    first, second = (draw(batch, jax.random.key(i)) for i in (0, 1))
    assert float(jnp.abs(first.diseased - second.diseased).max()) > 0.01
    outside = first.probability == 0
    np.testing.assert_allclose(
        jnp.where(outside, first.diseased, 0), jnp.where(outside, first.healthy, 0), atol=1e-6
    )


class NoisyPairs(PairMaker):
    """Noise for lesions, which compiles quickly: pairs that show nothing but their keys."""

    def _fresh(self, batch, key, share):
        noise = jax.random.uniform(key, batch['image'].shape)
        return Randomized(batch['image'], noise, noise, noise)


@pytest.mark.parametrize('stored', [1, 3])
def test_each_scan_has_as_many_stored_pairs_as_asked_for(stored, batch):
    """The same under every key, of which there are enough for each pair to come."""
    pairs = NoisyPairs(GRID, method_of('conddiff').pairs.augment, None, stored)
    draw = jax.jit(jax.vmap(lambda key: pairs(batch, key).diseased))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 30)))
    of_each = [np.unique(drawn[:, scan], axis=0) for scan in (0, 1)]
    assert [len(found) for found in of_each] == [stored, stored]
    assert len(np.unique(np.concatenate(of_each), axis=0)) == 2 * stored


def test_stored_pairs_come_again_whatever_the_order_of_the_batch(batch):
    pairs = NoisyPairs(GRID, method_of('conddiff').pairs.augment, None, stored=1)
    turned = {name: value[::-1] for name, value in batch.items()}
    first, again = _draw(pairs)(batch, jax.random.key(0)), _draw(pairs)(turned, jax.random.key(1))
    for volume, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(volume, other[::-1])


def test_stored_pairs_do_not_depend_on_how_a_batch_is_split():
    rng = np.random.default_rng(0)
    scans = rng.random((8, 20, 24, 20, 1)).astype(np.float32)
    pairs = NoisyPairs(GRID, method_of('conddiff').pairs.augment, None, stored=1)
    draw = jax.jit(lambda images: pairs({'image': images}, jax.random.key(0)).diseased)
    whole = draw(scans)
    for size in (1, 2):
        parts = [draw(scans[start : start + size]) for start in range(0, 8, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_corruptions_need_the_other_scans_of_the_batch():
    with pytest.raises(UserError, match=r'^config\.stored_pairs: 2 must be 0 .*icdm'):
        dataclasses.replace(method_of('icdm').pairs, stored=2)


@pytest.mark.parametrize('name', ['conddiff', 'ldm'])
def test_stored_pairs_are_shaped_as_fresh_ones(name, batch):
    pairs = dataclasses.replace(method_of(name).pairs, stored=1)
    images = {name: batch[name] for name in ('image', 'brain')}
    for volume in jax.eval_shape(lambda key: pairs(images, key), jax.random.key(0)):
        assert (volume.shape, volume.dtype) == (batch['image'].shape, jnp.float32)


def test_a_lesion_bank_in_the_batch_is_used(batch):
    """From a bank of empty masks come healthy pairs; other lesions do not hang on the bank."""
    draw = _draw(method_of('conddiff').pairs)
    emptied = {**batch, 'lesions': 0 * batch['lesions']}
    lesioned = {'bank': 0, 'elsewhere': 0}
    for seed in range(8):
        with_bank, without = (draw(b, jax.random.key(seed)) for b in (batch, emptied))
        for mask, other in zip(np.asarray(with_bank.mask), np.asarray(without.mask), strict=True):
            if mask.any():
                lesioned['elsewhere' if other.any() else 'bank'] += 1
            assert not other.any() or (mask == other).all()
    assert min(lesioned.values()) >= 3, lesioned


def test_what_lies_outside_the_mask_changes_no_loss_of_inpainting():
    method = method_of('inpainting')
    method = dataclasses.replace(
        method, losses=dataclasses.replace(method.losses, gradient=1.0, lesion_weight=0.0)
    )
    rng = np.random.default_rng(0)
    error = rng.normal(size=(2, 8, 16, 16, 1)).astype(np.float32)
    error[:, [0, -1]] = 0.0  # so that padding adds no step

    def cost(pad):
        volume = lambda x: jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0), (0, 0)))
        mask, blank = volume(jnp.ones_like(error)), volume(jnp.zeros_like(error))
        pair = Randomized(blank, blank, mask, mask)
        return float(method._compared(volume(error), pair, WHOLE)[0])

    assert cost(24) == pytest.approx(cost(0), rel=0.05)
