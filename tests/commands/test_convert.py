"""Published weights to runs, with small networks on the smoke grid; their names are the golden
files' (tests/models/test_parity_models.py), their numbers random."""

from __future__ import annotations

import functools
import json
import sys

import jax
import numpy as np
import pytest

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.base.settings import load_config
from fluidjax.fluid.grid import Grid
from fluidjax.models import Autoencoder, AutoencoderConfig, Discriminator, UNet, UNetConfig
from fluidjax.runs import convert
from fluidjax.runs.load import load_run
from fluidjax.runs.published_names import published_tensors
from fluidjax.runs.published_weights import Assumed, read_networks
from fluidjax.runs.stages import build_stages
from fluidjax.training import checkpoint, parallel
from fluidjax.training.loop import is_done, train_stage
from fluidjax.training.state import run_once
from fluidjax.training.stopping import StopRequest

pytestmark = pytest.mark.slow

GROUPS = 4
ASSUMED = Assumed(GROUPS, GROUPS, 8)
AUTOENCODER = Autoencoder(AutoencoderConfig((8, 16), 1, 3, GROUPS))
DISCRIMINATOR = Discriminator(4, 1)


def unet(condition, **changes):
    fields = {
        'channels': (8, 16),
        'attention_levels': (False, True),
        'num_head_channels': 8,
        'norm_num_groups': GROUPS,
        'condition': condition,
        'condition_slices': 8,
    }
    return UNet(UNetConfig(**fields | changes))


def state_dict(model, prefix='', seed=0):
    """Random weights of the published counterpart of a network."""
    rng = np.random.default_rng(seed)
    return {
        prefix + name: 0.1 * rng.standard_normal(tensor.shape).astype(np.float32)
        for name, tensor in published_tensors(model).items()
    }


def lightning_names():
    """As the published autoencoder's checkpoints name it, with what no network of ours keeps."""
    weights = state_dict(AUTOENCODER) | state_dict(DISCRIMINATOR, 'discriminator.')
    unused = {
        'perceptual_loss.net.slice1.0.weight': np.ones(3, np.float32),
        'discriminator.main.3.running_mean': np.ones(8, np.float32),
        'discriminator.main.3.num_batches_tracked': np.ones((), np.int64),
    }
    return weights | unused


