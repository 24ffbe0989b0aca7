"""Training losses: the min-SNR weights, the variational term, and that gradients are finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluidjax.base.errors import UserError
from fluidjax.diffusion import linear_schedule, losses
from fluidjax.diffusion import schedule as sch

SCHEDULE = linear_schedule(1000)
STEPS = jnp.array([0, 40, 400, 999])  # SNR 9999, 94, 0.2, 0.00004


def sample(seed, shape=(4, 3, 4, 5, 2)):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    'prediction,weight',
    [
        ('eps', lambda snr, gamma: min(snr, gamma) / snr),
        ('v', lambda snr, gamma: min(snr, gamma) / (snr + 1.0)),
        ('x0', lambda snr, gamma: min(snr, gamma)),
    ],
)
@pytest.mark.parametrize('gamma', [1.0, 5.0])
def test_min_snr_weights_are_the_papers(prediction, weight, gamma):
    weights = losses.min_snr_weights(SCHEDULE, prediction, gamma)
    assert weights.shape == (1000,)
    for t in (0, 10, 200, 500, 999):
        abar = np.prod(1.0 - SCHEDULE.betas[: t + 1])
        np.testing.assert_allclose(weights[t], weight(abar / (1.0 - abar), gamma), rtol=1e-9)


@pytest.mark.parametrize('prediction', sch.PREDICTIONS)
def test_min_snr_weighs_one_error_of_x0_alike_whatever_is_predicted(prediction):
    """Two outputs that mean the same x0 have the same weighted loss: min(SNR, 5) |x0 - x0'|^2."""
    x0, eps, wrong = sample(0), sample(1), sample(2)
    t = jnp.array([1, 40, 400, 700])
    x_t = sch.q_sample(SCHEDULE, x0, t, eps)
    wrong_eps = sch.predict_eps(SCHEDULE, x_t, t, wrong)
    output = sch.target(SCHEDULE, prediction, wrong, t, wrong_eps)
    terms = losses.denoising_loss(SCHEDULE, prediction, output, x0, x_t, t, eps, min_snr=5.0)
    expected = np.minimum(SCHEDULE.snr[t], 5.0) * jnp.square(x0 - wrong).mean((1, 2, 3, 4))
    np.testing.assert_allclose(terms['loss'], expected, rtol=1e-3)
    plain = losses.denoising_loss(SCHEDULE, prediction, output, x0, x_t, t, eps)
    np.testing.assert_array_equal(plain['loss'], terms['mse'])


def test_min_snr_leaves_the_bound_alone():
    x0, eps = sample(3), sample(4)
    x_t = sch.q_sample(SCHEDULE, x0, STEPS, eps)
    output = jnp.concatenate([0.5 * eps, sample(5)], axis=-1)
    plain, weighted = (
        losses.denoising_loss(SCHEDULE, 'eps', output, x0, x_t, STEPS, eps, min_snr=gamma)
        for gamma in (0.0, 5.0)
    )
    np.testing.assert_array_equal(plain['vb'], weighted['vb'])
    np.testing.assert_allclose(plain['loss'], plain['mse'] + plain['vb'], rtol=1e-6)
    share = (weighted['loss'] - weighted['vb']) / weighted['mse']
    np.testing.assert_allclose(
        share, np.minimum(SCHEDULE.snr, 5.0)[STEPS] / SCHEDULE.snr[STEPS], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize('prediction', sch.PREDICTIONS)
def test_a_weight_multiplies_squared_errors_of_the_target_and_nothing_else(prediction):
    x0, eps = sample(11), sample(12)
    x_t = sch.q_sample(SCHEDULE, x0, STEPS, eps)
    output = jnp.concatenate([sample(13), sample(14)], axis=-1)
    weight = jnp.abs(sample(15, (4, 3, 4, 5, 1)))
    plain, weighted = (
        losses.denoising_loss(SCHEDULE, prediction, output, x0, x_t, STEPS, eps, weight=w)
        for w in (None, weight)
    )
    for term in ('mse', 'vb'):
        np.testing.assert_array_equal(plain[term], weighted[term])
    error = sch.target(SCHEDULE, prediction, x0, STEPS, eps) - output[..., :2]
    by_hand = np.mean(np.asarray(weight * error**2), axis=(1, 2, 3, 4))
    np.testing.assert_allclose(weighted['loss'] - weighted['vb'], by_hand, rtol=1e-3)


@pytest.mark.parametrize('prediction', sch.PREDICTIONS)
def test_the_bound_is_zero_at_the_posterior_and_right_beside_it(prediction):
    """The true x0 with f = 0 is the posterior; f = 1 is N(mean, beta), whose KL is known."""
    x0, eps, t = sample(6), sample(7), jnp.array([1, 5, 40, 400])
    x_t = sch.q_sample(SCHEDULE, x0, t, eps)
    output = sch.target(SCHEDULE, prediction, x0, t, eps)

    def bound(v):
        return losses.variational_bound(
            SCHEDULE, prediction, output, jnp.full_like(x0, v), x0, x_t, t
        )

    np.testing.assert_allclose(bound(-1.0), np.zeros(4), atol=2e-5)
    ratio = np.asarray(SCHEDULE.posterior_variance / SCHEDULE.betas)[t]
    known = 0.5 * (ratio - 1.0 - np.log(ratio)) / np.log(2.0)
    np.testing.assert_allclose(bound(1.0), known, atol=2e-5)


@pytest.mark.parametrize('prediction', sch.PREDICTIONS)
def test_gradients_are_finite_at_both_ends(prediction):
    x0, eps = sample(8), sample(9)
    x_t = sch.q_sample(SCHEDULE, x0, STEPS, eps)

    @jax.jit
    @jax.grad
    def gradient(output):
        terms = losses.denoising_loss(
            SCHEDULE, prediction, output, x0, x_t, STEPS, eps, min_snr=5.0
        )
        return terms['loss'].sum()

    for scale in (0.0, 1.0, 10.0):
        grads = gradient(scale * sample(10, (4, 3, 4, 5, 4)))
        assert jnp.all(jnp.isfinite(grads))
        assert jnp.all(jnp.abs(grads).max((1, 2, 3, 4)) > 0)


@pytest.mark.parametrize(
    'arguments,says',
    [(('eps', 0.0), 'min_snr'), (('v', -1.0), 'min_snr'), (('noise', 5.0), 'prediction')],
)
def test_mistakes_get_one_line(arguments, says):
    with pytest.raises(UserError, match=says) as error:
        losses.min_snr_weights(SCHEDULE, *arguments)
    assert '\n' not in str(error.value)
