"""`fluidjax bench models`: its rows, its mistakes, and reading the compiler's estimates."""

from __future__ import annotations

import importlib.util
import math

import jax
import pytest

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.bench import aot, networks
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import build_stages

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
SMALL_ROWS = [*ROWS[:4], 'unet', 'unet_step', 'autoencoder_step']

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


@pytest.fixture(scope='module')
def smoke_rows():
    return networks.rows_of(ldm.get_config('smoke'))


@pytest.mark.slow
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


def test_rows_of_our_own_method_are_those_of_its_bridge():
    """The head after it is small, and no U-Net of latents."""
    config = ldm.get_config('smoke,method=fluidjax')
    rows = networks.rows_of(config)
    assert list(rows) == [*SMALL_ROWS, 'fluidjax_step']
    bridge = build_stages(config, model_grid(config))[1].method
    trained = jax.eval_shape(bridge.init, networks.key_spec())['unet']
    assert networks.count(rows['unet'].params) == networks.count(trained)


def test_shape_and_dtype_can_be_chosen():
    rows = networks.rows_of(ldm.get_config('smoke'), (24, 16, 32), 'bfloat16')
    assert rows['encode'].batch.shape == (1, 24, 16, 32, 1)
    shape = rows['decode'].batch.shape
    assert shape == rows['unet'].batch['cond'].shape
    assert shape[1:4] == (24 // 4, 16 // 4, 32 // 4)


@pytest.mark.slow
def test_forward_and_training_step_are_measured(smoke_rows, capsys):
    rows = networks.chosen_rows(smoke_rows, ['encode', 'autoencoder_step'])
    table = networks.measure(rows, 1)['rows']
    printed = capsys.readouterr().err
    for name in rows:
        assert table[name]['milliseconds'] > 0 and table[name]['gigabytes'] > 0
        assert table[name]['teraflop'] > 0
        assert f'\n{name} ' in printed


def test_an_estimate_is_the_sum_of_cycles():
    class Compiled:
        def as_text(self):
            return PROGRAM

        def cost_analysis(self):
            return {'flops': 1e9, 'optimal_seconds': -0.99}

    estimate = aot.estimate(Compiled(), aot.CHIPS['v5e'])
    assert estimate['seconds'] == pytest.approx(10500 / 1.5e9)
    assert estimate['convolution_seconds'] == pytest.approx(6000 / 1.5e9)
    assert estimate['copy_seconds'] == pytest.approx(4000 / 1.5e9)
    assert estimate['share_of_peak'] == pytest.approx(1e9 / estimate['seconds'] / 197e12)
    assert estimate['ideal_seconds'] != estimate['ideal_seconds']


@pytest.mark.parametrize('topology', ['v5e', 'h100:2x4', 'v5e:eight', ''])
def test_a_wrong_topology_is_one_line(topology):
    with pytest.raises(UserError, match='not a TPU topology') as error:
        aot.chip_of(topology)
    assert '\n' not in str(error.value)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install libtpu'):
        aot.prepare('v5e:2x4')


def test_an_unknown_row_or_method_is_one_line(smoke_rows):
    with pytest.raises(UserError, match="no 'network'; there are encode"):
        networks.chosen_rows(smoke_rows, ['network'])
    from configs import vae

    with pytest.raises(UserError, match='latent methods'):
        networks.rows_of(vae.get_config('smoke'))


def test_a_program_that_cannot_be_read_has_no_times():
    """As on v6e: memory and operations are known, seconds are not."""

    class Compiled:
        def cost_analysis(self):
            return {'flops': 1e12}

        def as_text(self):
            raise RuntimeError('INTERNAL: RET_CHECK failure')

    estimate = aot.estimate(Compiled(), aot.chip_of('v6e:2x4'))
    assert all(math.isnan(estimate[name]) for name in ('seconds', 'share_of_peak', 'ideal_seconds'))
