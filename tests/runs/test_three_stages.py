"""A run of three stages: their seeds, what each takes over, and the run as a package."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.base.settings import save_config
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.methods.bridge import LatentBridge
from fluidjax.methods.head import PRIOR_LOGIT
from fluidjax.runs import card, export, progress_picture, train
from fluidjax.runs.cohort import PURPOSES, derived_seed, model_grid
from fluidjax.runs.load import load_run
from fluidjax.runs.stages import build_stages, longest_stage
from fluidjax.training import checkpoint
from fluidjax.training.loop import Watch
from fluidjax.training.settings import make_optimizer
from fluidjax.training.state import create_state, run_once

CONFIG = ldm.get_config('smoke,method=fluidjax')
STAGES = build_stages(CONFIG, model_grid(CONFIG))


def test_a_third_stage_has_a_seed_of_its_own_and_changes_no_other():
    seeds = {(s, p): derived_seed(s, p) for s in range(3) for p in (*PURPOSES, 'third stage')}
    assert len(set(seeds.values())) == len(seeds)
    assert [seeds[1, purpose] for purpose in PURPOSES] == [5, 6, 7, 8, 9]  # those of older runs


def test_benchmarks_time_the_bridge():
    assert longest_stage(STAGES) == STAGES[1] == longest_stage(STAGES[:2])
    assert longest_stage(STAGES[:1]) == STAGES[0]


def test_each_stage_starts_from_all_that_was_trained_before(tmp_path, monkeypatch):
    groups = {
        'autoencoder': ('autoencoder', 'discriminator'),
        'bridge': ('unet', 'autoencoder', 'latent'),
        'head': ('head', 'unet', 'autoencoder', 'latent', 'health'),
    }
    calls = {}

    def train_stage(method, prepare, feed, settings, workdir, seed, *rest):
        """A group that a stage trains becomes the stage's name; others stay as prepared."""
        prepared = prepare(dict.fromkeys(groups[method.stage], 'new'))
        calls[method.stage] = seed, prepared
        return prepared | dict.fromkeys(method.trainable, f'trained {method.stage}')

    monkeypatch.setattr(train, 'train_stage', train_stage)
    monkeypatch.setattr(train, 'some_volumes', lambda cohort: np.zeros((2, 4, 4, 4, 1)))
    for method, measured in ((AutoencoderMethod, {}), (LatentBridge, {'latent': 'measured'})):
        monkeypatch.setattr(method, 'prepare', lambda *given, more=measured: {**given[1], **more})
    feeds = [types.SimpleNamespace(validation=None, layout=None)] * len(STAGES)
    plan = train._Plan(CONFIG, STAGES, feeds, None, [], {}, 0)
    train._train_stages(plan, tmp_path, None, Watch())
    assert list(calls) == list(groups)
    assert len({seed for seed, _ in calls.values()}) == len(STAGES)
    _, prepared = calls['head']
    assert prepared.pop('health')['mean'].shape == (4, 4, 4, 1)
    assert prepared == {
        'autoencoder': 'trained autoencoder',
        'unet': 'trained bridge',
        'latent': 'measured',
        'head': 'new',
    }
    start = {'unet': 'theirs', 'latent': 'measured by them', 'autoencoder': 'theirs'}
    train._train_stages(dataclasses.replace(plan, start=start), tmp_path, None, Watch())
    assert calls['autoencoder'][1] == {'autoencoder': 'theirs', 'discriminator': 'new'}
    assert calls['bridge'][1] == {
        'autoencoder': 'trained autoencoder',
        'unet': 'theirs',
        'latent': 'measured by them',
    }
    assert calls['head'][1]['unet'] == 'trained bridge' and calls['head'][1]['head'] == 'new'


def test_a_training_starts_from_another_run(untrained, tmp_path):
    folder, params = untrained
    config = CONFIG.copy_and_resolve_references()
    assert train._start_of(config, STAGES, tmp_path) == ({}, 0)
    config.start = str(folder)
    found, step = train._start_of(config, STAGES, tmp_path)
    assert step == load_run(folder).step
    assert set(found) == {'autoencoder', 'unet', 'latent', 'head', 'health'}
    np.testing.assert_array_equal(found['latent']['mean'], params['latent']['mean'])
    config.start = f'{folder}, {folder}'
    mean, steps = train._start_of(config, STAGES, tmp_path)
    assert steps == [step, step]
    jax.tree.map(np.testing.assert_array_equal, mean, found)
    other = ldm.get_config('smoke')
    other.start = str(folder)
    with pytest.raises(UserError, match='config.start: .* is of the method fluidjax, not conddiff'):
        train._start_of(other, build_stages(other, model_grid(other)), tmp_path)
    config.bridge.network.channels = (16,)
    with pytest.raises(UserError, match='config.start: the unet of .* has other sizes'):
        train._start_of(config, build_stages(config, model_grid(config)), tmp_path)
    config.start = str(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='nowhere'):
        train._start_of(config, STAGES, tmp_path)


