"""`bench models`: the rows it knows, what it says of mistakes, and the reading of an estimate."""

from __future__ import annotations

import functools
import importlib.util
import json
import math

import pytest

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.bench import aot, networks

ROWS = [
    'encode',
    'decode',
    'autoencode',
    'discriminator',
    'unet_plain',
    'unet_plain_step',
    'unet_concat',
    'unet_concat_step',
    'unet_vector',
    'unet_vector_step',
    'autoencoder_step',
    'conddiff_step',
]
PROGRAM = """HloModule step
%body (p: f32[8]) -> f32[8] {
  %copy.1 = f32[8]{0} copy(%p), backend_config={"estimated_cycles":"1000"}
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %fusion.1 = (f32[8]{0}, f32[8]{0}) fusion(%x), kind=kOutput, calls=%f, \
backend_config={"estimated_cycles":"6000"}
  %fusion.2 = f32[8]{0} fusion(%x), kind=kLoop, calls=%g, backend_config={"estimated_cycles":"500"}
  ROOT %while.1 = f32[8]{0} while(%x), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
}
"""


@pytest.fixture
def bench(command):
    return functools.partial(command, 'bench', 'models', timeout=600)


def test_rows_are_every_network_and_both_steps():
    rows = networks.rows_of(ldm.get_config('paper'))
    assert list(rows) == ROWS
    counts = {name: networks.count(row.params) for name, row in rows.items()}
    assert counts['autoencode'] == 13_766_248 == counts['encode'] + counts['decode']
    assert counts['discriminator'] == 24_830_689
    assert [counts[f'unet_{name}'] for name in ('plain', 'concat', 'vector')] == [
        46_640_134,
        46_650_502,
        54_923_910,
    ]
    assert rows['decode'].batch.shape == (1, 20, 20, 20, 3)


def test_shape_and_dtype_can_be_chosen():
    rows = networks.rows_of(ldm.get_config('paper'), (96, 96, 96), 'float32')
    assert rows['encode'].batch.shape == (1, 96, 96, 96, 1)
    assert rows['unet_vector'].batch['cond'].shape == (1, 12, 12, 12, 3)


@pytest.mark.slow
def test_forward_and_training_step_are_measured(capsys):
    rows = networks.rows_of(ldm.get_config('smoke'))
    rows = networks.chosen_rows(rows, ['encode', 'autoencoder_step'])
    table = networks.measure(rows, 1)['rows']
    printed = capsys.readouterr().err
    for name in rows:
        assert table[name]['milliseconds'] > 0 and table[name]['gigabytes'] > 0
        assert table[name]['teraflop'] > 0
        assert f'\n{name} ' in printed


@pytest.mark.slow
def test_every_row_is_printed(bench, tmp_path):
    done = bench(
        '--config=configs/ldm.py:smoke', '--repeats=1', f'--json={tmp_path / "table.json"}'
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / 'table.json').read_text())['rows']) == ROWS
    assert [line.split()[0] for line in done.stderr.splitlines()[2:]] == ROWS


def test_an_estimate_is_the_sum_of_cycles():
    class Compiled:
        def as_text(self):
            return PROGRAM

        def cost_analysis(self):
            return {'flops': 1e9, 'optimal_seconds': -0.99}

    made = aot.estimate(Compiled(), aot.CHIPS['v5e'])
    assert made['seconds'] == pytest.approx(10500 / 1.5e9)
    assert made['convolution_seconds'] == pytest.approx(6000 / 1.5e9)
    assert made['copy_seconds'] == pytest.approx(4000 / 1.5e9)
    assert made['share_of_peak'] == pytest.approx(1e9 / made['seconds'] / 197e12)
    assert made['ideal_seconds'] != made['ideal_seconds']


@pytest.mark.parametrize('topology', ['v5e', 'h100:2x4', 'v5e:eight', ''])
def test_a_wrong_topology_is_one_line(topology):
    with pytest.raises(UserError, match='not a TPU topology') as error:
        aot.chip_of(topology)
    assert '\n' not in str(error.value)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install libtpu'):
        aot.prepare('v5e:2x4')


def test_an_unknown_row_or_method_is_one_line():
    with pytest.raises(UserError, match="no 'unet'; there are encode"):
        networks.chosen_rows(networks.rows_of(ldm.get_config('smoke')), ['unet'])
    from configs import vae

    with pytest.raises(UserError, match='latent methods'):
        networks.rows_of(vae.get_config('smoke'))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs pip install libtpu')
def test_compiles_for_a_tpu_that_is_not_there(bench, tmp_path):
    done = bench(
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
    wrong = bench('--aot=v5e:3x5')
    assert wrong.returncode == 2 and 'v5e:3x5' in wrong.stderr.splitlines()[-1]


def test_a_program_that_cannot_be_read_has_no_times():
    """As on v6e: memory and operations are known, seconds are not."""

    class Compiled:
        def cost_analysis(self):
            return {'flops': 1e12}

        def as_text(self):
            raise RuntimeError('INTERNAL: RET_CHECK failure')

    made = aot.estimate(Compiled(), aot.chip_of('v6e:2x4'))
    assert all(math.isnan(made[name]) for name in ('seconds', 'share_of_peak', 'ideal_seconds'))
