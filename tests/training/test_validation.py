"""Validation during a stage: in parts, after the checkpoint, and the end that it decides."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from test_training import SETTINGS, Line, interrupt, lines, run, stopped_at

from fluidjax.base.errors import UserError
from fluidjax.training import checkpoint, history, parallel
from fluidjax.training.history import History
from fluidjax.training.logs import NoLog
from fluidjax.training.loop import Watch, is_done
from fluidjax.training.state import create_state
from fluidjax.training.validation import Validation

# A run passes through the answer of these scans on its way, and then gets worse on them.
PASSED = {'x': np.full((1, 4), 0.3, np.float32)}
SEARCH = {'steps': 60, 'validate_every': 4, 'patience': 3}


def losses(folder):
    return {r['step']: r['validation_loss'] for r in lines(folder) if 'validation_loss' in r}


def scans(fail_at=math.inf):
    """The passes over the validation scans; the one of a number fails."""
    passes = iter(range(1000))

    def validation():
        if next(passes) == fail_at:
            raise RuntimeError('out of memory')
        return iter([PASSED])

    return Watch(validation=validation)


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
    """A run that ended early: its folder, its parameters, and what it said."""
    folder, told = tmp_path_factory.mktemp('ended'), []
    params = run(folder, watch=dataclasses.replace(scans(), tell=told.append), **SEARCH)
    return folder, params, told


def test_validation_goes_through_the_samples_in_parts(tmp_path):
    class Sized(Line):
        def loss(self, params, batch, key, share):
            sizes.add(len(batch['x']))
            return super().loss(params, batch, key, share)

    measured = []
    for parts in (1, 2):
        sizes, folder = set(), tmp_path / str(parts)
        run(folder, Sized(), watch=scans(), steps=4, validate_every=4, accumulate=parts)
        assert sizes == {4 // parts}
        measured.append(losses(folder)[4])
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)


def test_a_validation_that_fails_loses_no_step(tmp_path):
    changes = {'steps': 12, 'validate_every': 4}
    with pytest.raises(RuntimeError, match='out of memory'):
        run(tmp_path / 'cut', watch=scans(fail_at=1), **changes)
    assert checkpoint.latest_step(tmp_path / 'cut' / 'checkpoints' / 'stage') == 8
    resumed = run(tmp_path / 'cut', watch=scans(), **changes)
    whole = run(tmp_path / 'whole', watch=scans(), **changes)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert lines(tmp_path / 'cut') == lines(tmp_path / 'whole')
    assert list(losses(tmp_path / 'cut')) == [4, 8, 12]


def test_a_stage_that_no_longer_improves_ends_and_is_done(ended):
    folder, params, told = ended
    measured, checkpoints = losses(folder), folder / 'checkpoints' / 'stage'
    best, last = min(measured, key=measured.get), max(measured)
    assert last == best + 3 * 4 < 60
    assert checkpoint.all_steps(checkpoints) == [best, last - 4, last]
    assert checkpoint.best_step(checkpoints) == best
    settings = dataclasses.replace(SETTINGS, **SEARCH)
    assert is_done(checkpoints, settings)
    assert not is_done(checkpoints, dataclasses.replace(settings, patience=4))
    assert not is_done(checkpoints, dataclasses.replace(settings, patience=0))
    assert [f'step {last} of 60' in line for line in told] == [True, False]  # then its speed
    again = run(folder, feed=stopped_at(0, interrupt), watch=scans(), **SEARCH)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize('validations', [1, 3])
def test_an_interrupted_run_ends_early_at_the_same_step(ended, tmp_path, validations):
    """Killed between steps, a number of validations before the end, and in the last validation."""
    folder, params, _ = ended
    last = max(losses(folder))
    with pytest.raises(KeyboardInterrupt):
        run(
            tmp_path,
            feed=stopped_at(last - 4 * validations + 1, interrupt),
            watch=scans(),
            **SEARCH,
        )
    with pytest.raises(RuntimeError):
        run(tmp_path, watch=scans(fail_at=validations - 1), **SEARCH)
    resumed = run(tmp_path, watch=scans(), **SEARCH)
    assert checkpoint.latest_step(tmp_path / 'checkpoints' / 'stage') == last
    jax.tree.map(np.testing.assert_array_equal, resumed, params)
    assert losses(tmp_path) == losses(folder)


def test_a_stage_that_ended_early_can_be_told_to_go_on(ended, tmp_path):
    last = max(losses(ended[0]))
    run(tmp_path, watch=scans(), **SEARCH)
    folder = tmp_path / 'checkpoints' / 'stage'
    checkpoint.let_go_on(folder, last)
    more = SEARCH | {'steps': 100}
    assert not is_done(folder, dataclasses.replace(SETTINGS, **more))
    run(tmp_path, watch=scans(), **more)
    assert max(losses(tmp_path)) == checkpoint.latest_step(folder) == last + 3 * 4


def test_all_processes_end_when_the_first_one_says(monkeypatch):
    """Another process has no losses from before."""
    settings = dataclasses.replace(SETTINGS, validate_every=4, patience=1)
    layout, key, method = parallel.layout_of(4), jax.random.key(0), Line()
    writer = checkpoint.NoWriter()
    validation = Validation(
        method, settings, layout, key, lambda: iter([PASSED]), writer, NoLog(), print
    )
    made = create_state(method.init(key), ('net',), optax.sgd(0.1))
    state = parallel.replicate(made, layout)
    assert not validation.measure(4, state)
    monkeypatch.setattr(parallel, 'from_first', lambda number: 1)
    assert validation.measure(8, state)


def test_losses_that_do_not_improve_are_counted():
    seen = History({4: 1.0, 8: 0.9995, 12: 0.5, 16: math.nan, 20: 0.4999, 24: 0.6})
    assert [seen.until(step).waited() for step in (4, 8, 12, 16, 20, 24)] == [0, 1, 0, 1, 2, 3]
    assert seen.has_ended(3) and not seen.has_ended(4) and not seen.has_ended(0)
    assert History(seen.losses, since=20).waited() == 1
    assert History({4: -1.0, 8: -2.0}).waited() == 0
    assert seen.best([4, 12, 16]) == 12 and seen.best([16]) is None and seen.best([]) is None


def test_losses_come_back_from_the_disk_and_from_older_checkpoints(tmp_path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: -metrics['validation_loss'])
    with ocp.CheckpointManager(tmp_path.absolute(), options=options) as manager:
        for step, loss in ((4, 0.2), (8, 0.4)):
            state = ocp.args.StandardSave({'w': np.zeros(2)})
            manager.save(step, args=state, metrics={'validation_loss': loss})
    assert checkpoint.losses_of(tmp_path) == History({4: 0.2, 8: 0.4})
    with checkpoint.Writer(tmp_path, checkpoint.losses_of(tmp_path)) as writer:
        writer.save(12, {'w': np.zeros(2)})
        writer.record(12, math.nan)
    assert checkpoint.losses_of(tmp_path).losses.keys() == {4, 8, 12}
    assert checkpoint.best_step(tmp_path) == 4
    (tmp_path / history.FILE).write_text('{"losses": [1, 2]}')
    with pytest.raises(UserError, match='validation.json: does not contain validation losses'):
        checkpoint.best_step(tmp_path)


def test_patience_needs_validation():
    with pytest.raises(UserError, match='training.patience: 2 needs.*validate_every'):
        dataclasses.replace(SETTINGS, patience=2)
