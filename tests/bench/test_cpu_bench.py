"""`fluidjax bench cpu`: rows, and a comparison only where there is something to compare with."""

from __future__ import annotations

import importlib.util

import pytest

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.bench import case, cpu

COMPARED = importlib.util.find_spec('torch') is not None


@pytest.fixture(scope='module')
def config():
    return ldm.get_config('smoke,method=fluidjax')


def test_a_network_is_timed_beside_pytorch_where_that_is_installed(config, capsys):
    table = cpu.measure(config, (8, 12, 8), 1, 1, ['autoencoder'])
    (row,) = table['rows'].values()
    assert table['shape'] == [8, 12, 8] and row['milliseconds'] > 0
    assert ('ratio' in row) == COMPARED
    if COMPARED:
        assert row['ratio'] == pytest.approx(row['milliseconds'] / row['pytorch_milliseconds'])
    assert 'autoencoder' in capsys.readouterr().err


def test_calls_take_turns():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in ('a', 'b')}
    assert all(seconds >= 0 for seconds in cpu.by_turns(calls, 2).values())
    assert called == ['a', 'b'] * 3


def test_mistakes_are_one_line(config, monkeypatch):
    with pytest.raises(UserError, match="no 'vae'; there are autoencoder, autoencoder step"):
        cpu.measure(config, None, 1, 1, ['vae'])
    with pytest.raises(UserError, match='no autoencoder and U-Net'):
        from configs import regression

        case.networks_of(regression.get_config('smoke'))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '2.3.1+cpu')
    with pytest.raises(UserError, match='2.3.1.cpu is too old'):
        case.pytorch()


def test_the_settings_are_those_of_the_configuration_with_the_changes(config):
    made = case.networks_of(config, (8, 12, 8), 3, dtype='bfloat16', convolution='taps')
    for name, one in made.cases.items():
        assert one.config.dtype == 'bfloat16' and one.config.convolution == 'taps', name
        assert one.batch == 3
    assert config.autoencoder.network.dtype == 'float32'
    assert made.cases['unet'].shape == made.cases['decode'].shape == (2, 3, 2, 4)
