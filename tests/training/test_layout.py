"""How batches lie on devices and processes, and draws that do not depend on it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.base.share import Share, sample_keys
from fluidjax.runs import bucket
from fluidjax.runs.feed import Feed
from fluidjax.training import cluster, parallel

KEY = jax.random.key(3)


def test_keys_of_a_share_are_those_of_the_whole_batch_split():
    whole = jax.random.key_data(jax.random.split(KEY, 6))
    part = jax.random.key_data(Share(2, 6).keys(KEY, 3))
    np.testing.assert_array_equal(part, whole[2:5])


@pytest.mark.parametrize('draw', ['normal', 'uniform'])
def test_draws_of_a_share_are_part_of_the_whole_batchs(draw):
    whole = getattr(jax.random, draw)(KEY, (6, 2, 3))
    np.testing.assert_array_equal(getattr(Share(4, 6), draw)(KEY, (2, 2, 3)), whole[4:])
    np.testing.assert_array_equal(getattr(Share(), draw)(KEY, (6, 2, 3)), whole)


def test_keys_one_a_sample_are_taken_as_they_are():
    keys = jax.random.split(KEY, 4)
    assert sample_keys(keys, 4) is keys
    data = jax.random.key_data
    np.testing.assert_array_equal(data(sample_keys(KEY, 4)), data(keys))
    raw = jax.random.PRNGKey(0)  # two numbers, not two keys
    assert sample_keys(raw, 2).shape == (2, 2)


def test_a_layout_covers_the_batch_in_order():
    layouts = [parallel.Layout(24, ('a', 'b', 'c'), process, 2) for process in (0, 1)]
    assert [layout.per_device for layout in layouts] == [4, 4]
    assert np.concatenate([layout.first for layout in layouts]).tolist() == [0, 4, 8, 12, 16, 20]


def test_one_process_uses_the_devices_that_share_a_batch(monkeypatch):
    monkeypatch.setattr(jax, 'local_devices', lambda: list(range(8)))
    assert len(parallel.layout_of(8).devices) == 8
    assert len(parallel.layout_of(4).devices) == 4
    assert len(parallel.layout_of(16, parts=4).devices) == 4
    assert len(parallel.layout_of(7).devices) == 7
    with pytest.raises(UserError, match='batch_size: 3.*8 device.*in 2 parts'):
        parallel.layout_of(3, parts=2)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match='batch_size: 8.*16 device'):
        parallel.layout_of(8)


def test_processes_draw_their_part_of_the_lesion_masks():
    feed = Feed.__new__(Feed)
    feed._bank, feed._seed = np.arange(50), 4
    layout = parallel.Layout(8, ('a',))
    batch = {'image': np.zeros((1, 8))}
    feed.layout = layout
    whole = feed._draw(3, batch)
    parts = []
    for process in (0, 1):
        feed.layout = dataclasses.replace(layout, process=process, processes=2)
        parts.append(feed._draw(3, {'image': np.zeros((1, 4))}))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert len(set(whole.ravel().tolist())) > 3


def test_gradients_may_travel_in_half_the_bits():
    from fluidjax.training.steps import _device_mean

    grads = {'w': jnp.linspace(-1.0, 1.0, 7)}
    mean = jax.pmap(lambda g: _device_mean(g, 'd', 'bfloat16'), 'd')(
        jax.tree.map(lambda x: x[None], grads)
    )
    np.testing.assert_array_equal(mean['w'][0], grads['w'])  # one device sends nothing
    assert mean['w'].dtype == jnp.float32


@pytest.mark.parametrize(
    ('environment', 'launcher'),
    [
        ({}, None),
        ({'SLURM_NTASKS': '4'}, None),
        ({'SLURM_STEP_NUM_TASKS': '1'}, None),
        ({'SLURM_STEP_NUM_TASKS': '4'}, 'Slurm'),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
        ({'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '0'}, 'Kubernetes'),
    ],
)
def test_launchers_are_known_by_what_they_set(monkeypatch, environment, launcher):
    for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'KUBERNETES_SERVICE_HOST'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cluster.launched_by() == launcher


FAKE_GCLOUD = """#!/bin/sh
# gcloud storage ls|rsync on a folder in place of buckets
echo "$@" >> "$BUCKETS/calls"
shift
case $1 in
  ls) [ -d "$BUCKETS/${2#gs://}" ] || { echo 'URLs matched no objects.' >&2; exit 1; } ;;
  rsync)
    for word; do from=$to; to=$word; done
    case $from in gs://*) from=$BUCKETS/${from#gs://} ;; esac
    case $to in gs://*) to=$BUCKETS/${to#gs://} ;; esac
    [ ! -e "$BUCKETS/closed" ] || { echo 'ERROR: 403 forbidden' >&2; exit 1; }
    case "$*" in *--delete-unmatched*) rm -rf "$to" ;; esac
    mkdir -p "$to" && cp -r "$from/." "$to/" ;;
