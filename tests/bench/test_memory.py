"""`fluidjax bench memory`: what is counted in a program, and which parts fit a card."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ldm
from fluidjax.base.subject import TISSUES
from fluidjax.bench import liveness, memory, networks
from fluidjax.models import Autoencoder, AutoencoderConfig
from fluidjax.models.conv import target_backend
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import build_stages

SQUARE = jax.ShapeDtypeStruct((64, 64), jnp.float32)
BYTES = 4 * 64 * 64


def test_what_the_backward_pass_keeps_is_counted_once_and_without_arguments():
    def loss(w, x):
        h = jnp.sin(w)
        return jnp.sum(jnp.sin(h @ x))

    # cos(w), cos(h x); x is an argument, and h is not needed for the gradient by w
    assert liveness.kept_bytes(loss, SQUARE, SQUARE) == 2 * BYTES
    assert liveness.kept_bytes(jax.checkpoint(loss), SQUARE, SQUARE) == 0


@pytest.mark.parametrize(
    'function,expected',
    [
        (lambda x: jnp.sum(jnp.sin(x) * 2.0), 4),  # fused into the sum
        (lambda x: x @ x @ x @ x, 2 * BYTES),
        (lambda x: (x @ x) + (x.T @ x) + (x @ x.T), 4 * BYTES),
        (lambda x: jnp.reshape(x @ x, (-1,)), BYTES),
        (lambda x: jax.lax.scan(lambda c, _: (c @ x @ x, None), x, None, length=9)[0], 3 * BYTES),
    ],
    ids=['fused', 'chain', 'sum', 'reshape', 'loop'],
)
def test_most_memory_at_a_time(function, expected):
    assert liveness.peak_bytes(function, SQUARE) == expected


def kept_by(remat: bool) -> int:
    model = Autoencoder(AutoencoderConfig((8, 8), 1, 3, 8, remat=remat))
    x = jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(model.apply(params, x)[0])

    with target_backend('gpu'):
        return liveness.kept_bytes(loss, params, x)


def test_rematerialised_the_finest_level_keeps_only_what_its_parts_get():
    """At the finest level: what two blocks, the halving and the end get."""
    finest = 4 * 8 * 16**3
    coarser = 4 * 8 * 8**3 * 8
    assert 4 * finest < kept_by(True) < 4 * finest + coarser < kept_by(False) / 2


def test_the_published_autoencoder_keeps_5_4_gibibytes_a_volume():
    config = ldm.get_config('paper')
    method = build_stages(config, model_grid(config))[0].method
    params = jax.eval_shape(method.init, jax.random.key(0))
    volumes = dict.fromkeys(('image', 'brain'), jax.ShapeDtypeStruct((1, 160, 160, 160, 1), 'f4'))

    def loss(params, volumes):
        return method.loss(params, volumes, jax.random.key(0))[0]

    with target_backend('gpu'):
        kept = liveness.kept_bytes(loss, params, volumes) / memory.GIB
    assert 5.2 < kept < 5.6


def test_the_smallest_number_of_parts_that_fits_is_chosen():
    line = memory.Line(0.0, memory.GIB)
    nothing = memory.NOTHING
    need = memory.Footprint(1, 0, 0, 0, nothing, line, nothing)
    cards = {card: memory.choose_accumulate(need, 12, card) for card in (1, 6, 24)}
    assert cards[1] is None
    assert (cards[6]['accumulate'], cards[24]['accumulate']) == (4, 1)
    assert np.isclose(cards[6]['gibibytes'], 3 * memory.ALLOWANCE)
    # A batch of 6 goes through in parts of 3, 2 or 1.
    assert [memory.choose_accumulate(need, 6, card)['part'] for card in (2, 4, 6)] == [1, 2, 3]


def test_every_stage_has_its_rows(capsys):
    config = ldm.get_config('smoke')
    config.diffusion.training.update(
        {'reuse': 2, 'pool': 2, 'log_every': 2, 'checkpoint_every': 2, 'steps': 4}
    )
    table = memory.measure(config, 4, (24,), None, False)['stages']
    printed = capsys.readouterr().err
    assert list(table) == ['autoencoder', 'diffusion']
    for name, row in table.items():
        assert f'\n{name} ' in printed and row['batch'] == 4
        assert row['cards']['24']['accumulate'] == 1
        assert 0 < row['step'] and 0 < row['state'] < row['cards']['24']['gibibytes'] < 1
    assert table['diffusion']['encoding'] > 0 == table['autoencoder']['encoding']


@pytest.mark.parametrize(
    'name',
    [
        pytest.param('autoencoder', marks=pytest.mark.slow),
        'bridge',
        pytest.param('head', marks=pytest.mark.slow),
    ],
)
def test_scans_of_other_contrasts_bring_their_tissue(name):
    """A batch of specifications has what training brings, for every stage and row."""
    config = ldm.get_config('smoke,method=fluidjax,contrast=any')
    stages = build_stages(config, model_grid(config))
    assert [stage.method.stage for stage in stages] == ['autoencoder', 'bridge', 'head']
    for stage in stages:
        scans = networks.scans_spec(stage.method, 2)
        assert scans['tissue'].shape == (2, *model_grid(config).shape, len(TISSUES))
        assert scans['tissue'].dtype == scans['brain'].dtype == np.uint8
        if stage.method.stage == name:
            assert memory.footprint(stage).step.at(1) > 0
    plain = build_stages(ldm.get_config('smoke'), model_grid(config))
    assert 'tissue' not in networks.scans_spec(plain[0].method, 1)
