"""A training that is killed at any moment ends in the same numbers as one that is not.

python -m pytest -m slow -n0 tests/commands/test_kill.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import ldm
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import build_stages
from fluidjax.training import checkpoint
from fluidjax.training.loop import state_template

KILLS = int(os.environ.get('FLUIDJAX_KILLS', 30))
STEPS = 24
FLAGS = [
    f'--config.{stage}.training.{field}={value}'
    for stage in ('autoencoder', 'diffusion')
    for field, value in (('steps', STEPS), ('checkpoint_every', 1), ('log_every', 2))
]


def final_states(workdir):
    """The last checkpoint of each stage."""
    config = ldm.get_config('smoke')
    for stage in ('autoencoder', 'diffusion'):
        config[stage].training.steps = STEPS
    states = []
    for stage in build_stages(config, model_grid(config)):
        method = stage.method
        template = state_template(method.init, method.trainable, stage.training)
        states.append(checkpoint.restore(workdir / 'checkpoints' / method.stage, template, STEPS))
    return states


def lines(workdir):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return {
        (r['stage'], r['step']): {k: v for k, v in r.items() if not k.startswith('seconds')}
        for r in records
    }


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(checkout, tmp_path):
    def start(workdir):
        return subprocess.Popen(
            [
                sys.executable,
                '-m',
                'fluidjax.main',
                '--config=configs/ldm.py:smoke',
                f'--workdir={workdir}',
                *FLAGS,
            ],
            cwd=checkout,
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / 'stderr').open('w'),
            env=os.environ | {'FLUIDJAX_STORE': str(tmp_path / 'store')},
        )

    def training(workdir):
        return any((workdir / 'checkpoints').glob('*/*'))

    whole = tmp_path / 'whole'
    assert start(whole).wait() == 0, (tmp_path / 'stderr').read_text()
    rehearsal = tmp_path / 'rehearsal'  # from the cache of compiled code, as the killed ones
    began = time.monotonic()
    assert start(rehearsal).wait() == 0
    seconds = time.monotonic() - began
    expected = final_states(whole)
    rng, kills, writing, runs = random.Random(0), 0, 0, [rehearsal]
    while kills < KILLS:
        workdir = runs[-1]
        if checkpoint.latest_step(workdir / 'checkpoints' / 'diffusion') == STEPS:
            runs.append(workdir := tmp_path / f'run{len(runs)}')
        process = start(workdir)
        # Every other time while checkpoints are written, one a step.
        if kills % 2 and training(workdir):
            time.sleep(rng.uniform(0.5, 1.0) * seconds)
        else:
            time.sleep(rng.uniform(0.0, 0.8) * seconds)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            writing += any((workdir / 'checkpoints').glob('*/*orbax-checkpoint-tmp*'))
        else:
            assert process.returncode == 0, (tmp_path / 'stderr').read_text()
    assert start(runs[-1]).wait() == 0, (tmp_path / 'stderr').read_text()
    for workdir in runs:
        jax.tree.map(np.testing.assert_array_equal, expected, final_states(workdir))
        found = lines(workdir)
        assert found.keys() == lines(whole).keys()
        assert not list((workdir / 'checkpoints').glob('*/*orbax-checkpoint-tmp*'))
    print(f'{kills} kills in {len(runs)} runs, {writing} of them while a checkpoint was written')
