"""The weight of lesions in the losses, computed by hand; networks are replaced by their outputs."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from configs.methods import config_of
from fluidjax.base.errors import UserError
from fluidjax.base.share import WHOLE, Share
from fluidjax.diffusion.schedule import linear_schedule
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import Randomized
from fluidjax.methods import bridge, latent_diffusion
from fluidjax.methods.latent_diffusion import DiffusionProcess
from fluidjax.methods.regression import RestorationLoss
from fluidjax.runs.stages import build_stages

GRID = Grid((16, 16, 16), (12.0, 12.0, 12.0))
SHAPE = (2, 4, 4, 4, 3)


class SilentUNet:
    """A U-Net whose output is 0."""

    def __init__(self, config):
        del config

    def apply(self, params, z, t, condition):
        del params, t, condition
        return 0.0 * z


def stage_of(method, stage):
    stages = build_stages(config_of(method, 'smoke'), GRID)
    return next(built.method for built in stages if built.method.stage == stage)


def latents():
    """One latent of two samples is touched by a lesion, in the first sample."""
    rng = np.random.default_rng(0)
    touched = np.zeros((*SHAPE[:4], 1), np.float32)
    touched[0, 1, 2, 3] = 1.0
    examples = {name: rng.normal(size=SHAPE).astype(np.float32) for name in ('healthy', 'diseased')}
    return {**examples, 'touched': touched, 'lesion_ml': np.zeros(2)}


def weighted_mean(cost, where, lesion_weight):
    weight = np.broadcast_to(1.0 + lesion_weight * where, cost.shape)
    return (weight * cost).sum() / weight.sum()


def of_diffusion(lesion_weight):
    method = stage_of('conddiff', 'diffusion')
    process = dataclasses.replace(method.process, lesion_weight=lesion_weight)
    return dataclasses.replace(method, process=process)


@pytest.mark.parametrize('lesion_weight', [0.0, 12.0])
def test_the_diffusions_squared_error_counts_more_in_touched_latents(monkeypatch, lesion_weight):
    """The error of an output of 0 is the target itself, here v = sqrt(abar) eps - ... z_0."""
    monkeypatch.setattr(latent_diffusion, 'UNet', SilentUNet)
    method, examples, key = of_diffusion(lesion_weight), latents(), jax.random.key(3)
    loss, metrics = method.example_loss({'unet': {}}, examples, key)
    _, k_t, k_eps = jax.random.split(key, 3)
    t = method._draw_steps(jax.random.uniform(k_t, (2,)))
    abar = np.cumprod(1.0 - linear_schedule(1000).betas)[t].reshape(2, 1, 1, 1, 1)
    eps = jax.random.normal(k_eps, SHAPE)
    v = np.sqrt(abar) * eps - np.sqrt(1.0 - abar) * examples['healthy']
    assert method.process.prediction == 'v'
    expected = weighted_mean(v**2, examples['touched'], lesion_weight)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics['mse'], np.mean(v**2), rtol=1e-4)
    assert (loss == metrics['mse']) == (lesion_weight == 0.0)


def test_without_a_lesion_the_weight_changes_nothing(monkeypatch):
    monkeypatch.setattr(latent_diffusion, 'UNet', SilentUNet)
    examples = latents() | {'touched': np.zeros((*SHAPE[:4], 1), np.float32)}
    losses = [
        of_diffusion(weight).example_loss({'unet': {}}, examples, jax.random.key(0))[0]
        for weight in (0.0, 12.0)
    ]
    np.testing.assert_array_equal(*losses)


def test_devices_share_the_mean_weight(monkeypatch):
    """One of two devices has the lesion; the mean of their losses is the loss of the batch."""
    monkeypatch.setattr(latent_diffusion, 'UNet', SilentUNet)
    method, examples, key = of_diffusion(12.0), latents(), jax.random.key(3)

    def on_one(own):
        share = Share(first=jax.lax.axis_index('device'), total=2, axis='device')
        return method.example_loss({'unet': {}}, own, key, share)[0]

    split = {name: value[:, None] for name, value in examples.items()}
    losses = jax.vmap(on_one, axis_name='device')(split)
    whole, _ = method.example_loss({'unet': {}}, examples, key)
    np.testing.assert_allclose(losses.mean(), whole, rtol=1e-5)


def test_the_bridges_squared_error_counts_more_in_touched_latents(monkeypatch):
    """The error of an output of 0 is the way from z_0 to z_t."""
    monkeypatch.setattr(bridge, 'UNet', SilentUNet)
    method, examples, key = stage_of('fluidjax', 'bridge'), latents(), jax.random.key(4)
    assert (method.process.noise, method.process.lesion_weight) == (0.0, 12.0)
    loss, _ = method.example_loss({'unet': {}}, examples, key)
    t = jax.random.uniform(jax.random.split(key, 3)[1], (2,)) ** (1.0 / method.process.time_bias)
    error = t.reshape(2, 1, 1, 1, 1) * (examples['diseased'] - examples['healthy'])
    expected = weighted_mean(np.asarray(error**2), examples['touched'], 12.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def voxels():
    rng = np.random.default_rng(1)
    healthy, diseased, restored = rng.uniform(size=(3, 2, 6, 6, 6, 1)).astype(np.float32)
    mask = np.zeros_like(healthy)
    mask[1, 2:4, 2:4, 2:4] = 1.0
    return restored, Randomized(healthy, diseased, mask, mask)


def of_images(name, lesion_weight):
    losses = RestorationLoss(gradient=0.0, lesion_weight=lesion_weight)
    return dataclasses.replace(stage_of(name, 'restoration'), losses=losses)


@pytest.mark.parametrize('lesion_weight', [0.0, 12.0])
@pytest.mark.parametrize('name', ['regression', 'severity'])
def test_the_absolute_error_of_images_counts_more_in_lesions(name, lesion_weight):
    restored, pair = voxels()
    loss, metrics = of_images(name, lesion_weight)._compared(restored, pair, WHOLE)
    error = np.abs(restored - pair.healthy)
    np.testing.assert_allclose(loss, weighted_mean(error, pair.mask, lesion_weight), rtol=1e-5)
    np.testing.assert_allclose(metrics['l1'], error.mean(), rtol=1e-5)


def test_inpainting_is_trained_in_lesions_only_whatever_their_weight():
    restored, pair = voxels()
    expected = np.abs(restored - pair.healthy)[pair.mask > 0].mean()
    for lesion_weight in (0.0, 12.0):
        loss, _ = of_images('inpainting', lesion_weight)._compared(restored, pair, WHOLE)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('settings', [DiffusionProcess, RestorationLoss])
def test_a_negative_weight_gets_one_line(settings):
    with pytest.raises(UserError, match='lesion_weight: -1.0 must be 0 or more') as error:
        settings(lesion_weight=-1.0)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'method,section',
    [
        ('conddiff', 'diffusion.process'),
        ('cldm', 'diffusion.process'),
        ('icdm', 'diffusion.process'),
        ('fluidjax', 'bridge.process'),
        ('regression', 'restoration.losses'),
        ('severity', 'restoration.losses'),
    ],
)
def test_all_methods_trained_on_lesions_have_the_same_weight_in_the_small_sizes(method, section):
    for size in ('smoke', 'demo'):
        flat = config_of(method, size)
        for name in section.split('.'):
            flat = flat[name]
        assert flat.lesion_weight == 12.0


def test_runs_from_before_the_fields_are_as_they_were():
    old = config_of('regression', 'smoke')
    old.restoration.identity = True
    assert build_stages(old, GRID)[-1].method.identity
    del old.restoration.identity, old.restoration.losses.lesion_weight
    method = build_stages(old, GRID)[-1].method
    assert (method.identity, method.losses.lesion_weight) == (False, 0.0)
    old = config_of('conddiff', 'smoke')
    del old.diffusion.process.lesion_weight
    assert build_stages(old, GRID)[-1].method.process.lesion_weight == 0.0
