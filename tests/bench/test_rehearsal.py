"""The rehearsal of a configuration; its slow tests run every size, the paper's takes hours.

./run.sh test -m slow -n0 tests/bench/test_rehearsal.py -k 2mm
"""

from __future__ import annotations

import os

import pytest

from configs import sizes
from configs.methods import config_of
from fluidjax.base.errors import UserError
from fluidjax.bench import rehearsal
from fluidjax.bench.timer import Table
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import build_stages


def test_every_stage_is_shortened_and_nothing_else_is_changed(tmp_path):
    config = config_of('fluidjax', '2mm')
    short = rehearsal._shortened(config, 3, tmp_path)
    assert short.autoencoder.training.steps == 3 and short.bridge.training.steps == 5  # its reuse
    assert short.head.training.checkpoint_every == 3
    assert short.cohort.data_dir == str(tmp_path / 'healthy')
    for name in ('autoencoder', 'bridge', 'head'):
        assert short[name].network == config[name].network
        assert short[name].training.batch_size == config[name].training.batch_size
    assert config.cohort.name == 'template' and config.autoencoder.training.steps > 3


@pytest.mark.parametrize('method', ['conddiff', 'regression'])
def test_no_stage_is_added(method, tmp_path):
    config = config_of(method, '2mm')
    config.cohort.labels = 'freesurfer'
    short = rehearsal._shortened(config, 3, tmp_path)
    assert short.cohort.labels == ''
    names, ours = (
        [stage.method.stage for stage in build_stages(one, model_grid(one))]
        for one in (config, short)
    )
    assert names == ours


def test_seconds_of_a_step_leave_out_the_compilation(tmp_path):
    lines = [
        '{"stage": "a", "step": 1, "seconds_per_step": 9.0}',
        '{"stage": "a", "step": 2, "seconds_per_step": 2.0}',
        '{"stage": "a", "step": 2, "validation_loss": 1.0}',
        '{"stage": "a", "step": 3, "seconds_per_step": 4.0}',
        '{"stage": "b", "step": 5, "seconds_per_step": 7.0}',
    ]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines))
    assert rehearsal._stages(tmp_path) == [('a', 3.0), ('b', 7.0)]


def test_a_rehearsal_refuses_what_would_fail_at_its_end(tmp_path):
    with pytest.raises(UserError, match='--scan: there is no .*typo.nii'):
        rehearsal.rehearse(config_of('fluidjax', 'smoke'), 1, scan='~/typo.nii')
    (tmp_path / 'rehearsal.json').write_text('{}')
    with pytest.raises(UserError, match='--keep: .* holds a rehearsal already'):
        rehearsal.rehearse(config_of('fluidjax', 'smoke'), 1, folder=str(tmp_path))


def _ends(_):
    os._exit(7)


def test_a_part_that_the_system_ends_is_named():
    with pytest.raises(UserError, match='train: failed .exit status 7'):
        rehearsal._timed('train', _ends, ('nothing',), Table(9, *rehearsal.COLUMNS))


@pytest.mark.slow
@pytest.mark.parametrize('size', ['smoke', *sizes.FINER, 'paper'])
def test_a_size_trains_evaluates_and_predicts(size):
    parts = rehearsal.rehearse(config_of('fluidjax', size), 3)['parts']
    names = [part['part'] for part in parts]
    assert names == ['scans', 'train', 'eval', 'autoencoder', 'bridge', 'head', 'predict']
    assert all(part['peak_gb'] > 0.1 for part in parts if 'peak_gb' in part)
