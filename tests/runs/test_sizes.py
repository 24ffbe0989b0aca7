"""The sizes: every method builds at each, and holds the settings that belong to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, sizes
from configs.methods import config_of
from data_pipelines.grids import GRIDS
from data_pipelines.mni_template import load_template
from data_pipelines.template_cohort import SCALES
from fluidjax.base.settings import SYNONYMS
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import METHODS, build_stages


def test_four_millimetres_are_the_demo():
    assert config_of('fluidjax', '4mm').to_dict() == config_of('fluidjax', 'demo').to_dict()
    assert {SYNONYMS.get(name, name) for name in sizes.NAMES} == set(GRIDS) == set(SCALES)


@pytest.mark.parametrize('size', sizes.FINER)
def test_a_grid_holds_the_whole_brain(size):
    grid, template = GRIDS[size], load_template(4.0)
    places = np.argwhere(template.brain > 0.5)
    world = places @ template.affine[:3, :3].T + template.affine[:3, 3]
    inverse = np.linalg.inv(grid.affine)
    voxels = world @ inverse[:3, :3].T + inverse[:3, 3]
    assert voxels.min() >= 0 and (voxels.max(axis=0) <= np.array(grid.shape) - 1).all()


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('size', sizes.FINER)
def test_every_method_builds_at_every_size(method, size):
    """Its changes arrive, and its networks divide the grid."""
    config = config_of(method, size)
    grid = model_grid(config)
    for stage in build_stages(config, grid):
        assert stage.training.steps == sizes.CHANGES[size][f'{stage.method.stage}.training.steps']
        network = stage.method.network
        if hasattr(network, 'divisor'):
            latent = getattr(stage.method, 'latent_shape', grid.shape)
            sides = latent[:3] if stage.method.stage in ('bridge', 'diffusion') else grid.shape
            assert not any(side % network.divisor for side in sides)


def test_the_loss_at_one_millimetre_has_its_shapes(monkeypatch):
    """Of the bridge: it passes pairs, code and network."""
    size = '1mm'
    once = jax.jit(AutoencoderMethod.encode, static_argnums=0)
    monkeypatch.setattr(AutoencoderMethod, 'encode', once)
    config = config_of('fluidjax', size)
    stage = build_stages(config, model_grid(config))[1]
    params = jax.eval_shape(stage.method.init, jax.random.key(0))
    volume = jax.ShapeDtypeStruct((1, *GRIDS[size].shape, 1), jnp.float32)
    batch = {'image': volume, 'brain': volume}
    loss, _ = jax.eval_shape(stage.method.loss, params, batch, jax.random.key(0))
    assert loss.shape == ()


def test_the_papers_bridge_is_made_as_it_was_validated():
    """Most of its training is where sampling starts, and its map is not the published one."""
    paper, demo = (config_of('fluidjax', size) for size in ('paper', 'demo'))
    for field in ('time_bias', 'lesion_weight', 'noise'):
        assert paper.bridge.process[field] == demo.bridge.process[field]
    assert paper.bridge.process.sampler_steps <= 2
    assert {name: paper.detect.map[name] for name in common.PLAIN_MAP} == common.PLAIN_MAP
