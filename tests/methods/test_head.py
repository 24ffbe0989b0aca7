"""The head of `fluidjax`, beside a bridge that needs no training: the mean of each scan."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fluidjax.base.errors import UserError
from fluidjax.base.share import Share
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized
from fluidjax.methods.augment import AugmentSettings
from fluidjax.methods.ensemble import Ensemble
from fluidjax.methods.head import (
    PRIOR_LOGIT,
    SMALLEST_SPREAD,
    AnomalyHead,
    HeadLoss,
    input_channels,
    network_input,
)
from fluidjax.methods.pairs import PairMaker
from fluidjax.models.image_unet import ImageUNetConfig
from fluidjax.training.settings import OptimizerSettings, make_optimizer

GRID = Grid((8, 8, 8), (12.0, 12.0, 12.0))
STEPS = 40


@dataclasses.dataclass(frozen=True)
class MeanBridge:
    """Its counterpart of a scan is the scan's mean, with noise where the process has some."""

    noise: float = 0.0
    autoencoder = 'the autoencoder of the bridge'
    num_counterparts = 1
    separate = False

    @property
    def is_random(self):
        return self.noise > 0

    def init(self, key):
        return {'unet': jax.random.normal(key, (2,)), 'latent': {'scale': jnp.float32(3.0)}}

    def reconstruct(self, params, volumes, key):
        eps = self.noise * jax.random.normal(key, volumes.shape)
        return volumes.mean(axis=(1, 2, 3, 4), keepdims=True) * (1.0 + eps + 0.0 * volumes)


class GivenPairs(PairMaker):
    """The pairs that are in the batch."""

    def __call__(self, batch, key, share=None):
        return batch['pair']


def head_on(bridge) -> AnomalyHead:
    network = ImageUNetConfig((8,), patch=2, in_channels=input_channels(bridge))
    return AnomalyHead(bridge, network, HeadLoss(), GivenPairs(GRID, AugmentSettings(), None))


METHOD = head_on(MeanBridge())


def scans(count: int) -> np.ndarray:
    """Smooth brains that are not symmetric, black outside, with maximum 1: `(n, x, y, z, 1)`."""
    rng = np.random.default_rng(0)
    images = ndimage.gaussian_filter(rng.uniform(0.2, 1.0, (count, *GRID.shape)), (0, 1, 1, 1))
    images[:, :, :2] = images[:, 0] = 0.0
    return (images / images.max(axis=(1, 2, 3), keepdims=True))[..., None].astype(np.float32)


@pytest.fixture(scope='module')
def batch():
    """Four scans, three with a dark lesion, of which one is black."""
    healthy = scans(4)
    mask = np.zeros_like(healthy)
    mask[0, 2:4, 3:5, 2:4], mask[1, 4:7, 4:7, 4:7], mask[2, 1:3, 5:8, 5:8] = 1.0, 1.0, 1.0
    diseased = healthy * (1.0 - np.array([0.6, 0.7, 1.0, 0.0]).reshape(4, 1, 1, 1, 1) * mask)
    diseased = (diseased / diseased.max(axis=(1, 2, 3, 4), keepdims=True)).astype(np.float32)
    pair = Randomized(*map(jnp.asarray, (healthy, diseased, mask, mask)))
    return {'image': pair.healthy, 'brain': pair.healthy > 0, 'pair': pair}


@pytest.fixture(scope='module')
def started():
    params = jax.jit(METHOD.init)(jax.random.key(0))
    return METHOD.prepare(params, scans(8))


@pytest.fixture(scope='module')
def probability():
    return jax.jit(METHOD.probability)


@pytest.fixture(scope='module')
def trained(started, batch):
    """Losses of some steps on the batch, and the parameters after them."""
    optimizer = make_optimizer(OptimizerSettings(1e-2, clip_norm=1.0), STEPS, METHOD.trainable)

    def step(head, state):
        def loss(head):
            return METHOD.loss({**started, **head}, batch, jax.random.key(0))[0]

        value, grads = jax.value_and_grad(loss)(head)
        updates, state = optimizer.update(grads, state, head)
        return jax.tree.map(jnp.add, head, updates), state, value

    step = jax.jit(step)
    head, losses = {'head': started['head']}, []
    state = jax.jit(optimizer.init)(head)
    for _ in range(STEPS):
        head, state, value = step(head, state)
        losses.append(float(value))
    return losses, {**started, **head}


