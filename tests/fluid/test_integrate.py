"""Order of convergence in time, the split of a time into steps, and the loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import orders, quick_jit

from fluidjax.fluid.integrate import INTEGRATORS, STAGES, split_time, trajectory


@pytest.mark.parametrize(
    ('name', 'order', 'steps'), [('euler', 1, 16), ('ssp_rk3', 3, 4), ('rk4', 4, 2)]
)
def test_order_in_time(name, order, steps):
    @quick_jit
    def end(P):  # dP/dt = P up to t = 1
        step = lambda n: lambda P: INTEGRATORS[name](lambda Q: Q, P, 1.0 / n)
        return [trajectory(step(n), P, n) for n in (steps, 2 * steps, 4 * steps)]

    measured = orders(np.abs(np.array(end(jnp.float32(1.0))) - np.e))
    assert np.all(np.abs(measured - order) < 0.3), measured


@pytest.mark.parametrize('name', INTEGRATORS)
def test_a_step_of_a_linear_equation_is_the_exponential_cut_after_as_many_terms_as_stages(name):
    terms = [2.0**k / math.factorial(k) for k in range(STAGES[name] + 1)]
    step = INTEGRATORS[name](lambda P: P, jnp.float32(1.0), 2.0)
    assert float(step) == pytest.approx(sum(terms), rel=1e-6)


@pytest.mark.parametrize(
    ('total', 'stable', 'steps', 'covered'),
    [
        (0.9, 0.1, 9, 0.9),
        (0.25, 0.1, 3, 0.25),
        (0.05, 0.1, 1, 0.05),
        (0.0, 0.1, 1, 0.0),
        (0.5, 1e12, 1, 0.5),
        (5.0, 0.1, 10, 1.0),  # shortened to what ten stable steps cover
    ],
)
def test_split_time(total, stable, steps, covered):
    dt, num_steps = split_time(jnp.float32(total), jnp.float32(stable), 10)
    assert int(num_steps) == steps
    assert float(dt) <= stable * (1 + 1e-6)
    assert float(dt * num_steps) == pytest.approx(covered)


def test_samples_stop_at_their_own_step():
    run = jax.vmap(lambda active: trajectory(lambda P: P + 1.0, jnp.float32(0), 6, active))
    np.testing.assert_array_equal(quick_jit(run)(jnp.array([0, 2, 6, 9])), [0.0, 2.0, 6.0, 6.0])
