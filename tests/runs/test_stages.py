"""Stages of the configurations: sizes, shapes, and fields that do not fit."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import ldm
from configs.methods import config_of
from data_pipelines.grids import GRIDS
from fluidjax.base.errors import UserError
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.methods.pairs import PairMaker
from fluidjax.models.discriminator import Discriminator
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import METHODS, build_stages, longest_stage
from fluidjax.runs.train import _refuse_another_run, train
from fluidjax.training.loop import state_template


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope='module', autouse=True)
def autoencoder_traced_once():
    """A jit inside a traced function is traced once for all functions and methods."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ('init', 'encode', 'decode'):
            once = jax.jit(getattr(AutoencoderMethod, name), static_argnums=0)
            patch.setattr(AutoencoderMethod, name, once)
        yield


@functools.cache
def paper(method):
    """The stages of a method at the paper's size, and the shapes of its parameters."""
    grid = Grid(GRIDS['paper'].shape, GRIDS['paper'].spacing)
    stages = build_stages(config_of(method, 'paper'), grid)
    return stages, jax.eval_shape(stages[-1].method.init, jax.random.key(0))


@pytest.mark.parametrize(
    'method,groups',
    [
        # counts of the published networks: the paper's system and its rivals
        ('conddiff', {'unet': 54_923_910, 'autoencoder': 13_766_248}),
        ('ldm', {'unet': 46_640_134, 'autoencoder': 13_766_248}),
        ('cldm', {'unet': 46_650_502, 'autoencoder': 13_766_248}),
        pytest.param(
            'icdm', {'unet': 46_650_502, 'autoencoder': 13_766_248}, marks=pytest.mark.slow
        ),  # the networks of cldm
        # networks of which the paper gives no sizes
        ('fluidjax', {'unet': 59_556_099, 'autoencoder': 13_766_248, 'head': 455_656}),
        ('vae', {'vae': 39_458_696}),
        ('regression', {'restoration': 7_115_777}),
        ('severity', {'restoration': 7_116_641}),
        ('inpainting', {'restoration': 7_116_641}),
    ],
)
def test_the_papers_size_has_its_parameters(method, groups):
    _, params = paper(method)
    assert {name: count(params[name]) for name in groups} == groups


@pytest.mark.parametrize(
    'method',
    [
        pytest.param('conddiff', marks=pytest.mark.slow),
        *('fluidjax', 'vae', 'severity', 'inpainting'),
    ],
)
def test_loss_and_counterpart_have_their_shapes_at_the_papers_size(method):
    """At 160^3, without allocating anything; the other methods share the code of conddiff."""
    stages, params = paper(method)
    trained, key = stages[-1].method, jax.random.key(0)
    volume = jax.ShapeDtypeStruct((1, *GRIDS['paper'].shape, 1), jnp.float32)
    for stage in stages[1:] or stages:
        loss, _ = jax.eval_shape(stage.method.loss, params, {'image': volume, 'brain': volume}, key)
        assert loss.shape == ()
    masks = [volume] if trained.needs_mask else []
    counterpart = jax.eval_shape(trained.reconstruct, params, volume, key, *masks)
    assert counterpart.shape == volume.shape and counterpart.dtype == volume.dtype
    if trained.probability is not None:
        several = jax.ShapeDtypeStruct((1, *counterpart.shape), counterpart.dtype)
        found = jax.eval_shape(trained.probability, params, volume, several)
        assert found.shape == volume.shape and found.dtype == volume.dtype


def test_the_published_parts_have_their_parameters():
    """Encoder, decoder, the three 1x1x1 convolutions, discriminator, and condition encoder."""
    (first, _), params = paper('conddiff')
    assert {name: count(part) for name, part in params['autoencoder'].items()} == {
        'encoder': 6_551_235,
        'decoder': 7_214_977,
        'quant_mu': 12,
        'quant_log_var': 12,
        'post_quant': 12,
    }
    assert count(params['unet']['condition']) == 805_376
    volume = jax.ShapeDtypeStruct((1, *GRIDS['paper'].shape, 1), jnp.float32)
    latent = jax.eval_shape(first.method.encode, params, volume)
    assert latent.shape == (1, 20, 20, 20, 3) and latent.dtype == jnp.float32
    losses = first.method.losses
    discriminator = Discriminator(losses.discriminator_features, losses.discriminator_layers)
    assert count(jax.eval_shape(discriminator.init, jax.random.key(0), volume)['params']) == (
        24_830_689
    )


@pytest.mark.parametrize('method', METHODS)
def test_the_demo_size_builds_and_has_a_state(method):
    grid = Grid(GRIDS['demo'].shape, GRIDS['demo'].spacing)
    stages = build_stages(config_of(method, 'demo'), grid)
    last = stages[-1]
    state = state_template(last.method.init, last.method.trainable, last.training)
    assert set(state.params) == set(last.method.trainable)
    shared = {'autoencoder'} if len(stages) > 1 else set()
    if len(stages) > 2:
        shared |= {'unet', 'latent', 'health'}
    assert shared <= set(state.frozen) <= shared | {'latent', 'mean'}


