"""The autoencoder's loss: each term against numbers worked out by hand, and whom it trains."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fluidjax.base.errors import UserError
from fluidjax.fluid.grid import Grid
from fluidjax.methods.augment import AugmentSettings
from fluidjax.methods.autoencoder import AutoencoderLoss, AutoencoderMethod
from fluidjax.models import AutoencoderConfig, Discriminator, perceptual
from fluidjax.models.discriminator import discriminator_loss, feature_matching, generator_loss
from fluidjax.training.state import run_once

pytestmark = pytest.mark.slow

UNCHANGED = AugmentSettings(0.0, 0.0, 0.0, 0.0, 0.0, 32.0, 0.0, 0.0, 0.0)
SMALL = AutoencoderLoss(kl=1e-3, adversarial=0.1, discriminator_features=2, discriminator_layers=1)
EVERYTHING = dataclasses.replace(SMALL, reconstruction='absolute', gan='hinge', perceptual=0.5)


def method_of(losses: AutoencoderLoss, side: int = 8) -> AutoencoderMethod:
    network = AutoencoderConfig((4,), 1, 2, 2, patch=4, linear_path=True)
    return AutoencoderMethod(Grid((side,) * 3, (4.0,) * 3), network, losses, UNCHANGED)


def batch_of(side: int = 8) -> dict[str, jax.Array]:
    image = jax.random.uniform(jax.random.key(1), (2, side, side, side, 1))
    return {'image': image, 'brain': jnp.ones_like(image)}


REAL, FAKE = jnp.array([2.0, 0.5, -1.0]), jnp.array([-2.0, 0.0, 3.0])


@pytest.mark.parametrize(
    'kind,generator,discriminator',
    [
        # (9 + 1 + 4) / 3; ((1 + 1/4 + 4) / 3 + (4 + 0 + 9) / 3) / 2
        ('least_squares', 14 / 3, (5.25 + 13) / 6),
        # -(1 / 3); ((0 + 1/2 + 2) / 3 + (0 + 1 + 4) / 3) / 2
        ('hinge', -1 / 3, (2.5 + 5) / 6),
    ],
)
def test_the_players_losses_by_hand(kind, generator, discriminator):
    assert float(generator_loss(kind, FAKE)) == pytest.approx(generator)
    assert float(discriminator_loss(kind, REAL, FAKE)) == pytest.approx(discriminator)


@pytest.mark.parametrize('kind', ['least_squares', 'hinge'])
def test_a_discriminator_that_is_right_pays_nothing(kind):
    fake = {'least_squares': 0.0, 'hinge': -1.0}[kind]
    assert float(discriminator_loss(kind, jnp.ones(4), jnp.full(4, fake))) == 0.0


def test_feature_matching_by_hand():
    real = [jnp.array([[1.0, 2.0]]), jnp.array([0.0, 0.0, 3.0])]
    fake = [jnp.array([[1.0, 4.0]]), jnp.array([0.0, 3.0, 0.0])]
    assert float(feature_matching(real, fake)) == pytest.approx(2 / 2 + 6 / 3)
    assert float(feature_matching(real, real)) == 0.0


def test_features_of_the_discriminator_are_what_its_logits_come_from():
    model, x = Discriminator(2, 2), jax.random.normal(jax.random.key(0), (1, 12, 12, 12, 1))
    params = run_once(model.init, jax.random.key(1), x)
    plain, (logits, features) = run_once(
        lambda p: (model.apply(p, x), model.apply(p, x, return_features=True)), params
    )
    np.testing.assert_array_equal(plain, logits)
    assert [f.shape[-1] for f in features] == [2, 4, 8]
    kernel = params['params']['conv_3']['kernel']
    corner = jnp.pad(features[-1], ((0, 0), *((1, 1),) * 3, (0, 0)))[0, :4, :4, :4]
    expected = jnp.sum(corner * kernel[..., 0]) + params['params']['conv_3']['bias'][0]
    np.testing.assert_allclose(logits[0, 0, 0, 0, 0], expected, rtol=1e-4)


@pytest.fixture(scope='module')
def drawn():
    """A method's parameters, drawn so that no output is zero."""
    params = run_once(method_of(SMALL).init, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    return jax.tree.map(lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape), params)


