"""Variables of the environment that do not fit, and those that would change the results."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base import cli, environment, files
from fluidjax.base.errors import UserError


@pytest.mark.parametrize(
    'variable',
    [
        'JAX_PLATFORMS=cuda',
        pytest.param('JAX_PLATFORMS=nonsense', marks=pytest.mark.slow),
        pytest.param('JAX_NUM_CPU_DEVICES=many', marks=pytest.mark.slow),
    ],
)
def test_a_variable_that_does_not_fit_is_one_line(variable, smoke_run, checkout, tmp_path):
    """In a process of its own, because JAX reads its variables when it is imported."""
    if variable.endswith('cuda') and jax.default_backend() == 'gpu':
        pytest.skip('there is such a device here')
    name, _, value = variable.partition('=')
    words = ['predict', 'scan.nii', f'--workdir={smoke_run}', f'--out={tmp_path}']
    done = subprocess.run(
        [sys.executable, '-m', 'fluidjax', *words],
        cwd=checkout,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f'fluidjax: error: {name}') and value in done.stderr


def test_an_error_of_another_kind_is_not_explained():
    assert environment.explained(ValueError('a bug')) is None


def test_settings_that_would_change_results_are_replaced(monkeypatch):
    given = {
        'JAX_ENABLE_X64': 'True',
        'JAX_DEFAULT_PRNG_IMPL': 'rbg',
        'JAX_NUMPY_DTYPE_PROMOTION': 'strict',
        'JAX_NUMPY_RANK_PROMOTION': 'raise',
    }
    monkeypatch.setattr(os, 'environ', os.environ | given)
    environment.set_up()
    assert [os.environ[name] for name in given] == ['0', 'threefry2x32', 'standard', 'allow']
    os.environ['JAX_ENABLE_X64'] = 'perhaps'  # a mistake, which JAX reports
    environment.set_up()
    assert os.environ['JAX_ENABLE_X64'] == 'perhaps'


def test_sums_of_large_arrays_are_right():
    rows = jnp.zeros((40_000, 3)).at[:, 0].set(jnp.arange(40_000.0))
    lengths = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
    np.testing.assert_allclose(jax.jit(lengths)(rows), np.arange(40_000.0) ** 2, rtol=1e-6)


def test_a_setting_of_the_user_for_these_sums_stays(monkeypatch):
    own = '--xla_cpu_experimental_ynn_fusion_type=-eltwise'
    monkeypatch.setattr(os, 'environ', os.environ | {'XLA_FLAGS': own})
    environment.avoid_wrong_sums()
    assert os.environ['XLA_FLAGS'] == own
    monkeypatch.setattr(importlib.metadata, 'version', lambda _: '0.10.1')
    os.environ['XLA_FLAGS'] = '--xla_dump_to=there'
    environment.avoid_wrong_sums()
    assert os.environ['XLA_FLAGS'] == '--xla_dump_to=there'
    monkeypatch.setattr(importlib.metadata, 'version', lambda _: '0.10.2')
    environment.avoid_wrong_sums()
    assert os.environ['XLA_FLAGS'].endswith('there --xla_cpu_experimental_ynn_fusion_type=-reduce')


def test_a_function_computes_the_same_in_a_program_with_x64():
    function = environment.single_precision(lambda key: jax.random.normal(key, (3,)))
    usual = function(jax.random.key(0))
    with jax.enable_x64(True):
        assert jax.random.normal(jax.random.key(0)).dtype == np.float64
        again = function(jax.random.key(0))
    assert again.dtype == np.float32
    np.testing.assert_array_equal(usual, again)


def test_a_cache_that_cannot_be_written_to_is_not_used(monkeypatch):
    monkeypatch.setattr(os, 'environ', os.environ | {'JAX_COMPILATION_CACHE_DIR': '/dev/null/xla'})
    environment.set_up()
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == ''


def test_there_is_a_cache_without_a_home(monkeypatch, tmp_path):
    def none():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(Path, 'home', none)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert files.cache_home().name == f'fluidjax-{os.getuid()}'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert files.cache_home() == tmp_path / 'fluidjax'


@pytest.mark.parametrize('variables, expected', [({}, 2), ({'JAX_NUM_CPU_DEVICES': '1'}, 1)])
def test_every_core_of_a_cpu_trains_unless_the_user_says_otherwise(variables, expected, checkout):
    """In a process of its own, because JAX must not be in use yet."""
    code = (
        'from fluidjax.base import environment; environment._cores = lambda: 2;'
        'environment.use_all_cores(); import jax; print(jax.device_count())'
    )
    plain = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=checkout,
        env=plain | {'JAX_PLATFORMS': 'cpu'} | variables,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(expected), done.stderr


class _Full(jax.errors.JaxRuntimeError):
    """What JAX raises if a device is full."""

    def __init__(self):
        super().__init__(
            'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.50GiB.\n[tf-allocator]'
        )


def test_a_stage_that_does_not_fit_a_device_names_the_setting():
    with (
        pytest.raises(UserError) as raised,
        environment.training_in_memory('diffusion', 16, accumulate=2),
    ):
        raise _Full
    line = str(raised.value)
    assert 'diffusion stage' in line and 'batch_size=16' in line and '12.50GiB' in line
    assert 'config.diffusion.training.accumulate=4' in line and '\n' not in line


def test_errors_of_another_kind_pass_a_stage_unchanged():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'),
        environment.training_in_memory('diffusion', 16),
    ):
        raise jax.errors.JaxRuntimeError('INTERNAL: a bug')


def test_a_command_whose_device_is_full_ends_with_one_line(monkeypatch, capsys):
    """Evaluation and prediction: where no stage is known, the batch of scans is named."""
    monkeypatch.setattr(sys, 'argv', ['fluidjax'])

    def main():
        raise _Full

    with pytest.raises(SystemExit) as done:
        cli.run(main, cli.Flags())
    printed = capsys.readouterr().err
    assert done.value.code == 2 and printed.count('\n') == 1
    assert 'config.detect.batch_size' in printed and '12.50GiB' in printed
