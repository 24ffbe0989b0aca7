"""What an evaluation leaves when it is interrupted, and what is asked of its flags."""

from __future__ import annotations

import contextlib
import json
import types

import numpy as np
import pytest

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.base.settings import save_config
from fluidjax.detect.recipe import Recipe
from fluidjax.runs import evaluate, thresholds
from fluidjax.runs.detector import Choice
from fluidjax.runs.load import described
from fluidjax.runs.scoring import Calibrated
from fluidjax.training import checkpoint


def calibrate(workdir, level):
    choice = {'conddiff': Choice(Recipe())}
    thresholds.save(workdir, described(workdir), {'conddiff': {'dice': level}}, choice)


@pytest.fixture
def evaluated(tmp_path):
    """An evaluated run, whose parameters cannot be read."""
    save_config(tmp_path / 'config.json', ldm.get_config('smoke'))
    checkpoint.save(tmp_path / 'checkpoints' / 'diffusion', 6, {'w': np.zeros(2, np.float32)})
    calibrate(tmp_path, 0.25)
    (tmp_path / 'eval').mkdir()
    (tmp_path / 'eval' / 'metrics.json').write_text('{"old": {}}')
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Evaluations of no case, with a threshold of 0.5."""
    row = types.SimpleNamespace(lines=list, summary=dict, curve=dict, reliability=list)
    made = {
        'load_run': described,
        'open_cohort': lambda config: None,
        'check_cohort_of': lambda *of: None,
        'own_test_set': lambda *of: ('new', [], None),
        'healthy_of': lambda *of: [],
        'Detector': lambda run: None,
        'rows_of': lambda *of: {},
        'calibrated': lambda *of: {'conddiff': Calibrated(Choice(Recipe()), {'dice': 0.5}, {})},
        'scores_of': lambda *of: contextlib.nullcontext({'conddiff': row}),
        'scored': lambda *of: iter(()),
        'write_report': lambda *of: None,
        'verdict': lambda scores: '',
        'scores_text': str,
    }
    for name, stand_in in made.items():
        monkeypatch.setattr(evaluate, name, stand_in)


def interrupt(*of):
    raise KeyboardInterrupt


@pytest.mark.parametrize('moment', ['calibrated', 'scored', 'write_report'])
def test_an_interrupted_evaluation_leaves_thresholds_and_scores_of_one_evaluation(
    evaluated, quick, moment, monkeypatch
):
    assert thresholds.is_evaluated(evaluated)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate, moment, interrupt)
        evaluate.run_evaluation(evaluated)
    assert (evaluated / 'eval' / 'metrics.json').read_text() == '{"old": {}}'
    assert thresholds.load(described(evaluated)) == 0.25
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate.evaluate, 'write_metrics', interrupt)
        evaluate.run_evaluation(evaluated)
    assert thresholds.load(described(evaluated)) == 0.5
    assert not thresholds.is_evaluated(evaluated)
    evaluate.run_evaluation(evaluated)
    assert thresholds.is_evaluated(evaluated) and thresholds.load(described(evaluated)) == 0.5
    assert json.loads((evaluated / 'eval' / 'metrics.json').read_text()) == {
        'new': {'conddiff': {}}
    }


def test_a_mistake_before_the_evaluation_keeps_the_scores(evaluated, quick, monkeypatch):
    def refuse(config):
        raise UserError('no such folder')

    monkeypatch.setattr(evaluate, 'open_cohort', refuse)
    with pytest.raises(UserError):
        evaluate.run_evaluation(evaluated)
    assert thresholds.is_evaluated(evaluated)


def test_a_run_is_evaluated_again_when_it_was_trained_further(evaluated):
    assert thresholds.is_evaluated(evaluated)
    checkpoint.save(evaluated / 'checkpoints' / 'diffusion', 9, {'w': np.zeros(2, np.float32)})
    assert not thresholds.is_evaluated(evaluated)
    calibrate(evaluated, 0.3)
    assert thresholds.is_evaluated(evaluated)


def test_a_trial_that_is_evaluated_is_not_read_again(evaluated, monkeypatch):
    """Its parameters could not be."""
    from fluidjax.runs import train
    from fluidjax.sweep import worker

    begun = []
    monkeypatch.setattr(train, 'train', lambda *of, **named: None)
    monkeypatch.setattr(evaluate, 'run_evaluation', lambda folder, **of: begun.append(folder))
    scores = {'ap': {'mean': 0.5}}
    path = evaluated / 'eval' / 'metrics.json'
    path.write_text(json.dumps({'cohort': {'conddiff': scores}}))
    assert worker.do_trial(None, evaluated, None) == {'ap': 0.5} and begun == []
    path.unlink()  # as an evaluation that was interrupted
    with pytest.raises(FileNotFoundError):
        worker.do_trial(None, evaluated, None)
    assert begun == [evaluated]


@pytest.mark.parametrize('given', ['test_dir', 'lesion_dir', 'store'])
def test_the_flag_that_needs_healthy_scans_is_the_one_that_was_given(given, tmp_path):
    with pytest.raises(UserError, match=f'--{given}: needs --data_dir'):
        evaluate._with_scans(ldm.get_config('smoke'), tmp_path, {given: 'X'})
