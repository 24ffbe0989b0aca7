"""Configurations: the argument after the colon, frozen settings, and the paper's size."""

from __future__ import annotations

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
from fluidjax.base.settings import (
    differences,
    load_config,
    parse_argument,
    save_config,
    settings_from,
)
from fluidjax.fluid.grid import Grid
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import METHODS, build_stages
from fluidjax.runs.train import _refuse_another_run
from fluidjax.training.loop import StageSettings, state_template
from fluidjax.training.settings import OptimizerSettings

CHOICES = {'size': ('paper', 'demo'), 'cohort': ('template', 'nifti')}


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    'argument,size,cohort',
    [
        ('', 'paper', 'template'),
        (None, 'paper', 'template'),
        ('demo', 'demo', 'template'),
        ('demo,cohort=nifti', 'demo', 'nifti'),
        ('cohort=nifti', 'paper', 'nifti'),
    ],
)
def test_argument(argument, size, cohort):
    assert parse_argument(argument, CHOICES) == {'size': size, 'cohort': cohort}


@pytest.mark.parametrize(
    'argument,message',
    [
        ('huge', 'size is one of paper, demo'),
        ('colour=red', "no 'colour'"),
        ('cohort=oasis', 'cohort is one of template, nifti'),
    ],
)
def test_wrong_argument_says_what_there_is(argument, message):
    with pytest.raises(UserError, match=message):
        parse_argument(argument, CHOICES)


def test_settings_are_frozen_nested_and_strict():
    values = {'steps': 3, 'batch_size': 2, 'optimizer': {'learning_rate': 0.5}}
    settings = settings_from(StageSettings, ConfigDict(values), 'stage')
    assert settings.optimizer == OptimizerSettings(learning_rate=0.5)
    with pytest.raises(UserError, match=r'config\.stage\.optimizer\.lr: no such field'):
        settings_from(StageSettings, {**values, 'optimizer': {'lr': 1.0}}, 'stage')
    with pytest.raises(UserError, match='steps is 0'):
        settings_from(StageSettings, {**values, 'steps': 0}, 'stage')


def test_saved_configuration_is_the_same_and_a_change_is_named(tmp_path):
    config = ldm.get_config('smoke')
    save_config(tmp_path / 'config.json', config)
    loaded = load_config(tmp_path / 'config.json')
    assert differences(loaded, config) == []
    config.diffusion.training.steps = 99
    assert differences(loaded, config) == ['diffusion.training.steps']


def test_no_configuration_says_how_to_train(tmp_path):
    with pytest.raises(UserError, match='fluidjax.main'):
        load_config(tmp_path / 'config.json')


@pytest.mark.parametrize(
    'method,groups',
    [
        # METHOD.md's counts, the parts of the paper's system and of its rivals
        ('conddiff', {'unet': 54_923_910, 'autoencoder': 13_766_248}),
        ('ldm', {'unet': 46_640_134, 'autoencoder': 13_766_248}),
        ('cldm', {'unet': 46_650_502, 'autoencoder': 13_766_248}),
        pytest.param(
            'icdm', {'unet': 46_650_502, 'autoencoder': 13_766_248}, marks=pytest.mark.slow
        ),  # cldm's networks
        # our own, and those of which the paper gives no sizes, as they were counted first
        ('fluidjax', {'unet': 59_556_099, 'autoencoder': 13_766_248}),
        ('vae', {'vae': 39_458_696}),
        ('regression', {'unet': 7_115_777}),
        ('inpainting', {'unet': 7_116_641}),
    ],
)
def test_the_papers_size_has_its_parameters_and_shapes(method, groups):
    """Built and shape-checked at 160^3 without allocating; loss and counterpart included."""
    grid = Grid(GRIDS['paper'].shape, GRIDS['paper'].spacing)
    trained = build_stages(config_of(method, 'paper'), grid)[-1].method
    key = jax.random.key(0)
    params = jax.eval_shape(trained.init, key)
    assert {name: count(params[name]) for name in groups} == groups
    volume = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    loss, _ = jax.eval_shape(trained.loss, params, {'image': volume, 'brain': volume}, key)
    assert loss.shape == ()
    told = [volume] if trained.needs_mask else []
    counterpart = jax.eval_shape(trained.reconstruct, params, volume, key, *told)
    assert counterpart.shape == volume.shape and counterpart.dtype == volume.dtype


def test_the_published_parts_have_their_parameters():
    """METHOD.md: encoder, decoder, the three 1x1x1 convolutions, discriminator, condition."""
    grid = Grid(GRIDS['paper'].shape, GRIDS['paper'].spacing)
    first, second = build_stages(config_of('conddiff', 'paper'), grid)
    params = jax.eval_shape(first.method.init, jax.random.key(0))
    assert count(params['discriminator']) == 24_830_689
    coder = params['autoencoder']
    assert {name: count(part) for name, part in coder.items()} == {
        'encoder': 6_551_235,
        'decoder': 7_214_977,
        'quant_mu': 12,
        'quant_log_var': 12,
        'post_quant': 12,
    }
    unet = jax.eval_shape(second.method.init, jax.random.key(0))['unet']
    assert count(unet['condition']) == 805_376
    volume = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    latent = jax.eval_shape(first.method.encode, params, volume)
    assert latent.shape == (1, 20, 20, 20, 3) and latent.dtype == jnp.float32


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('size', ['demo', 'smoke'])
def test_small_sizes_build_and_have_a_state(method, size):
    stages = build_stages(config_of(method, size), Grid(GRIDS[size].shape, GRIDS[size].spacing))
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
    """Fields it did not know are taken at their defaults; what it knew must be as it was."""
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