def test_it_starts_from_the_share_of_lesions(started, probability, batch):
    found = probability(started, batch['image'], 0.5 * batch['image'][None])
    np.testing.assert_allclose(found, 1.0 / (1.0 + np.exp(-PRIOR_LOGIT)), rtol=1e-5)
    assert found.shape == batch['image'].shape and 0.02 < found.mean() < 0.1


def test_it_learns_where_the_lesions_are(trained, probability, batch):
    losses, params = trained
    assert np.isfinite(losses).all() and losses[-1] < 0.5 * losses[0]
    pair = batch['pair']
    counterparts = METHOD.reconstruct(params, pair.diseased, jax.random.key(0))
    found = np.asarray(probability(params, pair.diseased, counterparts[None]))
    assert found.min() >= 0.0 and found.max() <= 1.0
    lesion, brain = np.asarray(pair.mask) > 0, np.asarray(pair.healthy) > 0
    assert found[lesion].mean() > 0.5 > 0.2 > found[brain & ~lesion].mean()


def test_a_scan_of_another_brightness_has_the_same_lesions(trained, probability, batch):
    _, params = trained
    volumes, counterparts = batch['pair'].diseased, 0.8 * batch['image'][None]
    dim = probability(params, 0.5 * volumes, 0.5 * counterparts)
    np.testing.assert_allclose(dim, probability(params, volumes, counterparts), atol=1e-5)


def test_the_network_sees_five_channels_in_the_brain():
    volumes, health = scans(2), METHOD.prepare({}, scans(8))['health']
    health = {**health, 'mean': health['mean'].at[3, 4, 4].set(-9.0)}  # a z-score to be cut
    seen = np.asarray(network_input(volumes, 0.5 * volumes[None], health))
    brain = volumes[..., 0] > 0
    assert seen.shape == (*brain.shape, 5) and not seen[~brain].any()
    z_score = np.clip((volumes - health['mean']) / health['spread'], -5.0, 5.0)
    expected = [volumes, 0.5 * volumes, 0.5 * volumes, volumes[:, ::-1], z_score]
    for channel, volume in enumerate(expected):
        np.testing.assert_allclose(seen[brain][:, channel], volume[brain][:, 0], atol=1e-6)
    assert seen[0, 3, 4, 4, 4] == 5.0


def test_what_the_network_sees_is_mirrored_with_the_scan():
    """Left and right exchanged everywhere, each channel is exchanged, the mirrored one too."""
    volumes, counterparts = scans(2), scans(4)[None, 2:]
    health = METHOD.prepare({}, scans(8))['health']
    turned = jax.tree.map(lambda volume: volume[::-1], health)
    seen = network_input(volumes, counterparts, health)
    again = network_input(volumes[:, ::-1], counterparts[:, :, ::-1], turned)
    np.testing.assert_allclose(again, seen[:, ::-1], atol=1e-6)
    assert np.abs(seen[..., 3] - seen[..., 0]).max() > 0.1  # the brains are not symmetric


def test_health_is_measured_on_scans_divided_by_their_maximum():
    volumes = scans(8)
    bright = np.linspace(1.0, 900.0, 8).reshape(8, 1, 1, 1, 1) * volumes
    health = METHOD.prepare({}, bright)['health']
    np.testing.assert_allclose(health['mean'], volumes.mean(axis=0), atol=1e-5)
    spread = np.maximum(volumes.std(axis=0), SMALLEST_SPREAD)
    np.testing.assert_allclose(health['spread'], spread, atol=1e-5)
    assert health['spread'][0, 0, 0] == np.float32(SMALLEST_SPREAD)  # black in every scan


def test_preparing_it_keeps_what_was_trained_before():
    before = {'unet': np.ones(2), 'latent': {'mean': np.ones(3), 'scale': np.float32(7.0)}}
    after = METHOD.prepare({**before, 'health': None}, scans(3))
    assert set(after) == {*before, 'health'}
    assert all(after[name] is group for name, group in before.items())


