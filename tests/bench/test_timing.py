"""Timing parts, training steps and the anomaly map."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from configs import ldm
from fluidjax.bench import timer, training


def test_bench_times_a_part():
    x = jnp.ones((300, 300))
    quick = timer.time_part(lambda x: x + 1.0, x, repeats=3)
    slow = timer.time_part(lambda x: jnp.linalg.matrix_power(x, 64), x, repeats=3)
    assert 0 < quick['milliseconds'] < slow['milliseconds']
    assert slow['compile_seconds'] > 0


def test_bench_map_times_the_map_and_its_memory(tmp_path):
    table = timer.time_map((12, 14, 10), (1.0, 1.0, 1.0), repeats=1)
    assert table['anomaly map, as published']['milliseconds'] > 0
    assert 0 < table['temporary_megabytes'] < 10


@pytest.mark.slow
def test_bench_gives_the_share_of_a_step():
    table = timer.time_step_shares(ldm.get_config('smoke'), repeats=3)
    assert table['share_alone'] > 0 and len(table) == 5


@pytest.mark.slow
def test_bench_times_every_part_of_a_configuration():
    table = timer.time_all(ldm.get_config('smoke'), repeats=1)
    assert len(table) == 5 and all(row['milliseconds'] > 0 for row in table.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    'pooled', [{}, {'reuse': 2, 'pool': 2, 'log_every': 2, 'checkpoint_every': 2}]
)
def test_bench_train_has_a_row_for_each_number_of_devices(tmp_path, monkeypatch, pooled):
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


def test_a_table_shows_unknown_numbers_as_dashes(capsys):
    table = timer.Table(6, ('ms', 'milliseconds', '8.1f'), ('share', 'share', '8.0%'))
    table.print_head('part')
    table.print_row('fill', {'milliseconds': 12.34, 'share': float('nan')})
    table.print_row('step', {'milliseconds': 1.0})
    assert capsys.readouterr().err.splitlines() == [
        'part        ms   share',
        'fill      12.3       -',
        'step       1.0',
    ]
