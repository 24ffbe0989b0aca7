"""One device, eight, or two processes of four: the same command, the same losses."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

CONFIG = '--config=configs/ldm.py:smoke'
# One stage, with pairs, and a network of one level: it compiles in seconds.
QUICK = ('--config=configs/regression.py:smoke', '--config.restoration.network.channels=(8,)')


@pytest.fixture(scope='module')
def start(checkout, store):
    """Start a training on simulated devices, to be one of several processes."""

    def run(devices, workdir, *flags):
        env = os.environ | simulated(devices) | {'FLUIDJAX_STORE': str(store)}
        return subprocess.Popen(
            [sys.executable, '-m', 'fluidjax.main', CONFIG, f'--workdir={workdir}', *flags],
            cwd=checkout,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.fixture(scope='module')
def train(command, store):
    """Train in one process."""
    return functools.partial(command, 'main', FLUIDJAX_STORE=str(store))


def simulated(devices):
    flags = os.environ.get('XLA_FLAGS', '')
    return {'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={devices}'}


def finished(process):
    """The standard error of a command that ends well."""
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return err


def losses(workdir):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return {(record['stage'], record['step']): record['loss'] for record in records}


def same(found, expected):
    assert list(found) == list(expected)
    for at, loss in expected.items():
        assert found[at] == pytest.approx(loss, rel=1e-4), at


@pytest.fixture(scope='module')
def one(trained):
    """The losses of one device."""
    return losses(trained[0])


def train_on_eight(train, workdir, *flags):
    done = train(*flags, f'--workdir={workdir}', **simulated(8))
    assert done.returncode == 0, done.stderr
    assert '8 cpu devices, 1 of 8 samples on each' in done.stderr
    return losses(workdir)


@pytest.fixture(scope='module')
def eight(train, tmp_path_factory):
    """A run on eight devices, and its losses."""
    workdir = tmp_path_factory.mktemp('devices') / 'eight'
    return workdir, train_on_eight(train, workdir, *QUICK)


def train_on_one(train, workdir):
    done = train(*QUICK, f'--workdir={workdir}', JAX_NUM_CPU_DEVICES='1')
    assert done.returncode == 0 and ' 1 cpu device' in done.stderr, done.stderr
    return losses(workdir)


def test_eight_devices_have_the_losses_of_one(train, eight, tmp_path):
    same(train_on_one(train, tmp_path / 'alone'), eight[1])


@pytest.mark.slow
def test_one_device_goes_on_with_the_run_of_eight(train, eight, tmp_path):
    shutil.copytree(eight[0], tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / 'restoration' / '6')
    same(train_on_one(train, tmp_path / 'run'), eight[1])


@pytest.mark.slow
def test_both_stages_on_eight_devices_have_the_losses_of_one(train, one, tmp_path):
    same(train_on_eight(train, tmp_path, CONFIG), one)


@pytest.mark.slow
def test_two_processes_of_four_devices_have_the_losses_of_one(start, one, tmp_path):
    """On loopback; the second process has no use for its workdir and leaves it alone."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    flags = (f'--coordinator=127.0.0.1:{port}', '--processes=2')
    second = start(4, tmp_path / 'second', *flags, '--process=1')
    first = start(4, tmp_path / 'first', *flags, '--process=0')
    assert '8 cpu devices, 1 of 8 samples on each, 2 processes' in finished(first)
    finished(second)
    same(losses(tmp_path / 'first'), one)
    assert not (tmp_path / 'second').exists()


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_and_the_run_goes_on(start, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    # In the second stage, whose dispatches are rounds of two steps.
    flags = (
        f'--coordinator=127.0.0.1:{port}',
        '--processes=2',
        '--config.diffusion.training.steps=4000',
        '--config.diffusion.training.reuse=2',
        '--config.diffusion.training.log_every=4',
        '--config.diffusion.training.checkpoint_every=1000',
    )
    pair = [start(2, tmp_path / str(i), *flags, f'--process={i}') for i in (0, 1)]
    for line in pair[0].stderr:
        if 'diffusion' in line and ', loss' in line:  # steps are done
            break
    pair[1].terminate()
    ends = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [75, 75], ends
    assert 'stopped after step' in ends[0] and 'saved' in ends[0]
    assert any((tmp_path / '0' / 'checkpoints' / 'diffusion').iterdir())


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--coordinator=127.0.0.1:1',), 'give all three'),
        (('--coordinator=127.0.0.1:1', '--processes=2', '--process=2'), 'must be below'),
        (('--workdir=/dev/null/run',), '/dev/null is a file; name a folder'),
        (('--wandb=brains',), 'pip install wandb'),
        (('--config.diffusion.training.reuse=5',), 'must be a multiple'),
    ],
)
def test_a_mistake_is_one_line(call, tmp_path, flags, message):
    done = call('train', CONFIG, f'--workdir={tmp_path / "run"}', *flags)
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_a_folder_that_is_trained_in_is_refused(call, tmp_path):
    from fluidjax.base import files

    with files.locked(tmp_path / '.lock', 'a test'):
        done = call('train', CONFIG, f'--workdir={tmp_path}')
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert 'another command trains here' in done.stderr
    assert f'process {os.getpid()} on' in done.stderr
    assert not (tmp_path / 'config.json').exists()
