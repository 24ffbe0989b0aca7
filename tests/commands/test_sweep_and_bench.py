"""The table of a sweep and the timing of a part, without training anything."""

from __future__ import annotations

import json

import jax.numpy as jnp
import pytest

from fluidjax import seeds, timing


def write_scores(workdir, seed, dice):
    folder = workdir / f'seed{seed}' / 'eval'
    folder.mkdir(parents=True)
    scores = {score: {'mean': dice} for score in seeds.SCORES} | {'psnr': {'mean': None}}
    (folder / 'metrics.json').write_text(json.dumps({'cohort': {'conddiff': scores}}))


def test_sweep_puts_seeds_into_one_table(tmp_path):
    for seed, dice in enumerate((0.2, 0.4, 0.6)):
        write_scores(tmp_path, seed, dice)
    table = seeds.collect(tmp_path, [0, 1, 2])
    assert table['cohort/conddiff']['ap'] == [0.2, 0.4, 0.6]
    text = seeds.as_markdown(table)
    row = text.splitlines()[2]
    assert row.startswith('| cohort/conddiff | 0.400 ± 0.200 |') and row.endswith('| - |')
    assert len({line.count('|') for line in text.splitlines()}) == 1


def test_a_run_is_evaluated_again_when_it_was_trained_further(tmp_path):
    import os

    write_scores(tmp_path, 0, 0.5)
    step = tmp_path / 'seed0' / 'checkpoints' / 'diffusion' / '6'
    step.mkdir(parents=True)
    os.utime(step, (1, 1))
    assert seeds.is_evaluated(tmp_path / 'seed0')
    os.utime(step, (4e9, 4e9))
    assert not seeds.is_evaluated(tmp_path / 'seed0')


def test_bench_times_a_part():
    x = jnp.ones((300, 300))
    quick = timing.time_part(lambda x: x + 1.0, x, repeats=3)
    slow = timing.time_part(lambda x: jnp.linalg.matrix_power(x, 64), x, repeats=3)
    assert 0 < quick['milliseconds'] < slow['milliseconds']
    assert slow['compile_seconds'] > 0


@pytest.mark.slow
def test_bench_times_every_part_of_a_configuration():
    from configs import ldm

    table = timing.time_all(ldm.get_config('smoke'), repeats=1)
    assert len(table) == 5 and all(row['milliseconds'] > 0 for row in table.values())