@pytest.fixture
def config():
    made = ldm.get_config('smoke')
    made.autoencoder.network.norm_num_groups = GROUPS
    made.diffusion.network.norm_num_groups = GROUPS
    return made


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A function (name, weights) -> path of a new .npz."""
    folder = tmp_path_factory.mktemp('weights')

    def save(name, weights):
        np.savez(folder / f'{name}.npz', **weights)
        return folder / f'{name}.npz'

    return save


def same(params, weights, name, path, transposed=(2, 3, 4, 1, 0)):
    for part in path.split('/'):
        params = params[part]
    np.testing.assert_array_equal(params, weights[name].transpose(transposed))


@pytest.mark.parametrize(
    'condition,method', [('none', 'ldm'), ('concat', 'cldm'), ('vector', 'conddiff')]
)
def test_a_converted_run_is_the_published_method(condition, method, config, files, tmp_path):
    both, alone = lightning_names(), state_dict(unet(condition), 'model.')
    paths = [files('autoencoder', both), files(condition, alone)]
    out = tmp_path / 'deep' / 'run'
    assert f'fluidjax eval --workdir={out}' in convert.convert(paths, out, config)
    run = load_run(out)
    assert (run.config.method, run.method.network) == (method, unet(condition).config)
    process = run.method.process
    assert (process.prediction, process.learned_variance) == ('eps', True)
    same(run.params['unet'], alone, 'model.conv_in.weight', 'conv_in/kernel')
    same(run.params['autoencoder'], both, 'decoders.0.blocks.0.weight', 'decoder/conv_in/kernel')
    assert float(run.params['latent']['scale']) == np.float32(0.18215)
    assert not np.any(run.params['latent']['mean'])
    assert not list(out.parent.glob('.run*'))
    if condition == 'vector':
        volume = jax.random.uniform(jax.random.key(1), (1, *run.grid.shape, 1))
        counterpart = run_once(run.method.reconstruct, run.params, volume, jax.random.key(2))
        assert counterpart.shape == volume.shape and np.isfinite(counterpart).all()


def test_an_autoencoder_alone_is_a_finished_first_stage(config, files, tmp_path):
    weights, out = state_dict(AUTOENCODER), tmp_path / 'run'
    message = convert.convert([files('alone', weights)], out, config)
    assert (
        "--config.autoencoder.network.channels='(8, 16)'" in message and 'fluidjax train' in message
    )
    saved = json.loads((out / 'config.json').read_text())
    assert saved['autoencoder']['network']['channels'] == [8, 16]
    stages = build_stages(load_config(out / 'config.json'), Grid((16, 16, 16), (12.0,) * 3))
    method, settings = stages[0].method, stages[0].training
    assert is_done(out / 'checkpoints' / 'autoencoder', settings)
    # Finished: neither a batch nor a loss is asked for.
    params = train_stage(method, None, None, settings, out, 0, parallel.layout_of(1), StopRequest())
    same(params['autoencoder'], weights, 'quant_conv_mu.weight', 'quant_mu/kernel')
    assert set(params) == {'autoencoder', 'discriminator'}
    with pytest.raises(UserError, match='no checkpoint of the diffusion stage'):
        load_run(out)


def test_weights_without_their_autoencoder_are_kept_bare(config, files, tmp_path):
    weights, out = state_dict(unet('concat')), tmp_path / 'bare'
    message = convert.convert([files('bare', weights)], out, config)
    assert 'needs the autoencoder' in message and not (out / 'config.json').exists()
    (network,) = read_networks(files('bare', weights), ASSUMED).values()
    restored = checkpoint.restore(out / 'weights' / 'unet', network.params)
    same(restored, weights, 'out.2.weight', 'conv_out/kernel')
    same(restored, weights, 'time_embed.0.weight', 'time_0/kernel', (1, 0))


def without(weights, *names):
    return {name: array for name, array in weights.items() if name not in names}


DOWN = 'down_blocks.0.resnets.0.conv1.weight'


@pytest.mark.parametrize(
    'model,change,wrong',
    [
        (
            AUTOENCODER,
            {'encoders.0.blocks.99.weight': np.zeros(3)},
            ['1 unknown: encoders.0.blocks.99.weight'],
        ),
        (
            AUTOENCODER,
            {'extra': np.zeros(3), 'decoders.0.blocks.0.bias': None},
            ['1 unknown: extra', '1 missing: decoders.0.blocks.0.bias'],
        ),
        (
            AUTOENCODER,
            {'encoders.0.blocks.0.weight': np.zeros((8, 2, 3, 3, 3))},
            [
                '1 misshapen: encoders.0.blocks.0.weight '
                '(is (8, 2, 3, 3, 3), must be (8, 1, 3, 3, 3))'
            ],
        ),
        (
            DISCRIMINATOR,
            {'main.2.weight': None, 'main.0.bias': np.full(4, np.nan)},
            ['1 missing: main.2.weight', '1 not finite: main.0.bias'],
        ),
        (unet('none'), {'conv_in.weight': None}, ['1 missing: conv_in.weight']),
        (unet('concat'), {DOWN: np.zeros((7, 8, 3, 3, 3))}, ['1 misshapen: ' + DOWN]),
        (
            unet('none'),
            {'down_blocks.7.resnets.0.conv1.weight': np.zeros(3)},
            ['1 unknown: down_blocks.7.resnets.0.conv1.weight'],
        ),
        (
            unet('vector'),
            {
                'encoder.input_blocks.1.1.qkv.weight': np.zeros((32, 96, 1)),
                'encoder.out.3.bias': None,
            },
            [
                'encoder.out.3.bias',
                'encoder.input_blocks.1.1.qkv.weight (is (32, 96, 1), must be (96',
            ],
        ),
    ],
)
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_tensors_that_do_not_fit_are_named_and_nothing_is_written(
    model, change, wrong, prefix, config, files, tmp_path
):
    weights = state_dict(model) | change
    weights = {prefix + k: v for k, v in weights.items() if v is not None}
    with pytest.raises(UserError) as error:
        convert.convert([files('wrong', weights)], tmp_path / 'run', config)
    for text in wrong:
        assert text.partition(': ')[0] in str(error.value)
        assert prefix + text.rpartition(': ')[2].removeprefix(prefix) in str(error.value)
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_many_names_are_cut_short(files):
    weights = state_dict(unet('none'))
    missing = [name for name in weights if name.startswith('up_blocks.1.resnets.')]
    with pytest.raises(UserError, match=rf'{len(missing)} missing: up_.* and \d+ more$') as error:
        read_networks(files('few', without(weights, *missing)), ASSUMED)
    assert str(error.value).count('up_blocks') == 8


@pytest.mark.parametrize(
    'models,message',
    [
        ([DISCRIMINATOR, DISCRIMINATOR], 'a second discriminator'),
        ([AUTOENCODER, unet('none', in_channels=4, out_channels=8)], 'latents of 4 channels'),
        ([AUTOENCODER, unet('vector', condition_slices=5)], 'for 5 latent slices'),
        (
            [AUTOENCODER, unet('none', channels=(8,) * 5, attention_levels=(False,) * 5)],
            'not multiples of 16',
        ),
        ([Autoencoder(AutoencoderConfig((6,), 1, 3, 2))], 'norm_num_groups.* 4 does not divide 6'),
    ],
)
def test_networks_that_do_not_fit_each_other(models, message, config, files, tmp_path):
    paths = [files(f'network{i}', state_dict(model)) for i, model in enumerate(models)]
    with pytest.raises(UserError, match=message):
        convert.convert(paths, tmp_path / 'run', config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'name,content,message',
    [
        ('none.npz', None, 'no such file'),
        ('notes.txt', b'', 'not a checkpoint by its name'),
        ('broken.npz', b'PK\x03\x04 cut off', 'not a readable .npz'),
        (
            'other.npz',
            {'layer.weight': np.zeros(3)},
            'none of the published networks.*layer.weight',
        ),
        ('words.npz', {'main.0.weight': np.array(['a'])}, 'not numbers'),
        ('objects.npz', {'main.0.weight': np.array([{}])}, 'not a readable .npz'),
        ('part.npz', {'main.3.weight': np.zeros(3)}, 'only a part of a published network'),
    ],
)
def test_files_that_cannot_be_used(name, content, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        np.savez(path, **content)
    with pytest.raises(UserError, match=message):
        read_networks(path)


@pytest.mark.parametrize(
    'package,ending', [('torch', 'ckpt'), ('safetensors.numpy', 'safetensors')]
)
def test_a_package_that_is_missing_is_named(package, ending, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f'weights.{ending}'
    path.write_bytes(b'any')
    with pytest.raises(UserError, match=f"extra '{package.partition('.')[0]}'.*pip install"):
        read_networks(path)


def test_safetensors(tmp_path):
    save_file = pytest.importorskip('safetensors.numpy').save_file
    weights = state_dict(DISCRIMINATOR)
    save_file(weights, tmp_path / 'weights.safetensors')
    params = read_networks(tmp_path / 'weights.safetensors')['discriminator'].params
    same(params, weights, 'main.0.weight', 'conv_0/kernel')
    (tmp_path / 'broken.safetensors').write_bytes(b'cut off')
    with pytest.raises(UserError, match='not a readable .safetensors'):
        read_networks(tmp_path / 'broken.safetensors')


def raw_and_average(weights):
    """As the published U-Net's checkpoints: the average is what its inference takes."""
    return {
        'model': {name: 2 * value for name, value in weights.items()},
        'ema': weights,
        'opt': {'state': {0: {'step': weights['conv_in.bias']}}},
        'epoch': 3,
    }


