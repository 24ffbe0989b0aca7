"""The section `fluid` of a configuration: every field can be set, saved, and read of older runs."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import fluid, ldm
from configs.methods import config_of
from fluidjax.base.errors import UserError
from fluidjax.base.settings import load_config, save_config, settings_from
from fluidjax.fluid.settings import FluidSettings
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import METHODS, build_stages, fluid_settings
from fluidjax.runs.train import _refuse_another_run


@pytest.mark.parametrize('method', METHODS)
def test_training_and_randomize_draw_alike(method):
    """The defaults, that is an open flow; training also has healthy pairs."""
    assert fluid_settings(config_of(method, 'paper')) == FluidSettings(border_mm=0.0)
    of_randomize = settings_from(FluidSettings, fluid.get_config(), '')
    assert of_randomize == FluidSettings(border_mm=0.0, diseased_probability=1.0)


@pytest.fixture
def parsed(checkout, monkeypatch):
    """The configuration of some words of a command line."""

    def parse(*words):
        monkeypatch.chdir(checkout)
        monkeypatch.setattr(sys, 'argv', ['fluidjax', *words])
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file('config', None, '', flag_values=values)
        values(sys.argv)
        return holder.value

    return parse


def test_every_field_of_the_fluid_can_be_set_for_training(parsed, tmp_path):
    changed = {
        'diffusion_scale': 5.0,
        'white_matter_bright': False,
        'min_peak': 0.3,
        'perlin_octaves': 2,
        'perlin_persistence': 0.25,
        'integrator': 'rk4',
        'cfl': 0.5,
        'max_steps': 7,
        'storage': 'bfloat16',
        'border_mm': 16.0,
    }
    words = [f'--config.fluid.{name}={value}' for name, value in changed.items()]
    config = parsed('--config=configs/ldm.py:smoke,method=fluidjax', *words)
    assert set(config.fluid) == {field.name for field in dataclasses.fields(FluidSettings)}
    before = fluid_settings(parsed('--config=configs/ldm.py:smoke,method=fluidjax'))
    assert fluid_settings(config) == dataclasses.replace(before, **changed)
    for saved in (config, ConfigDict(config.to_dict())):
        save_config(tmp_path / 'config.json', saved)
        assert fluid_settings(load_config(tmp_path / 'config.json')) == fluid_settings(config)
    words = ['--config=configs/ldm.py:smoke,method=fluidjax', '--config.fluid.parity=True']
    assert fluid_settings(parsed(*words)) == dataclasses.replace(before, parity=True)
    with pytest.raises(UserError, match='fluid.border_mm: 16.0 is not used by the published flow'):
        fluid_settings(parsed(*words, '--config.fluid.border_mm=16.0'))


def test_a_number_of_steps_that_is_left_to_the_grid_is_saved_as_such(tmp_path):
    config = ldm.get_config('smoke')
    save_config(tmp_path / 'config.json', config)
    loaded = load_config(tmp_path / 'config.json')
    assert loaded.fluid.max_steps is None and fluid_settings(loaded) == fluid_settings(config)
    with pytest.raises(TypeError):
        config.fluid.max_steps = 'many'


def test_a_run_from_before_the_fluids_fields_is_the_same_run(tmp_path):
    config = ldm.get_config('smoke')
    old = config.to_dict()
    for field in ('parity', 'diffusion_scale', 'max_steps'):
        del old['fluid'][field]
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'config.json').write_text(json.dumps(old))
    grid = model_grid(config)
    _refuse_another_run(config, build_stages(config, grid), tmp_path, grid)
    config.fluid.diffusion_scale = 5.0
    with pytest.raises(UserError, match='fluid.diffusion_scale'):
        _refuse_another_run(config, build_stages(config, grid), tmp_path, grid)
