"""The loop on a problem with a known answer: learning, stopping, resuming, logging."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fluidjax.errors import UserError
from fluidjax.training import checkpoint, parallel
from fluidjax.training.logs import RunLog
from fluidjax.training.loop import StageSettings, is_done, train_stage
from fluidjax.training.optimizer import OptimizerSettings, learning_rate_schedule, make_optimizer
from fluidjax.training.state import create_state
from fluidjax.training.steps import ema_rate

SETTINGS = StageSettings(
    steps=12, batch_size=4, optimizer=OptimizerSettings(learning_rate=0.1), ema_decay=0.5,
    log_every=4, checkpoint_every=4)
TARGET = 3.0


def init(key):
    return {'net': {'w': jax.random.normal(key, (2,))}, 'given': {'scale': jnp.ones(())}}


def loss(params, batch, key):
    noise = 0.01 * jax.random.normal(key, (2,))
    error = params['given']['scale'] * params['net']['w'] + noise - batch['x'].mean() * TARGET
    return jnp.mean(error**2), {'error': jnp.abs(error).mean()}


def batches(start):
    for step in range(start, 10_000):
        rng = np.random.default_rng(step)
        yield {'x': rng.uniform(0.9, 1.1, (jax.local_device_count(), 4)).astype(np.float32)}


def run(workdir, steps=12, loss_fn=loss, **changes):
    settings = dataclasses.replace(SETTINGS, steps=steps, **changes)
    return train_stage('stage', loss_fn, ('net',), init, lambda params: params, batches, settings,
                       workdir, seed=1)


def test_learns_and_leaves_frozen_groups_alone(tmp_path):
    params = run(tmp_path, steps=60)
    np.testing.assert_allclose(params['net']['w'], TARGET, atol=0.3)
    assert params['given']['scale'] == 1.0
    assert is_done(tmp_path / 'checkpoints' / 'stage', dataclasses.replace(SETTINGS, steps=60))


def test_a_run_killed_and_resumed_ends_in_the_same_numbers_and_lines(tmp_path):
    whole = run(tmp_path / 'whole')

    def dies_at_10(start):
        for step, batch in enumerate(batches(start), start):
            if step == 10:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        train_stage('stage', loss, ('net',), init, lambda p: p, dies_at_10, SETTINGS,
                    tmp_path / 'killed', seed=1)
    assert checkpoint.latest_step(tmp_path / 'killed' / 'checkpoints' / 'stage') == 8
    resumed = run(tmp_path / 'killed')
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)

    def lines(folder):
        records = [json.loads(x) for x in (folder / 'metrics.jsonl').read_text().splitlines()]
        return [{k: v for k, v in r.items() if k != 'seconds_per_step'} for r in records]

    assert lines(tmp_path / 'whole') == lines(tmp_path / 'killed')
    assert [record['step'] for record in lines(tmp_path / 'whole')] == [4, 8, 12]


def test_a_finished_stage_is_not_trained_again(tmp_path):
    first = run(tmp_path)

    def no_batches(start):
        raise AssertionError('asked for data')

    again = train_stage('stage', loss, ('net',), init, lambda p: p, no_batches, SETTINGS, tmp_path,
                        seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(tmp_path):
    def breaks(params, batch, key):
        value, metrics = loss(params, batch, key)
        return jnp.where(batch['x'].max() > 2.0, jnp.nan, value), metrics

    def spiked(start):
        for step, batch in enumerate(batches(start), start):
            yield {'x': batch['x'] + (5.0 if step == 6 else 0.0)}

    with pytest.raises(UserError, match=r'nan at step 7.*stage/4'):
        train_stage('stage', breaks, ('net',), init, lambda p: p, spiked, SETTINGS, tmp_path,
                    seed=1)
    assert checkpoint.latest_step(tmp_path / 'checkpoints' / 'stage') == 4


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    """At step 4, a checkpoint step: its loss is finite, the parameters after it are not."""
    def breaks(params, batch, key):
        value, metrics = loss(params, batch, key)
        spike = jnp.where(batch['x'].max() > 2.0, jnp.inf, 0.0)
        return value + spike_gradient(params['net']['w'], spike), metrics

    @jax.custom_vjp
    def spike_gradient(w, spike):
        return 0.0 * w.sum()

    spike_gradient.defvjp(lambda w, spike: (0.0 * w.sum(), spike),
                          lambda spike, g: (jnp.full((2,), g * spike), jnp.zeros(())))

    def spiked(start):
        for step, batch in enumerate(batches(start), start):
            yield {'x': batch['x'] + (5.0 if step == 3 else 0.0)}

    with pytest.raises(UserError, match=r'grad_norm is (inf|nan) at step 4'):
        train_stage('stage', breaks, ('net',), init, lambda p: p, spiked, SETTINGS, tmp_path,
                    seed=1)
    assert checkpoint.latest_step(tmp_path / 'checkpoints' / 'stage') is None


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(tmp_path):
    checkpoint.save(tmp_path / 'c', 1, {'w': np.zeros(3, np.float32)})
    restored = checkpoint.restore(tmp_path / 'c', {'w': jax.ShapeDtypeStruct((3,), jnp.float32)})
    np.testing.assert_array_equal(restored['w'], 0.0)
    with pytest.raises(UserError, match='does not fit'):
        checkpoint.restore(tmp_path / 'c', {'v': jax.ShapeDtypeStruct((3,), jnp.float32)})
    with pytest.raises(UserError, match='no checkpoint'):
        checkpoint.restore(tmp_path / 'nothing', {})


def test_clipping_bounds_each_group_by_its_own_norm():
    settings = OptimizerSettings(learning_rate=1.0, clip_norm=0.5)
    optimizer = make_optimizer(settings, 10, ('a', 'b'))
    params = {'a': jnp.zeros(4), 'b': jnp.zeros(4)}
    grads = {'a': jnp.full(4, 100.0), 'b': jnp.full(4, 1e-3)}
    state = optimizer.init(params)
    _, state = optimizer.update(grads, state, params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (4,)]
    largest = max(float(jnp.linalg.norm(m)) for m in moments)
    # Adam's first moment is a tenth of the clipped gradient: 0.05, not 20.
    assert largest == pytest.approx(0.1 * 0.5, rel=1e-4)
    # The other group is untouched by its neighbour's norm.
    assert any(np.allclose(m, 0.1 * 1e-3, rtol=1e-4) for m in moments)


@pytest.mark.parametrize('decay,last', [('constant', 1.0), ('cosine', 0.01)])
def test_learning_rate_rises_and_falls(decay, last):
    settings = OptimizerSettings(learning_rate=1.0, warmup_steps=5, decay=decay)
    rate = learning_rate_schedule(settings, 50)
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(1.0)
    assert float(rate(50)) == pytest.approx(last, abs=1e-3)


def test_unknown_decay_is_named():
    with pytest.raises(UserError, match='linear'):
        OptimizerSettings(decay='linear')


def test_ema_rate_rises_to_its_decay():
    rates = [float(ema_rate(0.9, jnp.asarray(step))) for step in (0, 10, 1000)]
    assert rates == pytest.approx([0.1, 11 / 20, 0.9])


def test_replicated_state_comes_back_unchanged():
    optimizer = optax.sgd(0.1)
    state = create_state({'net': {'w': jnp.arange(3.0)}}, ('net',), optimizer)
    replicated = parallel.replicate(state)
    assert replicated.params['net']['w'].shape == (jax.local_device_count(), 3)
    back = parallel.unreplicate(replicated)
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(state))


def test_log_keeps_whole_lines_up_to_the_step_resumed_from(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"stage": "a", "step": 4, "loss": 1}\n{"stage": "a", "step": 8, "loss": 1}\n'
                    '{"stage": "b", "step": 9, "loss": 1}\n{"stage": "a", "st')
    with RunLog(tmp_path, 'a', start_step=4, total_steps=8) as log:
        log.write(8, {'loss': 2.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r['stage'], r['step'], r['loss']) for r in records] == [
        ('a', 4, 1), ('b', 9, 1), ('a', 8, 2.0)]
    assert list((tmp_path / 'tensorboard' / 'a').glob('events*'))