def lightning_module(weights):
    """As Lightning saves the published training: U-Net, its average, and the autoencoder."""
    torch = pytest.importorskip('torch')
    frozen = {
        name: torch.from_numpy(value) for name, value in state_dict(AUTOENCODER, 'vae.').items()
    }
    return {
        'state_dict': {f'model.{name}': 2 * value for name, value in weights.items()}
        | {f'ema.{name}': value for name, value in weights.items()}
        | frozen,
        'epoch': 3,
        'optimizer_states': [{'state': {}}],
        'loops': {'fit_loop': {}},
    }


@pytest.mark.parametrize(
    'wrap',
    [
        dict,
        raw_and_average,
        lightning_module,
        lambda weights: {'state_dict': weights},
        lambda weights: {'unet': weights, 'optimizer': {'state': weights['conv_in.bias']}},
    ],
)
@pytest.mark.parametrize('ending', ['pt', 'ckpt'])
def test_pytorch_files(wrap, ending, tmp_path):
    torch = pytest.importorskip('torch')
    weights = state_dict(unet('none'))
    path = tmp_path / f'weights.{ending}'
    torch.save(wrap({name: torch.from_numpy(value) for name, value in weights.items()}), path)
    networks = read_networks(path, ASSUMED)
    assert set(networks) == {'unet'} | ({'autoencoder'} if wrap is lightning_module else set())
    same(networks['unet'].params, weights, 'conv_in.weight', 'conv_in/kernel')


def test_pytorch_files_that_are_no_tensors(tmp_path):
    torch = pytest.importorskip('torch')
    import argparse

    path = tmp_path / 'weights.pt'
    for content, message in (
        (b'cut off', 'read'),
        ({'args': argparse.Namespace()}, 'trust'),
        ([1, 2], 'holds list'),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=message) as error:
            read_networks(path)
        assert '\n' not in str(error.value)


def test_the_command_line(command, files, tmp_path):
    call = functools.partial(command, 'convert')
    path, out = files('command', lightning_names()), tmp_path / 'run'
    options = ['--config=configs/ldm.py:smoke', '--config.autoencoder.network.norm_num_groups=4']
    done = call(path, '--out', out, *options)
    assert done.returncode == 0, done.stderr
    assert 'autoencoder, ' in done.stderr and 'fluidjax train' in done.stdout
    again = call(path, '--out', out, *options)
    assert again.returncode == 2 and 'is there already; choose another --out' in again.stderr
    assert again.stderr.strip().count('\n') == 0
