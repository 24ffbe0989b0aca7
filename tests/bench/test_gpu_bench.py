"""`fluidjax bench gpu`: its rows, its order, its tables, and rows that fail."""

from __future__ import annotations

import os
import time

import pytest

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.bench import apart, gpu, gpu_rows
from fluidjax.bench.case import networks_of

ALL = (*gpu_rows.COMPARED, *gpu_rows.PARTS, *gpu_rows.JUDGED, *gpu_rows.ONCE)


def run_out_of_memory() -> None:
    raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 80 GiB')


def make_a_mistake() -> None:
    raise UserError('config.method: vae has no U-Net')


def test_a_call_that_fails_says_why_and_the_next_one_works():
    with apart.process() as process:
        first = process.call(os.getpid, seconds=60.0)
        assert first != os.getpid() and process.call(os.getpid, seconds=60.0) == first
        with pytest.raises(apart.Failed, match='^out of memory$'):
            process.call(run_out_of_memory, seconds=60.0)
        with pytest.raises(UserError, match='vae has no U-Net'):
            process.call(make_a_mistake, seconds=60.0)
        with pytest.raises(apart.Failed, match='status 3'):
            process.call(os._exit, 3, seconds=60.0)
        began = time.monotonic()
        with pytest.raises(apart.Failed, match='more than 1 s'):
            process.call(time.sleep, 300.0, seconds=1.0)
        assert time.monotonic() - began < 60.0
        assert process.call(os.getpid, seconds=60.0) != first


@pytest.fixture(scope='module')
def config():
    return ldm.get_config('smoke')


def test_every_row_is_measured_in_every_column_that_it_has(config):
    plan = gpu.Plan({'a': config, 'b': config})
    jobs = list(gpu.jobs_of(plan, compare=True))
    assert len(set(jobs)) == len(jobs)
    for title in plan.configs:
        columns = {
            row: {job.column for job in jobs if (job.title, job.row) == (title, row)} for row in ALL
        }
        for row in ALL:
            expected = {'auto'} if row in gpu_rows.ONCE else {'direct', 'taps'}
            expected |= {'pytorch'} if row in gpu_rows.COMPARED else set()
            assert columns[row] == expected, row
    assert not [job for job in gpu.jobs_of(plan, compare=False) if job.column == 'pytorch']
    few = gpu.Plan({'a': config}, only=('encode', 'map'))
    assert {job.row for job in gpu.jobs_of(few, compare=True)} == {'encode', 'map'}


@pytest.mark.parametrize('name', ['fill', 'adversarial step', 'randomization', 'scan to map'])
def test_rows_are_of_the_batch(config, name):
    row = gpu_rows.row_of(networks_of(config, batch=2), 2, name)
    leaf = row.batch if hasattr(row.batch, 'shape') else row.batch['samples']['image']
    assert leaf.shape == (2, 16, 16, 16, 1)


RESULT = {'milliseconds': 10.0, 'gigabytes': 2.5, 'teraflop': 5.0, 'parameters': 1234}


def test_the_tables_are_markdown_with_what_failed_in_its_place():
    made = {
        'device': 'gpu (card)',
        'jax': '1',
        'pytorch': None,
        'peak': 1000.0,
        'batch': 2,
        'dtype': 'bfloat16',
        'reuse': {'paper': 5},
        'tables': {
            'paper': {
                'unet': {'direct': RESULT, 'taps': {**RESULT, 'milliseconds': 20.0}},
                'encode': {'direct': {'error': 'out of memory'}, 'taps': RESULT},
                'fill': {'direct': RESULT},
                'pool step': {'direct': RESULT},
                'randomization': {'auto': {**RESULT, 'milliseconds': 3.0}},
            }
        },
    }
    lines = gpu.markdown(made).splitlines()
    tables = [line for line in lines if line.startswith('|')]
    assert {line.count('|') for line in tables} == {12, 4}
    assert '| unet | 1,234 | 5 | 10.0 | 2.50 | 20.0 | 2.50 | – | – | 50% | 200.00 |' in lines
    assert (
        '| encode | 1,234 | 5 | out of memory | – | 10.0 | 2.50 | – | – | 50% | 200.00 |' in lines
    )
    # 10 / 5 + 10 ms a step of two volumes; randomization is 3 / 5 ms of it.
    assert '| a step, latents used 5 times, ms | 12.0 | – |' in lines
    assert '| volumes per second | 166.67 | – |' in lines
    assert '| of it randomization | 5.0% | – |' in lines
    assert '| randomization by itself, ms | 3.0 |  |' in lines


def test_mistakes_are_one_line(config):
    with pytest.raises(UserError, match="no 'unets'; there are unet, unet step"):
        gpu.Plan({'smoke': config}, only=('unets',))
    with pytest.raises(UserError, match='minutes'):
        gpu.Plan({'smoke': config}, minutes=0.0)


@pytest.mark.slow
def test_without_a_gpu_small_sizes_are_measured_and_large_ones_refused(config, capsys):
    rows = ('encode', 'map')
    plan = gpu.Plan({'smoke': config}, repeats=1, only=rows, anywhere=True)
    table = gpu.measure(plan)['tables']['smoke']
    assert all(column['milliseconds'] > 0 for row in rows for column in table[row].values())
    assert set(table['encode']) >= {'direct', 'taps'} and '| encode |' in capsys.readouterr().out
    with pytest.raises(UserError, match='no GPU here'):
        gpu.measure(gpu.Plan({'smoke': config}))
