"""`fluidjax sweep` as a user calls it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture
def call(command):
    return functools.partial(command, 'sweep')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--tpu=a', '--workdir=gs://x/y'], 'name the zone'),
        (['--tpu=a', '--zone=z', '--workdir=runs/x'], 'gs://BUCKET/FOLDER'),
        (['--workdir=runs/x', '--dry-run'], 'give one of them'),
        (['--workdir=gs://x/y', '--workers=2'], 'not in a bucket'),
    ],
)
def test_a_mistake_of_a_sweep_is_one_line(call, words, message):
    done = call('--config=configs/sweeps/learning_rate.py:smoke', *words)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_a_dry_run_shows_the_commands_and_a_run_runs_them(call, tmp_path):
    words = (
        '--config=configs/sweeps/learning_rate.py:smoke',
        '--workers',
        '2',
        '--slurm',
        '--sbatch=-p gpu --time=8:00:00',
        f'--workdir={tmp_path / "sweep"}',
    )
    shown = call(*words, '--dry-run')
    assert shown.returncode == 0 and not (tmp_path / 'sweep').exists()
    for part in (
        '#SBATCH --array=0-1',
        '#SBATCH -p gpu --time=8:00:00',
        '--nowait',
        '--signal=TERM@120',
        'scontrol requeue',
    ):
        assert part in shown.stdout
    assert '--workers' not in shown.stdout and '--slurm ' not in shown.stdout

    fake = tmp_path / 'bin' / 'sbatch'
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/submitted\n')
    fake.chmod(0o755)
    done = call(*words, PATH=f'{fake.parent}:{os.environ["PATH"]}')
    assert done.returncode == 0, done.stderr
    script = (tmp_path / 'submitted').read_text()
    assert script == (tmp_path / 'sweep' / 'sweep.sbatch').read_text()
    assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0


@pytest.mark.slow
def test_four_trials_by_two_workers_one_of_them_killed(checkout, tmp_path):
    config = tmp_path / 'four.py'
    config.write_text(
        'from fluidjax.base.trials import grid, sweep\n\n\ndef get_config():\n'
        "    return sweep('configs/ldm.py:smoke', grid({'seed': (0, 1, 2, 3)}))\n"
    )
    workdir = tmp_path / 'sweep'
    environment = {'FLUIDJAX_STORE': str(tmp_path / 'store')}
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, '-m', 'fluidjax', 'sweep'),
                f'--config={config}',
                f'--workdir={workdir}',
            ],
            cwd=checkout,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        for _ in range(2)
    ]
    deadline = time.monotonic() + 400
    while not list(workdir.glob('trial-*/trial.json')):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first = {worker.pid: worker for worker in workers}
    by = {
        path.parent.name: json.loads(path.read_text())['worker']
        for path in workdir.glob('trial-*/trial.json')
    }
    victim = next(
        w for pid, w in first.items() if not any(f'process {pid} ' in b for b in by.values())
    )
    victim.send_signal(signal.SIGKILL)
    other = next(w for w in workers if w is not victim)
    _, err = other.communicate(timeout=600)
    victim.communicate()
    assert other.returncode == 0, err
    results = {
        path.parent.name: json.loads(path.read_text())
        for path in workdir.glob('trial-*/trial.json')
    }
    assert sorted(results) == [f'trial-{i:03d}' for i in range(4)]
    assert all('score' in result for result in results.values())
    # The victim finished none, so the other did all four, each of them once.
    assert [err.count(f'trial-{i:03d}: score') for i in range(4)] == [1, 1, 1, 1]
    assert (workdir / 'sweep.md').is_file() and (workdir / 'sweep.png').is_file()