@pytest.fixture(scope='module')
def everything(drawn):
    """Loss and metrics with every term, and the gradient of each of them."""

    def terms(params):
        loss, metrics = method_of(EVERYTHING).loss(params, batch_of(), jax.random.key(3))
        return {**metrics, 'loss': loss}, {**metrics, 'loss': loss}

    gradients, values = run_once(jax.jacrev(terms, has_aux=True), drawn)
    return values, gradients


def test_the_published_loss_is_its_weighted_terms(drawn):
    loss, m = run_once(method_of(SMALL).loss, drawn, batch_of(), jax.random.key(3))
    assert set(m) == {'mse', 'psnr', 'kl', 'generator', 'discriminator'}
    assert float(loss) == pytest.approx(
        float(m['mse'] + 1e-3 * m['kl'] + 0.1 * (m['generator'] + m['discriminator'])), rel=1e-5
    )


def test_the_other_loss_is_its_weighted_terms(everything):
    m, _ = everything
    assert set(m) == {
        'loss',
        'mse',
        'psnr',
        'l1',
        'kl',
        'generator',
        'discriminator',
        'feature_matching',
    }
    assert float(m['loss']) == pytest.approx(
        float(
            m['l1']
            + 1e-3 * m['kl']
            + 0.1 * (m['generator'] + m['discriminator'])
            + 0.5 * m['feature_matching']
        ),
        rel=1e-5,
    )
    assert float(m['l1']) ** 2 < float(m['mse'])
    assert float(m['feature_matching']) > 0


def test_terms_are_those_of_the_networks_themselves(everything, drawn):
    """By the networks' own outputs, with the noise the loss draws."""
    method, x = method_of(EVERYTHING), batch_of()['image']
    eps = jax.random.normal(jax.random.split(jax.random.key(3))[1], (2, *method.latent_shape))

    def outputs(params):
        x_hat, z_mu, z_log_var = method._network.apply({'params': params['autoencoder']}, x, eps)
        judged = [
            method._discriminator.apply({'params': params['discriminator']}, v, True)
            for v in (x, x_hat)
        ]
        return x_hat, z_mu, z_log_var, judged

    x_hat, z_mu, z_log_var, ((real, ours), (fake, theirs)) = run_once(outputs, drawn)
    m, _ = everything
    expected = {
        'l1': jnp.abs(x - x_hat).mean(),
        'mse': jnp.square(x - x_hat).mean(),
        'kl': (0.5 * (z_mu**2 + jnp.exp(z_log_var) - 1 - z_log_var)).sum() / 2,
        'generator': -fake.mean(),
        'discriminator': (jnp.maximum(0, 1 - real).mean() + jnp.maximum(0, 1 + fake).mean()) / 2,
        'feature_matching': sum(jnp.abs(a - b).mean() for a, b in zip(ours, theirs)),
    }
    for name, value in expected.items():
        assert float(m[name]) == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.parametrize(
    'term,autoencoder,discriminator',
    [
        ('l1', True, False),
        ('kl', True, False),
        ('generator', True, False),
        ('feature_matching', True, False),
        ('discriminator', False, True),
        ('loss', True, True),
    ],
)
def test_each_term_trains_its_player_alone(everything, term, autoencoder, discriminator):
    _, gradients = everything
    for player, trained in (('autoencoder', autoencoder), ('discriminator', discriminator)):
        leaves = jax.tree.leaves(gradients[term][player])
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)
        assert any(bool(jnp.any(leaf != 0)) for leaf in leaves) == trained, player


