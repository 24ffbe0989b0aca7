"""The loop on a problem with a known answer: learning, stopping, resuming, logging."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fluidjax.base.errors import Stopped, UserError
from fluidjax.training import checkpoint, parallel
from fluidjax.training.logs import RunLog
from fluidjax.training.loop import Watch, is_done, train_stage
from fluidjax.training.rounds import Rounds
from fluidjax.training.settings import OptimizerSettings, StageSettings, make_optimizer
from fluidjax.training.state import create_state
from fluidjax.training.stopping import StopRequest

SETTINGS = StageSettings(
    steps=12,
    batch_size=4,
    optimizer=OptimizerSettings(learning_rate=0.1),
    ema_decay=0.5,
    log_every=4,
    checkpoint_every=4,
)
TARGET = 3.0


class Line:
    """A method that learns one number, from noisy ones."""

    stage = 'stage'
    trainable = ('net',)
    validation_loss = None

    def init(self, key):
        return {'net': {'w': jax.random.normal(key, (2,))}, 'given': {'scale': jnp.ones(())}}

    def loss(self, params, batch, key, share):
        return self.example_loss(params, self.examples(params, batch, key, share), key, share)

    def examples(self, params, batch, key, share):
        noise = 0.01 * share.normal(jax.random.fold_in(key, 7), (len(batch['x']), 2))
        return {'x': params['given']['scale'] * batch['x'][:, None] + noise}

    def example_loss(self, params, examples, key, share):
        x = examples['x'] + 0.01 * share.uniform(key, examples['x'].shape)
        error = params['net']['w'] - x * TARGET
        return jnp.mean(error**2), {'error': jnp.abs(error).mean(), 'size': x[:, 0]}


def batches(start):
    for step in range(start, 10_000):
        rng = np.random.default_rng(step)
        yield {'x': rng.uniform(0.9, 1.1, (1, 4)).astype(np.float32)}


def run(workdir, method=Line(), feed=batches, stop=None, watch=Watch(), **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    with stop or StopRequest() as stop:
        return train_stage(
            method,
            lambda params: params,
            feed,
            settings,
            workdir,
            1,
            parallel.layout_of(4),
            stop,
            watch,
        )


def lines(folder):
    """The log's lines without the times, which differ from run to run."""
    records = [json.loads(x) for x in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith('seconds')} for r in records]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run left alone: its folder and parameters."""
    folder = tmp_path_factory.mktemp('whole')
    return folder, run(folder)


def test_learns_and_leaves_frozen_groups_alone(tmp_path):
    params = run(tmp_path, steps=60)
    np.testing.assert_allclose(params['net']['w'], TARGET, atol=0.3)
    assert params['given']['scale'] == 1.0
    assert is_done(tmp_path / 'checkpoints' / 'stage', dataclasses.replace(SETTINGS, steps=60))


def stopped_at(step, how):
    """Batches at whose step something happens."""

    def feed(start):
        for number, batch in enumerate(batches(start), start):
            if number == step:
                how()
            yield batch

    return feed


def interrupt():
    raise KeyboardInterrupt


def test_a_run_killed_and_resumed_ends_in_the_same_numbers_and_lines(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, feed=stopped_at(10, interrupt))
    assert checkpoint.latest_step(tmp_path / 'checkpoints' / 'stage') == 8
    resumed = run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, whole[1], resumed)
    assert lines(whole[0]) == lines(tmp_path)
    assert [record['step'] for record in lines(tmp_path)] == [4, 8, 12]


@pytest.mark.parametrize('number,status', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_it_comes_in_and_names_how_to_go_on(
    whole, tmp_path, number, status
):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match='after step 6.*same command') as stopped:
        run(tmp_path, feed=stopped_at(5, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.status == status and signal.getsignal(number) is before
    assert checkpoint.latest_step(tmp_path / 'checkpoints' / 'stage') == 6
    jax.tree.map(np.testing.assert_array_equal, whole[1], run(tmp_path))


def test_outside_of_steps_a_signal_ends_the_command_at_once():
    with StopRequest(), pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.status == 75
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_torn_checkpoint_is_set_aside_for_the_one_before_it(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, feed=stopped_at(10, interrupt))
    folder, told = tmp_path / 'checkpoints' / 'stage', []
    for path in (folder / '8').rglob('d/*'):
        path.write_bytes(path.read_bytes()[:7])
    again = run(tmp_path, watch=Watch(tell=told.append))
    jax.tree.map(np.testing.assert_array_equal, whole[1], again)
    assert (folder / 'damaged-8').is_dir() and checkpoint.all_steps(folder) == [8, 12]
    assert 'damaged-8' in told[0] and 'from step 4' in told[0]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    folder = tmp_path / 'checkpoints' / 'stage'
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, feed=stopped_at(6, interrupt))
    left = folder / '8.orbax-checkpoint-tmp' / 'default'
    left.mkdir(parents=True)
    (left / 'part').write_bytes(b'part')
    assert checkpoint.latest_step(folder) == 4
    run(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ['12', '8']


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    """Validation scans whose answer the run passes through: the loss is least on the way."""
    method = Line()
    watch = Watch(validation=lambda: iter([{'x': np.full((1, 4), 0.3, np.float32)}]))
    run(tmp_path, method, watch=watch, steps=40, validate_every=4)
    folder = tmp_path / 'checkpoints' / 'stage'
    measured = {r['step']: r['validation_loss'] for r in lines(tmp_path) if 'validation_loss' in r}
    best = min(measured, key=measured.get)
    assert 4 <= best < 36
    assert checkpoint.all_steps(folder) == [best, 36, 40] and checkpoint.best_step(folder) == best
    assert checkpoint.latest_step(folder) == 40
    assert measured[best] < 0.7 * measured[40]


def test_pooled_examples_come_again_after_a_stop(tmp_path):
    changes = {'reuse': 2, 'pool': 3}
    whole = run(tmp_path / 'whole', **changes)
    with pytest.raises(Stopped):
        run(
            tmp_path / 'cut',
            **changes,
            feed=stopped_at(4, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
    assert checkpoint.latest_step(tmp_path / 'cut' / 'checkpoints' / 'stage') == 10
    jax.tree.map(np.testing.assert_array_equal, whole, run(tmp_path / 'cut', **changes))


def test_a_pool_of_one_batch_used_once_is_the_plain_step(whole, tmp_path):
    """Through the other code: two places, but the second is empty for the only round."""
    params = run(tmp_path, steps=1, log_every=1, checkpoint_every=1, pool=2)
    plain = run(tmp_path / 'plain', steps=1, log_every=1, checkpoint_every=1)
    np.testing.assert_allclose(params['net']['w'], plain['net']['w'], rtol=1e-6)


def test_a_pair_is_drawn_from_the_pool_apart_from_what_else_is_drawn():
    """Each place has all the times that methods draw with a key split off their own."""

    class Shows(Line):
        def examples(self, params, batch, key, share):
            return {'x': batch['x']}

        def example_loss(self, params, examples, key, share):
            loss, _ = super().example_loss(params, {'x': examples['x'][:, None]}, key, share)
            time = share.uniform(jax.random.split(key, 3)[1], examples['x'].shape)
            return loss, {'batch': examples['x'], 'time': time}

    settings = dataclasses.replace(SETTINGS, steps=64, reuse=4, pool=8)
    method, optimizer = Shows(), make_optimizer(settings.optimizer, 64, ('net',))
    layout, key = parallel.layout_of(4), jax.random.key(0)
    rounds = Rounds(method, optimizer, settings, layout, key)
    state = parallel.replicate(create_state(method.init(key), ('net',), optimizer), layout)
    seen = []
    for number in range(64):
        state, made = rounds(state, {'x': np.full((1, 4), number, np.float32)}, 4 * number)
        seen += [(number - m['batch'].ravel(), m['time'].ravel()) for m in made]
    age, time = np.concatenate([np.stack(each) for each in seen[32:]], axis=1)
    assert set(age.tolist()) == set(range(8))  # those of the last eight rounds
    assert all(abs(np.mean(time[age == a]) - 0.5) < 0.15 for a in range(8))
    for place in range(8):  # a batch stays in one place
        number = np.concatenate([np.full(4, i // 4) for i in range(32, 256)])
        assert np.ptp(time[(number - age) % 8 == place]) > 0.9


def test_reuse_and_its_limits_are_named():
    with pytest.raises(UserError, match='training.log_every: 4 must be a multiple'):
        dataclasses.replace(SETTINGS, reuse=3)

    class Blind(Line):
        examples = None

    with pytest.raises(UserError, match='stage.training.reuse'):
        Rounds(
            Blind(),
            None,
            dataclasses.replace(SETTINGS, reuse=2),
            parallel.layout_of(4),
            jax.random.key(0),
        )


def test_accumulated_gradients_are_those_of_the_whole_batch(whole, tmp_path):
    parts = run(tmp_path, accumulate=2)
    np.testing.assert_allclose(parts['net']['w'], whole[1]['net']['w'], rtol=1e-5)
    for a, b in zip(lines(tmp_path), lines(whole[0]), strict=True):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-4)


def test_a_trace_and_a_picture_are_written(tmp_path):
    shown = Watch(profile=3, picture=lambda params: np.full((8, 9, 3), 127, np.uint8))
    run(tmp_path, watch=shown, picture_every=6)
    assert list((tmp_path / 'profile').rglob('*.trace.json.gz'))
    events = b''.join(p.read_bytes() for p in (tmp_path / 'tensorboard' / 'stage').iterdir())
    assert events.count(b'stage/validation') == 2 and b'PNG' in events
    assert b'stage/size' in events  # a histogram


def test_two_runs_do_not_share_a_folder(tmp_path):
    from fluidjax.base import files

    with files.locked(tmp_path / '.lock', 'another command trains here'):
        with pytest.raises(UserError, match=r'another command trains here \(process \d+ on'):
            with files.locked(tmp_path / '.lock', 'another command trains here'):
                raise AssertionError('two hold one lock')
    with files.locked(tmp_path / '.lock', 'another'):
        pass


def test_a_full_disk_is_one_line_and_leaves_the_checkpoints_there_are(tmp_path):
    import resource

    state = {'w': np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32)}
    checkpoint.save(tmp_path / 'c', 1, state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # stands for a full disk
    try:
        with pytest.raises(UserError, match='cannot write the checkpoint.*start again to resume'):
            checkpoint.save(tmp_path / 'c', 2, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.latest_step(tmp_path / 'c') == 1
    np.testing.assert_array_equal(checkpoint.restore(tmp_path / 'c', state)['w'], state['w'])


def test_a_finished_stage_is_not_trained_again(tmp_path):
    first = run(tmp_path)

    def no_batches(start):
        raise AssertionError('asked for data')

    again = run(tmp_path, feed=no_batches)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def spiked_at(step):
    """Batches that are far off at one step."""

    def feed(start):
        for number, batch in enumerate(batches(start), start):
            yield {'x': batch['x'] + (5.0 if number == step else 0.0)}

    return feed


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(tmp_path):
    class Breaks(Line):
        def loss(self, params, batch, key, share):
            value, metrics = super().loss(params, batch, key, share)
            return jnp.where(batch['x'].max() > 2.0, jnp.nan, value), metrics

    with pytest.raises(UserError, match=r'nan at step 7.*stage/4'):
        run(tmp_path, Breaks(), spiked_at(6))
    assert checkpoint.latest_step(tmp_path / 'checkpoints' / 'stage') == 4


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    """At step 4, a checkpoint step: its loss is finite, the parameters after it are not."""

    @jax.custom_vjp
    def spike_gradient(w, spike):
        return 0.0 * w.sum()

    spike_gradient.defvjp(
        lambda w, spike: (0.0 * w.sum(), spike),
        lambda spike, g: (jnp.full((2,), g * spike), jnp.zeros(())),
    )

    class Breaks(Line):
        def loss(self, params, batch, key, share):
            value, metrics = super().loss(params, batch, key, share)
            spike = jnp.where(batch['x'].max() > 2.0, jnp.inf, 0.0)
            return value + spike_gradient(params['net']['w'], spike), metrics

    with pytest.raises(UserError, match=r'grad_norm is (inf|nan) at step 4'):
        run(tmp_path, Breaks(), spiked_at(3))
    assert checkpoint.latest_step(tmp_path / 'checkpoints' / 'stage') is None


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(tmp_path):
    checkpoint.save(tmp_path / 'c', 1, {'w': np.zeros(3, np.float32)})
    restored = checkpoint.restore(tmp_path / 'c', {'w': jax.ShapeDtypeStruct((3,), jnp.float32)})
    np.testing.assert_array_equal(restored['w'], 0.0)
    with pytest.raises(UserError, match='does not fit'):
        checkpoint.restore(tmp_path / 'c', {'v': jax.ShapeDtypeStruct((3,), jnp.float32)})
    with pytest.raises(UserError, match='no checkpoint'):
        checkpoint.restore(tmp_path / 'nothing', {})


def test_replicated_state_comes_back_unchanged():
    optimizer = optax.sgd(0.1)
    state = create_state({'net': {'w': jnp.arange(3.0)}}, ('net',), optimizer)
    replicated = parallel.replicate(state, parallel.layout_of(1))
    assert replicated.params['net']['w'].shape == (1, 3)
    back = parallel.unreplicate(replicated)
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(state))


def test_log_keeps_whole_lines_up_to_the_step_resumed_from(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(
        '{"stage": "a", "step": 4, "loss": 1}\n{"stage": "a", "step": 8, "loss": 1}\n'
        '{"stage": "b", "step": 9, "loss": 1}\n{"stage": "a", "st'
    )
    with RunLog(tmp_path, 'a', start_step=4, total_steps=8) as log:
        log.write(8, {'loss': 2.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r['stage'], r['step'], r['loss']) for r in records] == [
        ('a', 4, 1),
        ('b', 9, 1),
        ('a', 8, 2.0),
    ]
    assert list((tmp_path / 'tensorboard' / 'a').glob('events*'))
