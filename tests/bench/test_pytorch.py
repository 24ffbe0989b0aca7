"""Our networks in PyTorch: the same function, and a training step that trains."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from fluidjax.bench import networks, pytorch  # noqa: E402
from fluidjax.bench.case import Case, forward_row  # noqa: E402
from fluidjax.models.autoencoder import AutoencoderConfig  # noqa: E402
from fluidjax.models.image_unet import ImageUNetConfig  # noqa: E402
from fluidjax.models.unet import UNetConfig  # noqa: E402

PUBLISHED = UNetConfig(
    channels=(32, 32, 64), num_head_channels=32, condition='vector', condition_slices=4
)
OURS = UNetConfig(
    channels=(8, 16),
    attention_levels=(False, True),
    num_head_channels=8,
    norm_num_groups=4,
    condition='both',
    position_shape=(4, 6, 8),
)
CODE = AutoencoderConfig(
    channels=(8, 8), norm_num_groups=4, patch=2, linear_path=True, num_res_blocks=1
)
CASES = {
    'published U-Net': Case(PUBLISHED, (4, 8, 8, 3)),
    'our U-Net': Case(OURS, (4, 6, 8, 3), batch=2),
    'autoencoder': Case(CODE, (8, 12, 8, 1)),
    'image U-Net': Case(ImageUNetConfig((8, 8), patch=2), (8, 12, 8, 1)),
}


@pytest.fixture(scope='module', autouse=True)
def one_core():
    """As tests run beside each other."""
    pytorch.use_cores(1)


@pytest.mark.parametrize('name', CASES)
def test_the_same_parameters_give_the_same_output(name):
    case = CASES[name]
    row = forward_row(case)
    # Larger than at the start of training, and none of them zero.
    params = jax.tree.map(lambda x: 5.0 * x, networks.some_numbers(row.params))
    keys = iter(jax.random.split(jax.random.key(0), 2))
    batch = {name: jax.random.uniform(next(keys), x.shape) for name, x in row.batch.items()}
    ours = jax.jit(row.function)(params, batch, jax.random.key(0))[1]
    network = pytorch.network_of(case)
    pytorch.load(network, params)
    inputs = [pytorch.channels_first(x) for x in batch.values()]
    if isinstance(case.config, UNetConfig):
        inputs.insert(1, torch.full((case.batch,), 500))
    with torch.no_grad():
        theirs = network(*inputs).permute(0, 2, 3, 4, 1).numpy()
    assert np.std(theirs) > 0.01
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_published_sizes_have_as_many_parameters_in_pytorch():
    network = pytorch.network_of(Case(UNetConfig(condition='vector'), (20, 20, 20, 3)))
    assert sum(p.numel() for p in network.parameters()) == 54_923_910
    halves = [
        pytorch.network_of(Case(AutoencoderConfig(), (8, 8, 8, 1), way=way))
        for way in ('encode', 'decode')
    ]
    assert sum(p.numel() for half in halves for p in half.parameters()) == 13_766_248


def test_training_steps_in_pytorch_lower_the_loss():
    config = dataclasses.replace(CODE, remat=True)
    step = pytorch.Timed(Case(config, (8, 8, 8, 1), batch=2), 'cpu', compiled=False).trainer()
    losses = [float(step()) for _ in range(20)]
    assert losses[-1] < losses[0] and all(np.isfinite(losses))


def test_a_row_is_measured_in_bfloat16():
    config = dataclasses.replace(CODE, dtype='bfloat16')
    measured = pytorch.measure(Case(config, (8, 8, 8, 1), way='encode'), step=True, repeats=1)
    assert measured['milliseconds'] > 0 and measured['compile_seconds'] > 0