esac
"""


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    """A folder that stands for all buckets, behind a program called gcloud."""
    (tmp_path / 'bin').mkdir()
    program = tmp_path / 'bin' / 'gcloud'
    program.write_text(FAKE_GCLOUD)
    program.chmod(0o755)
    (tmp_path / 'buckets').mkdir()
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:/usr/bin:/bin')
    monkeypatch.setenv('BUCKETS', str(tmp_path / 'buckets'))
    monkeypatch.setenv('FLUIDJAX_BUCKETS', str(tmp_path / 'here'))
    return tmp_path / 'buckets'


def test_a_bucket_is_fetched_and_what_is_new_sent(buckets):
    with bucket.mirrored_folder('gs://brains/run') as (folder, saved):
        stage = folder / 'checkpoints' / 'diffusion'
        (stage / '2').mkdir(parents=True)
        (stage / '2' / 'state').write_text('two')
        saved()
    there = buckets / 'brains' / 'run'
    assert (there / 'checkpoints' / 'diffusion' / '2' / 'state').read_text() == 'two'

    other = buckets.parent / 'elsewhere'  # another machine
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FLUIDJAX_BUCKETS', str(other))
        with bucket.mirrored_folder('gs://brains/run') as (folder, saved):
            stage = folder / 'checkpoints' / 'diffusion'
            assert (stage / '2' / 'state').read_text() == 'two'
            (stage / '4').mkdir()
            (stage / '2' / 'state').unlink()
            (stage / '2').rmdir()
    assert [path.name for path in (there / 'checkpoints' / 'diffusion').iterdir()] == ['4']


def test_what_is_new_is_sent_when_training_fails(buckets):
    with pytest.raises(KeyError):
        with bucket.mirrored_folder('gs://brains/run') as (folder, _):
            (folder / 'metrics.jsonl').write_text('{}')
            raise KeyError
    assert (buckets / 'brains' / 'run' / 'metrics.jsonl').read_text() == '{}'


def test_what_cannot_be_sent_is_told_and_fails_the_command(buckets, capfd):
    with pytest.raises(UserError, match='not all was copied'):
        with bucket.mirrored_folder('gs://brains/run') as (folder, saved):
            (buckets / 'closed').touch()
            saved()
    assert capfd.readouterr().err.count('403 forbidden') == 2


def test_a_buckets_folder_is_one_commands_at_a_time(buckets):
    with bucket.mirrored_folder('gs://brains/run') as (folder, _):
        (folder / 'metrics.jsonl').write_text('{}')
        with pytest.raises(UserError, match='another command works on gs://brains/run;'):
            with bucket.mirrored_folder('gs://brains/run/'):
                pass
    calls = (buckets / 'calls').read_text().splitlines()
    assert len(calls) == 2 and calls[-1].endswith(' gs://brains/run')  # it fetched nothing


@pytest.mark.parametrize(
    ('name', 'left_out'),
    [
        ('.lock', True),
        ('trial-000/.lock', True),
        ('.claims/trial-000.lock', True),
        ('checkpoints/bridge/8.orbax-checkpoint-tmp/state', True),
        ('metrics.jsonl', False),
        ('checkpoints/bridge/8/state', False),
        ('locks.md', False),
    ],
)
def test_locks_and_what_is_being_written_stay_here(name, left_out):
    import re

    assert bool(re.match(bucket.LEFT_OUT, name)) == left_out  # as gcloud does


def test_without_gcloud_a_bucket_is_refused(monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(UserError, match='gcloud is not installed'):
        with bucket.mirrored_folder('gs://brains/run'):
            pass


@pytest.mark.parametrize('name', ['gs://', 'gs://bucket', 'gs://b/../../etc', "gs://b/it's"])
def test_what_is_no_folder_of_a_bucket_is_refused(name):
    with pytest.raises(UserError, match='gs://BUCKET/FOLDER'):
        bucket.local_folder(name)


def test_weights_and_biases_is_told_the_same(monkeypatch, tmp_path):
    import sys
    import types

    from ml_collections import ConfigDict

    from fluidjax.training.logs import RunLog, mirrored

    told, begun = [], []

    class Run:
        log = staticmethod(told.append)

        def define_metric(self, name, step_metric):
            assert step_metric == name.replace('*', 'step')

        def finish(self):
            told.append('finished')

    def init(**given):
        begun.append(given)
        return Run()

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    for _ in range(2):
        with mirrored('brains', tmp_path, ConfigDict({'seed': 3}), ['bridge']) as mirror:
            with RunLog(tmp_path, 'bridge', 0, 4, mirror) as log:
                log.write(2, {'loss': 0.5})
    assert told == [{'bridge/step': 2, 'bridge/loss': 0.5}, 'finished'] * 2
    assert begun[0]['id'] == begun[1]['id'] and begun[0]['resume'] == 'allow'
    assert begun[0]['project'] == 'brains' and begun[0]['config'] == {'seed': 3}
    with mirrored('', tmp_path, ConfigDict(), []) as mirror:
        assert mirror is None
