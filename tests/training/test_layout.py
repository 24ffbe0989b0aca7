"""How batches are distributed over devices and processes; launchers; Weights & Biases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.training import cluster, parallel
from fluidjax.training.steps import parts_of


def test_a_layout_covers_the_batch_in_order():
    layouts = [parallel.Layout(24, ('a', 'b', 'c'), process, 2) for process in (0, 1)]
    assert [layout.per_device for layout in layouts] == [4, 4]
    assert np.concatenate([layout.first for layout in layouts]).tolist() == [0, 4, 8, 12, 16, 20]


def test_one_process_uses_the_devices_that_share_a_batch(monkeypatch):
    monkeypatch.setattr(jax, 'local_devices', lambda: list(range(8)))
    assert len(parallel.layout_of(8).devices) == 8
    assert len(parallel.layout_of(4).devices) == 4
    assert len(parallel.layout_of(7).devices) == 7
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match='batch_size: 8.*16 device'):
        parallel.layout_of(8)
    with pytest.raises(UserError, match='config.bridge.training.batch_size: 8'):
        parallel.layout_of(8, 'bridge')


def test_a_device_takes_its_samples_in_parts_but_never_less_than_one():
    found = {n: [parts_of(n, accumulate) for accumulate in (1, 2, 3, 8)] for n in (1, 6, 8)}
    assert found == {1: [1, 1, 1, 1], 6: [1, 2, 3, 6], 8: [1, 2, 4, 8]}


def test_gradients_may_travel_in_half_the_bits():
    from fluidjax.training.steps import _device_mean

    grads = {'w': jnp.linspace(-1.0, 1.0, 7)}
    mean = jax.pmap(lambda g: _device_mean(g, 'd', 'bfloat16'), 'd')(
        jax.tree.map(lambda x: x[None], grads)
    )
    np.testing.assert_array_equal(mean['w'][0], grads['w'])  # one device sends nothing
    assert mean['w'].dtype == jnp.float32


def test_what_is_to_be_computed_again_is_not_kept_on_a_cpu(monkeypatch):
    needed = []
    compile_it = jax.stages.Lowered.compile

    def noted(self, *arguments):
        program = compile_it(self, *arguments)
        needed.append(program.memory_analysis().temp_size_in_bytes)
        return program

    monkeypatch.setattr(jax.stages.Lowered, 'compile', noted)
    layout = parallel.layout_of(1)
    weights, x = jnp.full((12, 16, 16), 0.1), jnp.ones((1, 512, 16))

    def gradient(block):
        def loss(weights, x):
            for w in weights:
                x = block(w, x)
            return jnp.sum(x)

        call = parallel.data_parallel(jax.grad(loss), layout, (False, True))
        return call(weights, x), call(weights, x)

    def block(w, x):
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return x

    kept, again = gradient(block), gradient(jax.checkpoint(block))
    np.testing.assert_allclose(kept, again, rtol=1e-5)
    assert len(needed) == 2, 'compiled once for one kind of arguments'
    assert needed[1] < 0.6 * needed[0]


@pytest.mark.parametrize(
    ('environment', 'launcher'),
    [
        ({}, None),
        ({'SLURM_NTASKS': '4'}, None),
        ({'SLURM_STEP_NUM_TASKS': '1'}, None),
        ({'SLURM_STEP_NUM_TASKS': '4'}, 'Slurm'),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'),
        ({'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '0'}, 'Kubernetes'),
    ],
)
def test_launchers_are_known_by_what_they_set(monkeypatch, environment, launcher):
    for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'KUBERNETES_SERVICE_HOST'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cluster.launched_by() == launcher


def test_weights_and_biases_is_told_the_same(monkeypatch, tmp_path):
    import sys
    import types

    from ml_collections import ConfigDict

    from fluidjax.training.logs import RunLog, mirrored

    told, begun = [], []

    class Run:
        log = staticmethod(told.append)

        def define_metric(self, name, step_metric):
            assert step_metric == name.replace('*', 'step')

        def finish(self):
            told.append('finished')

    def init(**given):
        begun.append(given)
        return Run()

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    for _ in range(2):
        with mirrored('brains', tmp_path, ConfigDict({'seed': 3}), ['bridge']) as mirror:
            with RunLog(tmp_path, 'bridge', 0, 4, mirror) as log:
                log.write(2, {'loss': 0.5})
    assert told == [{'bridge/step': 2, 'bridge/loss': 0.5}, 'finished'] * 2
    assert begun[0]['id'] == begun[1]['id'] and begun[0]['resume'] == 'allow'
    assert begun[0]['project'] == 'brains' and begun[0]['config'] == {'seed': 3}
    with mirrored('', tmp_path, ConfigDict(), []) as mirror:
        assert mirror is None
