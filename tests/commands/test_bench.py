"""`fluidjax bench` as a user calls it."""

from __future__ import annotations

import importlib.util
import json

import pytest


@pytest.mark.slow
def test_bench_fluid_writes_its_table(command, tmp_path):
    words = 'fluid --shape 16 18 14 --batch 2 --repeats 1 --quick'.split()
    done = command('bench', *words, '--json', tmp_path / 'table.json')
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


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['map', '--shape', '16', '18'], 'three numbers'),
        (['fluid', '--shape', '16', '18', '1'], 'grid shape'),
        (['fluid', '--shape=a,b'], "'a,b' must be whole numbers"),
        (['fluid', '--spacing', '1', '1', '0'], 'grid spacing'),
        (['fluid', '--shape', '4000', '4000', '4000'], 'more than 2^31 voxels'),
        (['gpu', '--shape', '16', '18'], 'three numbers'),
        (['cpu', '--only=vae'], "no 'vae'; there are autoencoder"),
        (['water'], "not 'water'"),
        (['map', '--aot=v5e:2x4'], 'does not compile for TPUs'),
        ([], 'needs --config'),
    ],
)
def test_a_mistake_of_bench_is_one_line(command, arguments, message):
    done = command('bench', *arguments)
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_every_network_is_printed(command, tmp_path):
    done = command(
        'bench',
        'models',
        '--config=configs/ldm.py:smoke',
        '--repeats=1',
        f'--json={tmp_path / "table.json"}',
    )
    assert done.returncode == 0, done.stderr
    rows = list(json.loads((tmp_path / 'table.json').read_text())['rows'])
    assert len(rows) == 12
    assert [line.split()[0] for line in done.stderr.splitlines()[2:]] == rows


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs pip install libtpu')
def test_compiles_for_a_tpu_that_is_not_there(command, tmp_path):
    done = command(
        'bench',
        'models',
        '--config=configs/ldm.py:smoke',
        '--aot=v5e:2x4',
        '--only',
        'encode',
        'conddiff_step',
        f'--json={tmp_path / "table.json"}',
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / 'table.json').read_text())['rows']
    assert list(rows) == ['encode', 'conddiff_step']
    assert all(0 < row['gigabytes'] < 1 and row['seconds'] > 0 for row in rows.values())
    wrong = command('bench', 'models', '--aot=v5e:3x5')
    assert wrong.returncode == 2 and 'v5e:3x5' in wrong.stderr.splitlines()[-1]
