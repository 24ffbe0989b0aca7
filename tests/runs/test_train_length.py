"""How long stages are trained: epochs, and runs that are made longer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.base.settings import load_config, save_config
from fluidjax.runs import train
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.length import changes, go_on, in_steps
from fluidjax.runs.stages import build_stages
from fluidjax.training import checkpoint, history
from fluidjax.training.history import History

STATE = {'w': np.zeros(2, np.float32)}


def config_with(**fields):
    """The smoke configuration with changed fields, `__` for a dot."""
    config = ldm.get_config('smoke')
    changed = {name.replace('__', '.'): value for name, value in fields.items()}
    config.update_from_flattened_dict(changed)
    return config


def stages_of(config):
    return build_stages(config, model_grid(config))


def run_at(workdir, config, **steps):
    """A run of a configuration, with a checkpoint of each stage at a step."""
    save_config(workdir / 'config.json', config)
    for stage, step in steps.items():
        checkpoint.save(workdir / 'checkpoints' / stage, step, STATE)


@pytest.mark.parametrize(
    'epochs,scans,reuse,steps', [(3, 8, 1, 3), (2, 13, 1, 4), (2, 13, 3, 6), (25, 32, 3, 102)]
)
def test_epochs_become_steps(epochs, scans, reuse, steps):
    every = {f'diffusion__training__{name}_every': 6 for name in ('log', 'checkpoint')}
    config = config_with(
        diffusion__training__epochs=epochs, diffusion__training__reuse=reuse, **every
    )
    resolved = in_steps(config, stages_of(config), scans)
    assert resolved.diffusion.training.steps == steps
    assert resolved.autoencoder.training.steps == config.diffusion.training.steps == 6
    assert stages_of(resolved)[1].training.steps == steps


def refuse(config, workdir):
    train._refuse_another_run(config, stages_of(config), workdir, model_grid(config))


def test_a_run_goes_on_with_other_intervals_and_steps_but_nothing_else(tmp_path):
    older = ldm.get_config('smoke').to_dict()
    for name in ('epochs', 'patience'):  # as a run from before these fields
        del older['diffusion']['training'][name]
    run_at(tmp_path, ConfigDict(older), autoencoder=6, diffusion=6)
    section = 'diffusion__training__'
    steered = {'steps': 9, 'epochs': 2, 'log_every': 1, 'checkpoint_every': 2, 'accumulate': 2}
    steered |= {'validate_every': 3, 'picture_every': 3, 'patience': 2}
    fields = {section + name: value for name, value in steered.items()}
    refuse(config_with(**fields), tmp_path)
    for name, value in (('batch_size', 16), ('optimizer__b2', 0.5)):
        dotted = f'diffusion.training.{name.replace("__", ".")}'
        with pytest.raises(UserError, match=f'differs in {dotted}\\)'):
            refuse(config_with(**fields, **{section + name: value}), tmp_path)


def test_a_stage_is_neither_added_nor_removed(tmp_path):
    config = ldm.get_config('smoke,method=fluidjax')
    run_at(tmp_path, config, autoencoder=6, bridge=6)
    config.head.training.steps = 0
    with pytest.raises(UserError, match='differs in head.training.steps'):
        refuse(config, tmp_path)


def changed_in(workdir, config):
    return changes(workdir, stages_of(load_config(workdir / 'config.json')), stages_of(config))


def test_only_a_stage_that_no_other_depends_on_gets_more_steps(tmp_path):
    run_at(tmp_path, config_with(), autoencoder=6)
    more = config_with(autoencoder__training__steps=8)
    (change,) = changed_in(tmp_path, more)
    assert (change.name, change.done, change.goes_on) == ('autoencoder', 6, True)
    checkpoint.save(tmp_path / 'checkpoints' / 'diffusion', 3, STATE)
    with pytest.raises(UserError, match='autoencoder.*diffusion stage.*has begun') as caught:
        changed_in(tmp_path, more)
    assert '\n' not in str(caught.value)
    (change,) = changed_in(tmp_path, config_with(autoencoder__training__log_every=3))
    assert not change.goes_on
    for steps, fits in ((2, False), (3, False), (4, True), (9, True)):
        config = config_with(diffusion__training__steps=steps)
        if fits:
            assert changed_in(tmp_path, config)[0].after.steps == steps
        else:
            with pytest.raises(UserError, match=f'steps: {steps} is not more than the 3 steps'):
                changed_in(tmp_path, config)


def test_a_stage_that_ended_early_goes_on_with_more_steps(tmp_path):
    early = {f'{s}__training__validate_every': 1 for s in ('autoencoder', 'diffusion')}
    early |= {f'{s}__training__patience': 2 for s in ('autoencoder', 'diffusion')}
    run_at(tmp_path, config_with(**early), autoencoder=3)
    folder = tmp_path / 'checkpoints' / 'autoencoder'
    history.write(folder, History({1: 0.5, 2: 0.6, 3: 0.7}))
    more = config_with(**early, autoencoder__training__steps=9)
    checkpoint.save(tmp_path / 'checkpoints' / 'diffusion', 6, STATE)
    with pytest.raises(UserError, match='after step 3, but the diffusion stage'):
        changed_in(tmp_path, more)
    with pytest.raises(UserError, match='after step 3, but the diffusion stage'):
        changed_in(tmp_path, config_with(**early | {'autoencoder__training__patience': 3}))
    (tmp_path / 'checkpoints' / 'diffusion' / '6').rename(tmp_path / 'elsewhere')
    (line,) = go_on(changed_in(tmp_path, more))
    assert '9 now instead of 6' in line and 'cosine' in line
    assert checkpoint.losses_of(folder).since == 3
    save_config(tmp_path / 'config.json', more)
    assert go_on(changed_in(tmp_path, more)) == []


def test_train_resolves_epochs_once_and_goes_on_where_they_are_more(tmp_path, monkeypatch, capsys):
    asked = []

    def train_stage(method, prepare, feed, settings, workdir, *rest):
        asked.append((method.stage, settings.steps))
        checkpoint.save(workdir / 'checkpoints' / method.stage, settings.steps, STATE)
        return {}

    monkeypatch.setattr(train, 'train_stage', train_stage)
    monkeypatch.setattr(train, 'state_template', lambda *of: STATE)
    monkeypatch.setenv('FLUIDJAX_STORE', str(tmp_path / 'store'))
    config, workdir = config_with(diffusion__training__epochs=9), tmp_path / 'run'
    train.train(config, workdir)
    assert asked == [('autoencoder', 6), ('diffusion', 9)]  # 8 scans, 8 samples a step
    saved = json.loads((workdir / 'config.json').read_text())['diffusion']['training']
    assert (saved['epochs'], saved['steps']) == (9, 9)
    train.train(config, workdir)
    assert 'all stages are done' in capsys.readouterr().err and len(asked) == 2
    train.train(config_with(diffusion__training__epochs=12), workdir)
    assert asked[2:] == [('autoencoder', 6), ('diffusion', 12)]
    assert 'diffusion: 9 steps are done, of 12 now instead of 9' in capsys.readouterr().err
    train.train(config_with(diffusion__training__steps=12), workdir)
    assert len(asked) == 4
    assert load_config(workdir / 'config.json').diffusion.training.epochs == 0


def test_published_settings_that_do_not_suit_a_run_are_named():
    """25 epochs of few scans, and sampling in which large lesions stay visible."""
    config = ldm.get_config('paper')
    resolved = in_steps(config, stages_of(config), 11)
    epochs, start = train._advice(resolved, stages_of(resolved), 11)
    assert 'config.autoencoder.training.epochs' in epochs and '35 steps' in epochs
    assert 'config.diffusion.process.start_step' in start and 'step 250' in start
    many = in_steps(config, stages_of(config), 5000)
    many.diffusion.process.start_step = 1000
    assert train._advice(many, stages_of(many), 5000) == []
    assert train._advice(ldm.get_config('smoke'), stages_of(ldm.get_config('smoke')), 8) == []