def test_a_bridge_without_a_head_has_two_stages():
    """As in older runs and the bundled model."""
    config = ldm.get_config('smoke,method=fluidjax')
    grid = model_grid(config)
    stages = build_stages(config, grid)
    assert [stage.method.stage for stage in stages] == ['autoencoder', 'bridge', 'head']
    assert stages[2].method.restorer == stages[1].method
    config.head.training.steps = 0
    assert build_stages(config, grid) == stages[:2]
    del config.head
    assert build_stages(config, grid) == stages[:2]


def test_every_method_that_is_given_the_scan_can_have_a_head():
    for method in ('conddiff', 'cldm', 'icdm', 'regression', 'severity'):
        config = config_of(method, 'smoke')
        without = build_stages(config, model_grid(config))
        assert 'head' not in [each.method.stage for each in without]
        config.head.training.steps = 2
        stages = build_stages(config, model_grid(config))
        assert stages[:-1] == without and stages[-1].method.restorer == without[-1].method
        assert without[-1].method.is_random == (method not in ('regression', 'severity'))
        assert longest_stage(stages) == without[-1]
    for method in ('ldm', 'inpainting'):
        assert 'head' not in config_of(method, 'smoke')


def test_a_head_stands_on_a_method_of_images_too():
    config = config_of('regression', 'smoke')
    config.head.training.steps = 2
    grid = model_grid(config)
    restoration, head = (each.method for each in build_stages(config, grid))
    assert head.autoencoder is None and head.num_counterparts == 1
    params = jax.eval_shape(head.init, jax.random.key(0))
    assert set(params) == {'restoration', 'head', 'health'}
    volume = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    batch, key = {'image': volume, 'brain': volume}, jax.random.key(0)
    for method in (restoration, head):
        assert jax.eval_shape(method.loss, params, batch, key)[0].shape == ()
    counterparts = jax.ShapeDtypeStruct((1, *volume.shape), jnp.float32)
    found = jax.eval_shape(head.probability, params, volume, counterparts)
    assert found.shape == volume.shape


def test_a_latent_method_with_a_head_can_have_a_regression_beside_it():
    config = config_of('conddiff', 'smoke')
    config.restoration.training.steps = 2
    grid = model_grid(config)
    with pytest.raises(UserError, match='restoration.training.steps.*needs a head'):
        build_stages(config, grid)
    config.head.training.steps = 2
    _, diffusion, beside, head = (each.method for each in build_stages(config, grid))
    alone = config_of('regression', 'smoke')
    regression = build_stages(alone, model_grid(alone))[0].method
    assert beside == regression
    assert head.restorer.restorers == (diffusion, beside)
    params = jax.eval_shape(head.init, jax.random.key(0))
    assert set(params) == {'autoencoder', 'latent', 'unet', 'restoration', 'head', 'health'}
    volume = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    views = jax.eval_shape(head.counterparts, params, volume, jax.random.key(0))
    assert views.shape == (2, *volume.shape)
    found = jax.eval_shape(head.probability, params, volume, views)
    assert found.shape == volume.shape


@pytest.mark.parametrize('size', ['paper', '2mm'])
def test_a_rival_has_no_head_at_any_size(size):
    for method in ('conddiff', 'cldm', 'icdm', 'regression', 'severity'):
        config = config_of(method, size)
        assert config.head.training.steps == 0
        if method not in ('regression', 'severity'):
            assert config.restoration.training.steps == 0
    assert config_of('fluidjax', size).head.training.steps > 0


@pytest.mark.parametrize('method', METHODS)
def test_every_method_with_a_head_has_its_field_of_the_map(method):
    for size in ('smoke', '2mm', 'paper'):
        config = config_of(method, size)
        assert ('head' in config) == ('head' in config.detect)


def test_a_head_is_trained_on_lesions_of_its_own():
    config = config_of('fluidjax', 'smoke')
    bridge, head = (each.method for each in build_stages(config, model_grid(config))[1:])
    changed = dataclasses.replace(bridge.pairs.randomization, strength=(0.4, 1.0))
    assert bridge.pairs.randomization != changed == head.pairs.randomization
    assert head.pairs.augment.gamma > bridge.pairs.augment.gamma


@pytest.mark.parametrize(
    'method', ['conddiff', 'fluidjax', 'regression', 'inpainting', 'ldm', 'vae']
)
def test_the_wide_law_is_for_every_method(method):
    config = config_of(method, 'smoke,law=wide')
    config.wide.count = (1, 2)
    grid = model_grid(config)
    volume = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    batch, key = {'image': volume, 'brain': volume}, jax.random.key(0)
    for stage in build_stages(config, grid):
        pairs = stage.method.pairs
        if pairs is None:  # the autoencoder
            assert stage.method.variants.share == 0.5
            continue
        assert pairs.variants.share == 0.5
        if pairs.randomization is not None:
            assert pairs.randomization.count == (1, 2)
        params = jax.eval_shape(stage.method.init, key)
        assert jax.eval_shape(stage.method.loss, params, batch, key)[0].shape == ()
    del config.wide, config.variants
    assert build_stages(config, grid) == build_stages(config_of(method, 'smoke'), grid)


