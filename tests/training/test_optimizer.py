"""The optimiser: clipping, the learning rate, the decay of the averaged parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.training.settings import OptimizerSettings, learning_rate_schedule, make_optimizer
from fluidjax.training.steps import ema_rate


def test_clipping_bounds_each_group_by_its_own_norm():
    settings = OptimizerSettings(learning_rate=1.0, clip_norm=0.5)
    optimizer = make_optimizer(settings, 10, ('a', 'b'))
    params = {'a': jnp.zeros(4), 'b': jnp.zeros(4)}
    grads = {'a': jnp.full(4, 100.0), 'b': jnp.full(4, 1e-3)}
    state = optimizer.init(params)
    _, state = optimizer.update(grads, state, params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (4,)]
    largest = max(float(jnp.linalg.norm(m)) for m in moments)
    # Adam's first moment is a tenth of the clipped gradient: 0.05, not 20.
    assert largest == pytest.approx(0.1 * 0.5, rel=1e-4)
    # The other group is untouched by its neighbour's norm.
    assert any(np.allclose(m, 0.1 * 1e-3, rtol=1e-4) for m in moments)


@pytest.mark.parametrize('decay,last', [('constant', 1.0), ('cosine', 0.01)])
def test_learning_rate_rises_and_falls(decay, last):
    settings = OptimizerSettings(learning_rate=1.0, warmup_steps=5, decay=decay)
    rate = learning_rate_schedule(settings, 50)
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(1.0)
    assert float(rate(50)) == pytest.approx(last, abs=1e-3)


def test_unknown_decay_is_named():
    with pytest.raises(UserError, match='linear'):
        OptimizerSettings(decay='linear')


def test_ema_rate_rises_to_its_decay():
    rates = [float(ema_rate(0.9, jnp.asarray(step))) for step in (0, 10, 1000)]
    assert rates == pytest.approx([0.1, 11 / 20, 0.9])
