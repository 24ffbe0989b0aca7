"""Runs that go on: with a damaged checkpoint, from another place, after `convert`. None trains."""

from __future__ import annotations

import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.base.settings import differences, field_of, load_config, save_config
from fluidjax.runs import convert, train
from fluidjax.runs.cohort import identity, model_grid
from fluidjax.runs.length import changes, in_steps
from fluidjax.runs.stages import Stage, build_stages
from fluidjax.training import checkpoint
from fluidjax.training.loop import Watch, is_done
from fluidjax.training.settings import OptimizerSettings, StageSettings, make_optimizer
from fluidjax.training.state import create_state


class Line:
    """A method of two numbers."""

    stage, trainable = 'line', ('net',)

    def init(self, key):
        return {'net': {'w': jnp.zeros(2)}}


LINE = Stage(Line(), StageSettings(4, 1, OptimizerSettings()))


def finished(workdir):
    """A run of `LINE` with two checkpoints; the folder of its stage."""
    folder = workdir / 'checkpoints' / 'line'
    optimizer = make_optimizer(LINE.training.optimizer, 4, Line.trainable)
    state = create_state(Line().init(None), Line.trainable, optimizer)
    for step in (2, 4):
        checkpoint.save(folder, step, state)
    return folder


@pytest.fixture
def trained(monkeypatch):
    """The stages that are trained, by a stand-in that trains nothing."""
    asked = []

    def train_stage(method, *rest):
        asked.append(method.stage)
        return {}

    monkeypatch.setattr(train, 'train_stage', train_stage)
    return asked


def plan_of(config, *stages, cohort=None):
    feeds = [types.SimpleNamespace(layout=None, validation=None) for _ in stages]
    return train._Plan(config, stages, feeds, cohort, [], {}, 0)


def test_the_last_checkpoint_of_a_finished_run_is_repaired(tmp_path, trained, capsys):
    folder, plan = finished(tmp_path), plan_of(ConfigDict({'seed': 0}), LINE)
    train._train_stages(plan, tmp_path, None, Watch())
    assert trained == [] and 'all stages are done' in capsys.readouterr().err
    for path in (folder / '4').rglob('d/*'):
        path.write_bytes(path.read_bytes()[:7])  # as a copy that was cut off
    assert is_done(folder, LINE.training)
    train._train_stages(plan, tmp_path, None, Watch())
    assert trained == ['line'] and checkpoint.all_steps(folder) == [2]
    told = capsys.readouterr().err
    assert 'damaged-4' in told and 'goes on from step 2' in told and 'are done' not in told


def own_scans(**folders):
    config = ldm.get_config('smoke,cohort=nifti')
    config.cohort.update(folders)
    return config


def cohort_in(store, digest):
    directory = Path(store) / 'nifti_cohort' / digest / '1.0.0'
    return types.SimpleNamespace(directory=directory, sizes={'train': 8})


def begun(workdir, config, cohort):
    """A run with a checkpoint, that says which scans it is trained on."""
    train._write_identity(plan_of(config, cohort=cohort), workdir)
    checkpoint.save(workdir / 'checkpoints' / 'autoencoder', 3, {'w': np.zeros(2, np.float32)})


def refuse(config, workdir):
    grid = model_grid(config)
    train._refuse_another_run(config, build_stages(config, grid), workdir, grid)


MOVED = {'data_dir': 'new/scans', 'test_dir': 'new/patients', 'lesion_dir': 'l', 'store': 's2'}


def test_a_run_goes_on_where_its_scans_were_moved(tmp_path):
    begun(tmp_path, own_scans(data_dir='old', store='s1'), cohort_in('s1', 'same'))
    moved = own_scans(**MOVED)
    refuse(moved, tmp_path)
    train._write_identity(plan_of(moved, cohort=cohort_in('s2', 'same')), tmp_path)
    kept = load_config(tmp_path / 'config.json').cohort  # where `eval` looks for them
    assert {name: kept[name] for name in MOVED} == MOVED


def test_other_scans_are_still_another_run(tmp_path):
    first = own_scans(data_dir='old')
    begun(tmp_path, first, cohort_in('s1', 'same'))
    with pytest.raises(UserError, match='not those that this run was trained on'):
        train._write_identity(plan_of(own_scans(**MOVED), cohort=cohort_in('s', 'x')), tmp_path)
    assert load_config(tmp_path / 'config.json').cohort.data_dir == 'old'
    with pytest.raises(UserError, match='differs in cohort.registration'):
        refuse(own_scans(**MOVED, registration='none'), tmp_path)
    assert identity(cohort_in('a', 'same')) == identity(cohort_in('b', 'same'))
    (tmp_path / 'cohort.json').unlink()  # nothing says which scans they were
    with pytest.raises(UserError, match='differs in cohort.data_dir'):
        refuse(own_scans(**MOVED), tmp_path)


def test_training_goes_on_from_a_converted_autoencoder_with_the_printed_flags(tmp_path):
    """At the paper's size, whose length is given in epochs."""
    config = ldm.get_config('paper')
    assert config.autoencoder.training.epochs == 25
    grid = model_grid(config)
    network = build_stages(config, grid)[0].method.network
    model = types.SimpleNamespace(config=network)
    made = convert.config_of({'autoencoder': types.SimpleNamespace(model=model)}, config)
    stage = build_stages(made, grid)[0]
    folder, done = tmp_path / 'checkpoints' / 'autoencoder', stage.training.steps
    checkpoint.save(folder, done, {'w': np.zeros(2, np.float32)})
    save_config(tmp_path / 'config.json', made)
    given = ConfigDict(config.to_dict())
    printed = {name: field_of(made, name) for name in differences(config, made)}
    given.update_from_flattened_dict(printed)
    stages = build_stages(in_steps(given, build_stages(given, grid), 57), grid)
    refuse(given, tmp_path)
    changes(tmp_path, build_stages(load_config(tmp_path / 'config.json'), grid), stages)
    assert is_done(folder, stages[0].training)
