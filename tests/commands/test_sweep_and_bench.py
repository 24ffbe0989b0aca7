"""The table of a sweep and the timing of a part, without training anything."""

from __future__ import annotations

import json

import jax.numpy as jnp
import pytest

from fluidjax.bench import timer
from fluidjax.sweep import report, worker


def write_scores(workdir, seed, dice):
    folder = workdir / f'seed{seed}' / 'eval'
    folder.mkdir(parents=True)
    scores = {score: {'mean': dice} for score in report.OF_SEEDS} | {'psnr': {'mean': None}}
    (folder / 'metrics.json').write_text(json.dumps({'cohort': {'conddiff': scores}}))


def test_sweep_puts_seeds_into_one_table(tmp_path):
    for seed, dice in enumerate((0.2, 0.4, 0.6)):
        write_scores(tmp_path, seed, dice)
    results = {f'seed{i}': {'fields': {'seed': i}, 'score': 0.2 * i} for i in range(3)}
    results['seed3'] = {'fields': {'seed': 3}, 'error': 'loss is nan'}
    text = report.write_seeds(tmp_path, results, 'dice_validated')
    table = json.loads((tmp_path / 'sweep.json').read_text())
    assert table['cohort/conddiff']['ap'] == [0.2, 0.4, 0.6]
    assert (tmp_path / 'sweep.md').read_text() == text
    row = text.splitlines()[2]
    assert row.startswith('| cohort/conddiff | 0.400 ± 0.200 |') and row.endswith('| – |')
    assert len({line.count('|') for line in text.splitlines()}) == 1


def test_a_run_is_evaluated_again_when_it_was_trained_further(tmp_path):
    import os

    write_scores(tmp_path, 0, 0.5)
    step = tmp_path / 'seed0' / 'checkpoints' / 'diffusion' / '6'
    step.mkdir(parents=True)
    os.utime(step, (1, 1))
    assert worker.is_evaluated(tmp_path / 'seed0')
    os.utime(step, (4e9, 4e9))
    assert not worker.is_evaluated(tmp_path / 'seed0')


def test_bench_times_a_part():
    x = jnp.ones((300, 300))
    quick = timer.time_part(lambda x: x + 1.0, x, repeats=3)
    slow = timer.time_part(lambda x: jnp.linalg.matrix_power(x, 64), x, repeats=3)
    assert 0 < quick['milliseconds'] < slow['milliseconds']
    assert slow['compile_seconds'] > 0


@pytest.mark.slow
def test_bench_fluid_writes_its_table(command, tmp_path):
    done = command(
        'bench',
        'fluid',
        '--shape',
        '16',
        '18',
        '14',
        '--batch',
        '2',
        '--repeats',
        '1',
        '--json',
        tmp_path / 'table.json',
        '--quick',
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / 'table.json').read_text())
    assert table['shape'] == [16, 18, 14] and table['spacing'] == [10.0] * 3
    assert [(row['scheme'], row['border_mm']) for row in table['schemes']] == [
        ('flow_map', 0.0),
        ('flow_map', 16.0),
        ('upwind', 0.0),
    ]
    for row in table['schemes']:
        assert row['milliseconds_per_volume'] > 0 and row['share_of_copy_bandwidth'] > 0
        assert 0 < row['there_and_back_error'] < 0.5 and row['right_hand_sides'] > 0
    assert table['schemes'][0]['there_and_back_error'] < table['schemes'][2]['there_and_back_error']
    assert 'flow_map open' in done.stderr


def test_bench_map_times_the_map_and_its_memory(tmp_path):
    table = timer.time_map((12, 14, 10), (1.0, 1.0, 1.0), repeats=1)
    assert table['anomaly map, as published']['milliseconds'] > 0
    assert 0 < table['temporary_megabytes'] < 10


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['map', '--shape', '16', '18'], 'three numbers'),
        (['fluid', '--shape', '16', '18', '1'], 'grid shape'),
        (['fluid', '--shape=a,b'], "'a,b' must be whole numbers"),
        (['fluid', '--spacing', '1', '1', '0'], 'grid spacing'),
        (['fluid', '--shape', '4000', '4000', '4000'], 'more than 2^31 voxels'),
        (['water'], "not 'water'"),
        ([], 'needs --config'),
    ],
)
def test_a_mistake_of_bench_is_one_line(command, arguments, message):
    done = command('bench', *arguments)
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_bench_gives_the_share_of_a_step():
    from configs import ldm

    table = timer.time_step_shares(ldm.get_config('smoke'), repeats=3)
    assert 0 < table['share_alone'] < 1 and len(table) == 5


@pytest.mark.slow
def test_bench_times_every_part_of_a_configuration():
    from configs import ldm

    table = timer.time_all(ldm.get_config('smoke'), repeats=1)
    assert len(table) == 5 and all(row['milliseconds'] > 0 for row in table.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    'pooled', [{}, {'reuse': 2, 'pool': 2, 'log_every': 2, 'checkpoint_every': 2}]
)
def test_bench_train_has_a_row_for_each_number_of_devices(tmp_path, monkeypatch, pooled):
    from configs import ldm
    from fluidjax.bench import training

    monkeypatch.setenv('FLUIDJAX_STORE', str(tmp_path))
    config = ldm.get_config('smoke')
    config.diffusion.training.update(pooled)
    table = training.measure(config, repeats=1)
    assert [row['devices'] for row in table['devices']] == [1]
    assert table['devices'][0]['volumes_per_second_and_device'] > 0 and table['teraflop'] > 0
    parts = table['parts']
    for name in (
        training.RANDOMIZATION,
        'augmentation, randomization, encoding',
        'U-Net, forward and backward',
        'a batch from disk, meanwhile',
    ):
        assert parts[name]['milliseconds'] > 0 and parts[name]['share'] > 0
    assert parts['waiting for it']['share'] >= 0 and table['share_of_peak'] is None