@pytest.mark.parametrize('noise', [0.0, 0.3])
def test_two_devices_have_the_loss_and_the_gradients_of_one(noise, started, batch):
    """Also with a bridge that samples: each sample has its own noise, wherever it is computed."""
    method, key, rng = head_on(MeanBridge(noise)), jax.random.key(4), np.random.default_rng(0)
    head = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), started['head'])
    head = jax.tree.map(jnp.float32, head)

    def on_one(samples, share):
        def loss(head):
            return method.loss({**started, 'head': head}, samples, key, share)

        return jax.value_and_grad(loss, has_aux=True)(head)

    def on_each(samples, first):
        found = on_one(samples, Share(first, 4, 'device'))
        return jax.tree.map(lambda x: x if x.shape == (2,) else jax.lax.pmean(x, 'device'), found)

    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
    (loss, metrics), grads = jax.jit(lambda batch: on_one(batch, Share()))(batch)
    (losses, of_each), grads_of_each = jax.jit(jax.vmap(on_each, axis_name='device'))(
        halves, jnp.array([0, 2])
    )
    np.testing.assert_allclose(losses, [loss] * 2, rtol=1e-4)
    for name in ('bce', 'soft_dice'):
        np.testing.assert_allclose(of_each[name], [metrics[name]] * 2, rtol=1e-4)
    np.testing.assert_allclose(of_each['lesion_ml'].ravel(), metrics['lesion_ml'], rtol=1e-6)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads))
    for both, whole in zip(jax.tree.leaves(grads_of_each), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(both[0], whole, atol=1e-4 * scale)


class Darker(MeanBridge):
    """Its counterpart is half the scan's mean."""

    def reconstruct(self, params, volumes, key):
        return 0.5 * super().reconstruct(params, volumes, key)


def test_of_several_samples_it_sees_the_mean(trained, probability, batch):
    _, params = trained
    volumes, counterpart = batch['pair'].diseased, batch['image']
    several = jnp.stack([0.6 * counterpart, 1.0 * counterpart])
    np.testing.assert_allclose(
        jax.jit(METHOD.probability)(params, volumes, several),
        probability(params, volumes, 0.8 * counterpart[None]),
        atol=1e-5,
    )


def test_of_an_ensemble_it_sees_each_counterpart(started, batch):
    both = Ensemble((MeanBridge(), Darker()))
    method, volumes = head_on(both), batch['image']
    assert method.network.in_channels == 7 and method.num_counterparts == 2
    params = {**started, 'head': jax.jit(method.init)(jax.random.key(0))['head']}
    counterparts = both.counterparts(params, volumes, jax.random.key(0))
    mean = np.asarray(volumes.mean(axis=(1, 2, 3, 4), keepdims=True) + 0.0 * volumes)
    np.testing.assert_allclose(counterparts, np.stack([mean, 0.5 * mean]), rtol=1e-6)
    np.testing.assert_allclose(
        both.reconstruct(params, volumes, jax.random.key(0)), 0.75 * mean, rtol=1e-6
    )
    seen = np.asarray(network_input(volumes, counterparts, started['health']))
    brain = np.asarray(volumes[..., 0]) > 0
    for channel, other in ((1, mean), (3, 0.5 * mean)):
        shown = other[brain][:, 0]
        np.testing.assert_allclose(seen[brain][:, channel], shown, rtol=1e-5)
        difference = np.asarray(volumes)[brain][:, 0] - shown
        np.testing.assert_allclose(seen[brain][:, channel + 1], difference, atol=1e-6)
    # What it is trained on is what it is given later, of each restorer in its place.
    trained_on = method._fixed_views(params, volumes, jax.random.key(0), Share())
    np.testing.assert_allclose(trained_on, counterparts, rtol=1e-6)
    loss = jax.jit(lambda p: method.loss(p, batch, jax.random.key(0))[0])(params)
    assert np.isfinite(loss)


def test_an_ensemble_that_samples_gives_each_scan_its_own_noise(started, batch):
    method, volumes = head_on(Ensemble((MeanBridge(0.3), Darker()))), batch['image']
    key, share = jax.random.key(7), Share()
    views = method._fixed_views(started, volumes, key, share)
    assert views.shape == (2, *volumes.shape)
    own = [
        MeanBridge(0.3).reconstruct(started, volumes[i : i + 1], each)[0]
        for i, each in enumerate(share.keys(key, len(volumes)))
    ]
    np.testing.assert_allclose(views[0], jnp.stack(own), rtol=1e-6)


def test_a_negative_weight_is_named():
    with pytest.raises(UserError, match=r'config\.head\.losses\.dice'):
        HeadLoss(dice=-1.0)


def test_autoencoder_and_counterparts_are_those_of_the_bridge():
    assert METHOD.autoencoder == MeanBridge.autoencoder and METHOD.num_counterparts == 1
    assert METHOD.trainable == ('head',) and METHOD.examples is None