@pytest.fixture(scope='module')
def lpips_files(tmp_path_factory):
    """The two public files with small random numbers in them, as .npz."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp('lpips')
    arrays = {
        name: rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in public_shapes().items()
    }
    linear = {name for name in arrays if name.startswith('lin')}
    np.savez(folder / 'squeezenet.npz', **{n: a for n, a in arrays.items() if n not in linear})
    np.savez(folder / 'linear.npz', **{n: np.abs(arrays[n]) for n in linear})
    return str(folder / 'squeezenet.npz'), str(folder / 'linear.npz')


def public_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes in the public files (tests/models/test_perceptual.py has them in full)."""
    leaves = flatten_dict(perceptual.blank_params(), sep='/')
    return {
        perceptual._torch_name(path): perceptual._torch_shape(path, leaf.shape)
        for path, leaf in leaves.items()
    }


def test_lpips_is_read_from_the_files_and_added_to_the_loss(lpips_files):
    losses = dataclasses.replace(SMALL, perceptual=0.5, perceptual_weights=lpips_files)
    method, batch = method_of(losses, 20), batch_of(20)
    blank = run_once(method.init, jax.random.key(0))
    params = method.prepare(blank, np.asarray(batch['image']))
    assert jax.tree.map(np.shape, params['perceptual']) == jax.tree.map(
        np.shape, blank['perceptual']
    )
    assert 'perceptual' not in method.trainable
    call = (
        jax.jit(method.loss)
        .lower(params, batch, jax.random.key(3))
        .compile({'xla_backend_optimization_level': 0})
    )
    loss, m = call(params, batch, jax.random.key(3))
    assert float(m['lpips']) > 0 and 'feature_matching' not in m
    assert float(loss) == pytest.approx(
        float(
            m['mse']
            + 1e-3 * m['kl']
            + 0.1 * (m['generator'] + m['discriminator'])
            + 0.5 * m['lpips']
        ),
        rel=1e-5,
    )
    _, unread = call({**params, 'perceptual': blank['perceptual']}, batch, jax.random.key(3))
    assert float(unread['lpips']) == 0.0


def test_files_that_are_not_lpips_say_so(lpips_files, tmp_path):
    np.savez(tmp_path / 'other.npz', weights=np.ones(3))
    for files, says in (
        ((lpips_files[0],), 'missing: lin0.model.1.weight'),
        ((*lpips_files, str(tmp_path / 'other.npz')), 'unknown: weights'),
        ((str(tmp_path / 'none.npz'),), 'none.npz'),
    ):
        losses = dataclasses.replace(SMALL, perceptual=0.5, perceptual_weights=files)
        with pytest.raises(UserError, match=says) as error:
            method_of(losses, 20).prepare({}, np.ones((1, 20, 20, 20, 1)))
        message = str(error.value)
        assert message.startswith('config.autoencoder.losses.perceptual_weights: ')
        assert '\n' not in message


@pytest.mark.parametrize(
    'field,value',
    [
        ('reconstruction', 'l3'),
        ('gan', 'wasserstein'),
        ('kl', -1.0),
        ('adversarial', -0.1),
        ('perceptual', -1.0),
        ('perceptual_share', 0.0),
        ('perceptual_share', 1.5),
        ('perceptual_weights', 'lpips.npz'),
        ('discriminator_layers', 0),
    ],
)
def test_a_setting_that_does_not_fit_is_named(field, value):
    with pytest.raises(UserError, match=rf'config\.autoencoder\.losses\.{field}: ') as error:
        AutoencoderLoss(**{field: value})
    assert '\n' not in str(error.value)


def test_a_grid_too_small_for_lpips_is_named():
    losses = AutoencoderLoss(perceptual=0.5, perceptual_weights=('lpips.npz',))
    with pytest.raises(UserError, match='perceptual_weights: LPIPS needs sides of 17'):
        method_of(losses, 16)
    assert perceptual.SMALLEST_SIDE == 17
    method_of(dataclasses.replace(losses, perceptual_weights=()), 16)
    with pytest.raises(UserError, match='hinge'):
        generator_loss('wasserstein', FAKE)
