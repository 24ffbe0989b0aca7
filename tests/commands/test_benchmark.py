"""`fluidjax benchmark` as a user calls it."""

from __future__ import annotations

import functools

import pytest


@pytest.fixture
def benchmark(command, tmp_path):
    return functools.partial(
        command,
        'benchmark',
        f'--workdir={tmp_path}',
        timeout=900,
        FLUIDJAX_STORE=str(tmp_path / 'store'),
    )


def test_wrong_cells_are_one_line(benchmark):
    done = benchmark('--cells=unet')
    assert done.returncode == 2 and "no 'unet' in comparison" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = benchmark('--patients=somewhere')
    assert done.returncode == 2 and '--healthy' in done.stderr


@pytest.mark.slow
def test_a_benchmark_from_end_to_end_and_again(benchmark, tmp_path):
    arguments = ('--scale=smoke', '--seeds=0', '--cells=conddiff,cldm,vae')
    done = benchmark(*arguments)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / 'smoke' / 'RESULTS.md').read_text()
    for row in ('conddiff', 'cldm', 'vae', 'z_score', 'mean_brain', 'intensity', 'autoencoder'):
        assert f'\n| {row} | ' in text
    assert '## Test set: other law' in text
    logs = {
        stage: [
            [line for line in path.read_text().splitlines() if f'"{stage}"' in line]
            for path in sorted((tmp_path / 'smoke' / 'runs').glob('c*/seed0/metrics.jsonl'))
        ]
        for stage in ('autoencoder', 'diffusion')
    }
    shared, own = logs['autoencoder'], logs['diffusion']
    assert shared[0] == shared[1] != []  # with its times, so it was not trained again
    assert own[0] != own[1] and all(own)
    again = benchmark(*arguments)
    assert again.returncode == 0 and 'cell' not in again.stderr
    assert (tmp_path / 'smoke' / 'RESULTS.md').read_text() == text