def test_several_starts_are_averaged(untrained, monkeypatch, tmp_path):
    run = load_run(untrained[0])
    other = dataclasses.replace(run, params=jax.tree.map(lambda x: x + 1.0, run.params), step=9)
    monkeypatch.setattr(train, 'load_run', lambda path: {'a': run, 'b': other}[path.name])
    config = CONFIG.copy_and_resolve_references()
    config.start = 'a, b,b'
    found, steps = train._start_of(config, STAGES, tmp_path)
    assert steps == [run.step, 9, 9]
    for name, group in found.items():
        close = lambda mean, own: np.testing.assert_allclose(mean, own + 2 / 3, rtol=1e-5)
        jax.tree.map(close, group, run.params[name])


def test_a_start_that_was_trained_further_is_refused(untrained, tmp_path):
    config = CONFIG.copy_and_resolve_references()
    config.start = str(untrained[0])
    began_at = load_run(untrained[0]).step + 1
    (tmp_path / train.START).write_text(json.dumps({'step': began_at}))
    with pytest.raises(UserError, match=f'and was at {began_at} when .* began'):
        train._start_of(config, STAGES, tmp_path)


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """A run with initial parameters, and these."""
    folder, stage = tmp_path_factory.mktemp('run'), STAGES[-1]
    method, settings = stage.method, stage.training
    params = run_once(method.init, jax.random.key(0))
    optimizer = make_optimizer(settings.optimizer, settings.steps, method.trainable)
    state = create_state(params, method.trainable, optimizer)
    state = jax.device_get(state.replace(step=state.step + settings.steps))
    checkpoint.save(folder / 'checkpoints' / method.stage, settings.steps, state)
    save_config(folder / 'config.json', CONFIG)
    (folder / 'cohort.json').write_text(json.dumps({'cohort': 'heads', 'sizes': {}}))
    return folder, params


def test_another_start_is_another_run(tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    grid, other = model_grid(CONFIG), CONFIG.copy_and_resolve_references()
    other.start = 'model.zip'
    for old, new in ((CONFIG, other), (other, CONFIG)):
        save_config(tmp_path / 'config.json', old)
        with pytest.raises(UserError, match=r'another configuration \(it differs in start'):
            train._refuse_another_run(new, STAGES, tmp_path, grid)
    older = CONFIG.copy_and_resolve_references()
    del older.start
    save_config(tmp_path / 'config.json', older)
    train._refuse_another_run(CONFIG, STAGES, tmp_path, grid)


def test_a_package_does_not_name_the_folder_that_it_started_from():
    config = CONFIG.copy_and_resolve_references()
    config.start = '/home/anna/patients/model.zip'
    assert export.without_folders(config).start == 'model.zip'


def test_run_and_package_hold_the_groups_of_all_stages(untrained, tmp_path):
    folder, params = untrained
    export.export(folder, tmp_path / 'model.zip')
    for path in (folder, tmp_path / 'model.zip'):
        run = load_run(path)
        assert run.method == STAGES[-1].method and run.step == STAGES[-1].training.steps
        assert set(run.params) == {'autoencoder', 'unet', 'latent', 'head', 'health'}
        jax.tree.map(np.testing.assert_array_equal, run.params, params)


def test_an_older_run_is_trained_again_without_a_head():
    older = ldm.ConfigDict(CONFIG.to_dict())
    del older.head, older.detect.head
    words = card.training_command(older).split()
    assert {'--config.head.training.steps=0', '--config.detect.head=none'} <= set(words)


def test_the_progress_picture_shows_the_probability_too(untrained):
    method, (_, params) = STAGES[-1].method, untrained
    grid = method.pairs.grid
    brain = np.zeros(grid.shape, bool)
    brain[3:13, 3:13, 3:13] = True
    paint = progress_picture.painter(method, grid, method.pairs.randomization, 0.7 * brain, brain)
    picture = paint(params)[..., 0]
    _, _, _, shown = np.split(picture, 4)
    # Before training it is the same small number in the whole brain.
    assert set(np.unique(shown)) == {0, int(255 / (1 + np.exp(-PRIOR_LOGIT)))}
