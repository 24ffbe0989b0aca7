"""Configurations: the argument after the colon, frozen settings, and the paper's size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import ldm
from data_pipelines.grids import GRIDS
from fluidjax.config import differences, load_config, parse_argument, save_config, settings_from
from fluidjax.errors import UserError
from fluidjax.experiment import build_stages
from fluidjax.fluid.grid import Grid
from fluidjax.training.loop import StageSettings, state_template
from fluidjax.training.optimizer import OptimizerSettings

CHOICES = {'size': ('paper', 'demo'), 'cohort': ('template', 'nifti')}


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('argument,size,cohort', [
    ('', 'paper', 'template'), (None, 'paper', 'template'), ('demo', 'demo', 'template'),
    ('demo,cohort=nifti', 'demo', 'nifti'), ('cohort=nifti', 'paper', 'nifti')])
def test_argument(argument, size, cohort):
    assert parse_argument(argument, CHOICES) == {'size': size, 'cohort': cohort}


@pytest.mark.parametrize('argument,message', [
    ('huge', 'size is one of paper, demo'), ('colour=red', "no 'colour'"),
    ('cohort=oasis', 'cohort is one of template, nifti')])
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


@pytest.mark.parametrize('method,unet', [
    ('conddiff', 54_923_910), ('ldm', 46_640_134), ('cldm', 46_650_502)])
def test_the_papers_size_has_the_papers_parameters_and_shapes(method, unet):
    """Built and shape-checked without allocating: METHOD.md's counts, latents of 20^3."""
    config = ldm.get_config(f'paper,method={method}')
    grid = Grid(GRIDS['paper'].shape, GRIDS['paper'].spacing)
    stages = build_stages(config, grid)
    key = jax.random.key(0)
    params = jax.eval_shape(stages.diffusion.init, key)
    assert count(params['unet']) == unet
    assert count(params['autoencoder']) == 13_766_248
    assert count(jax.eval_shape(stages.autoencoder.init, key)['discriminator']) == 24_830_689
    volume = jax.ShapeDtypeStruct((1, *grid.shape, 1), jnp.float32)
    latent = jax.eval_shape(stages.diffusion.encode, params, volume)
    assert latent.shape == (1, 20, 20, 20, 3)
    loss, metrics = jax.eval_shape(
        stages.diffusion.loss, params, {'image': volume, 'brain': volume}, key)
    assert loss.shape == () and {'mse', 'vb'} <= set(metrics)
    assert jax.eval_shape(stages.diffusion.reconstruct, params, volume, key).shape == volume.shape


@pytest.mark.parametrize('size', ['demo', 'smoke'])
def test_small_sizes_build_and_have_a_state(size):
    config = ldm.get_config(size)
    stages = build_stages(config, Grid(GRIDS[size].shape, GRIDS[size].spacing))
    state = state_template(
        stages.diffusion.init, stages.diffusion.trainable, stages.diffusion_training)
    assert set(state.params) == {'unet'} and set(state.frozen) == {'autoencoder', 'latent'}


@pytest.mark.parametrize('change,message', [
    ({'diffusion': {'process': {'sampler': 'euler'}}}, 'sampler'),
    ({'diffusion': {'process': {'start_step': 5000}}}, 'start_step'),
    ({'fluid': {'painting': 'oil'}}, 'painting'),
    ({'autoencoder': {'network': {'patch': 3}}}, 'does not divide'),
])
def test_a_field_that_does_not_fit_is_named(change, message):
    config = ldm.get_config('smoke')
    config.update(ConfigDict(change))
    with pytest.raises(UserError, match=message):
        build_stages(config, Grid(GRIDS['smoke'].shape, GRIDS['smoke'].spacing))
