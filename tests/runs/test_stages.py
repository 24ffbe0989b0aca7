"""Stages of the configurations: sizes, shapes, and fields that do not fit."""

from __future__ import annotations

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
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.models.discriminator import Discriminator
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import METHODS, build_stages
from fluidjax.runs.train import _refuse_another_run
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
        ('fluidjax', {'unet': 59_556_099, 'autoencoder': 13_766_248}),
        ('vae', {'vae': 39_458_696}),
        ('regression', {'unet': 7_115_777}),
        ('inpainting', {'unet': 7_116_641}),
    ],
)
def test_the_papers_size_has_its_parameters(method, groups):
    _, params = paper(method)
    assert {name: count(params[name]) for name in groups} == groups


@pytest.mark.parametrize('method', ['conddiff', 'fluidjax', 'vae', 'regression', 'inpainting'])
def test_loss_and_counterpart_have_their_shapes_at_the_papers_size(method):
    """At 160^3, without allocating anything; the other methods share the code of conddiff."""
    stages, params = paper(method)
    trained, key = stages[-1].method, jax.random.key(0)
    volume = jax.ShapeDtypeStruct((1, *GRIDS['paper'].shape, 1), jnp.float32)
    loss, _ = jax.eval_shape(trained.loss, params, {'image': volume, 'brain': volume}, key)
    assert loss.shape == ()
    masks = [volume] if trained.needs_mask else []
    counterpart = jax.eval_shape(trained.reconstruct, params, volume, key, *masks)
    assert counterpart.shape == volume.shape and counterpart.dtype == volume.dtype


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
    shared = {'autoencoder'} if len(stages) == 2 else set()
    assert shared <= set(state.frozen) <= {'autoencoder', 'latent', 'mean'}


@pytest.mark.parametrize(
    'change,message',
    [
        ({'diffusion': {'process': {'sampler': 'euler'}}}, 'sampler'),
        ({'diffusion': {'process': {'start_step': 5000}}}, 'start_step'),
        ({'fluid': {'painting': 'oil'}}, 'painting'),
        ({'autoencoder': {'network': {'patch': 3}}}, 'does not divide'),
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
        ('diffusion.training.steps', 7),
    ):
        other = ConfigDict(config.to_dict())
        other.update_from_flattened_dict({path: value})
        with pytest.raises(UserError, match='another configuration'):
            _refuse_another_run(other, build_stages(other, grid), tmp_path, grid)


@pytest.mark.parametrize('method', METHODS)
def test_the_list_of_methods_has_a_configuration_each(method):
    config = config_of(method, 'smoke,cohort=nifti')
    assert (config.method, config.size, config.cohort.name) == (method, 'smoke', 'nifti')
