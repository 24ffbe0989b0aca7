"""Configurations: the argument after the colon, frozen settings, and files."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.base.settings import (
    differences,
    load_config,
    parse_argument,
    save_config,
    settings_from,
)
from fluidjax.training.loop import StageSettings
from fluidjax.training.settings import OptimizerSettings

CHOICES = {'size': ('paper', 'demo'), 'cohort': ('template', 'nifti')}


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
    with pytest.raises(UserError, match='training.steps: 0 must be 1 or more'):
        settings_from(StageSettings, {**values, 'steps': 0}, 'stage')


def test_saved_configuration_is_the_same_and_a_change_is_named(tmp_path):
    config = ldm.get_config('smoke')
    save_config(tmp_path / 'config.json', config)
    loaded = load_config(tmp_path / 'config.json')
    assert differences(loaded, config) == []
    config.diffusion.training.steps = 99
    assert differences(loaded, config) == ['diffusion.training.steps']


def test_no_configuration_says_how_to_train(tmp_path):
    with pytest.raises(UserError, match='fluidjax train'):
        load_config(tmp_path / 'config.json')