@pytest.mark.parametrize(
    'change,message',
    [
        ({'diffusion': {'process': {'sampler': 'euler'}}}, 'sampler'),
        ({'diffusion': {'process': {'start_step': 5000}}}, 'start_step'),
        ({'fluid': {'painting': 'oil'}}, 'painting'),
        ({'autoencoder': {'network': {'patch': 3}}}, 'does not divide'),
        (
            {'diffusion': {'training': {'patience': 2, 'validate_every': 0}}},
            r'config\.diffusion\.training\.patience: 2 .* diffusion\.training\.validate_every$',
        ),
        (
            {'autoencoder': {'training': {'optimizer': {'decay': 'linear'}}}},
            r'^config\.autoencoder\.training\.optimizer\.decay',
        ),
        ({'diffusion': {'training': {'pools': 1}}}, r'config\.diffusion\.training\.pools: no such'),
    ],
)
def test_a_field_that_does_not_fit_is_named(change, message):
    config = ldm.get_config('smoke')
    config.update(ConfigDict(change))
    with pytest.raises(UserError, match=message):
        build_stages(config, Grid(GRIDS['smoke'].shape, GRIDS['smoke'].spacing))


def test_an_older_run_without_a_new_field_is_the_same_run(tmp_path):
    """Fields that it does not have count as their defaults; the others must not differ."""
    config = ldm.get_config('smoke')
    old = config.to_dict()
    for field in ('dtype', 'remat'):
        del old['autoencoder']['network'][field]
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'config.json').write_text(json.dumps(old))
    grid = model_grid(config)
    _refuse_another_run(config, build_stages(config, grid), tmp_path, grid)
    for path, value in (
        ('autoencoder.network.dtype', 'bfloat16'),
        ('seed', 1),
        ('diffusion.training.batch_size', 4),
    ):
        other = ConfigDict(config.to_dict())
        other.update_from_flattened_dict({path: value})
        with pytest.raises(UserError, match='another configuration'):
            _refuse_another_run(other, build_stages(other, grid), tmp_path, grid)


@pytest.mark.parametrize('method', METHODS)
def test_the_list_of_methods_has_a_configuration_each(method):
    config = config_of(method, 'smoke,cohort=nifti')
    assert (config.method, config.size, config.cohort.name) == (method, 'smoke', 'nifti')


def _pairs_of(seed, stored):
    config = config_of('regression', 'smoke')
    config.seed, config.stored_pairs = seed, stored
    return build_stages(config, model_grid(config))[-1].method.pairs


def test_each_seed_has_stored_pairs_of_its_own(monkeypatch):
    def noise(self, batch, key, share):  # for lesions: it shows nothing but its key
        volume = jax.random.uniform(key, batch['image'].shape)
        return Randomized(volume, volume, volume, volume)

    monkeypatch.setattr(PairMaker, '_fresh', noise)
    batch = {'image': jnp.ones((2, 2, 2, 2, 1)) * jnp.array([1.0, 2.0]).reshape(2, 1, 1, 1, 1)}

    def drawn(seed, key):
        return np.asarray(_pairs_of(seed, stored=1)(batch, jax.random.key(key)).diseased)

    first = drawn(0, 0)
    np.testing.assert_array_equal(first, drawn(0, 1))
    assert np.abs(first - drawn(1, 0)).min(axis=(1, 2, 3, 4)).max() > 0


def test_fresh_pairs_have_no_seed_of_their_own():
    assert _pairs_of(0, stored=0) == _pairs_of(5, stored=0)
    assert _pairs_of(0, stored=3) != _pairs_of(5, stored=3)


@pytest.mark.parametrize('noise,steps', [(0.0, 2), (1.0, 1), (0.0, 1)])
def test_counterparts_of_a_bridge_that_cannot_differ_are_refused(noise, steps):
    config = config_of('fluidjax', 'smoke')
    process, grid = config.bridge.process, model_grid(config)
    process.update({'noise': noise, 'sampler_steps': steps, 'num_samples': 2})
    with pytest.raises(
        UserError, match=r'bridge\.process\.num_samples: 2 .*noise.*steps'
    ) as caught:
        build_stages(config, grid)
    assert '\n' not in str(caught.value)
    process.num_samples = 1
    build_stages(config, grid)
    process.update({'noise': 1.0, 'sampler_steps': 2, 'num_samples': 2})
    build_stages(config, grid)


def test_a_map_that_cannot_be_made_is_refused_before_the_training(tmp_path):
    config = config_of('fluidjax', 'smoke')
    config.head.training.steps = 0
    with pytest.raises(UserError, match="config.detect.head: 'product' needs a head"):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
