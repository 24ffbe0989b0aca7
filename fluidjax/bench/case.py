"""The cases that are timed in JAX and in PyTorch alike: a network, its inputs, its training step.

A training step is the same work in both: forward pass in the network's dtype, mean squared
difference from a constant, gradient, clipping by the global norm, AdamW, and the moving average of
the parameters. The losses of the methods are left out; they are elementwise.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fluidjax.base.errors import UserError
from fluidjax.base.settings import check
from fluidjax.bench.networks import Row, key_spec, spec, training_row
from fluidjax.fluid.grid import Grid
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.models.autoencoder import Autoencoder, AutoencoderConfig
from fluidjax.models.image_unet import ImageUNet, ImageUNetConfig
from fluidjax.models.unet import UNet, UNetConfig
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.stages import Stage, build_stages, longest_stage
from fluidjax.training.settings import OptimizerSettings, StageSettings

GOAL = 0.5  # what the training step makes every output equal to
TRAINING = StageSettings(steps=1000, batch_size=1, optimizer=OptimizerSettings())
# What a half of an autoencoder does not use of the whole.
UNUSED = {
    'apply': (),
    'encode': ('decoder', 'post_quant', 'linear_decode'),
    'decode': ('encoder', 'quant_mu', 'quant_log_var', 'linear_encode'),
}
OLDEST_TORCH = (2, 4)  # the first with AdamW in one pass on a CPU
MODULES: dict[type, type[nn.Module]] = {
    AutoencoderConfig: Autoencoder,
    ImageUNetConfig: ImageUNet,
    UNetConfig: UNet,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a batch.

    Attributes:
        config: its sizes, and dtype.
        shape: of one input volume or latent, (x, y, z, channels).
        batch: volumes in the batch.
        way: 'encode' or 'decode' for one half of an autoencoder, else 'apply'.
    """

    config: AutoencoderConfig | ImageUNetConfig | UNetConfig
    shape: tuple[int, int, int, int]
    batch: int = 1
    way: str = 'apply'

    def __post_init__(self) -> None:
        check(self.batch >= 1, 'batch', self.batch, 'must be at least 1')
        if self.way not in UNUSED or (self.way != 'apply' and not self._is_autoencoder):
            raise UserError(f'case: {self.way!r} is not what {type(self.config).__name__} can do')

    @property
    def _is_autoencoder(self) -> bool:
        return isinstance(self.config, AutoencoderConfig)

    @property
    def conditional(self) -> bool:
        """Whether the network gets a second volume, the condition."""
        return isinstance(self.config, UNetConfig) and self.config.condition != 'none'

    def with_batch(self, batch: int) -> Case:
        """The same case on another number of volumes."""
        return dataclasses.replace(self, batch=batch)


def forward_row(case: Case) -> Row:
    """The forward pass in JAX, for `networks.compile_row`."""
    model, inputs = MODULES[type(case.config)](case.config), _inputs(case)
    params = _parameters(model, case, inputs)

    def forward(params: Any, batch: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return params, _output(model, case, params, batch)

    return Row(params, forward, inputs)


def step_row(case: Case) -> Row:
    """The training step in JAX, for `networks.compile_row`."""
    model, inputs = MODULES[type(case.config)](case.config), _inputs(case)

    def loss(params: Any, batch: Any, key: jax.Array, share: Any) -> tuple[jax.Array, dict]:
        output = _output(model, case, params['network'], batch)
        return jnp.mean(jnp.square(output - GOAL)), {}

    params = {'network': _parameters(model, case, inputs)}
    return training_row(loss, ('network',), params, inputs, TRAINING)


def _inputs(case: Case) -> dict[str, jax.ShapeDtypeStruct]:
    names = ('x', 'cond') if case.conditional else ('x',)
    return dict.fromkeys(names, spec(case.batch, *case.shape))


def _output(model: nn.Module, case: Case, params: Any, batch: Any) -> jax.Array:
    """The network's output; of an encoder the mean of the latent."""
    x, given = batch['x'], {'params': params}
    if isinstance(case.config, UNetConfig):
        t = jnp.full(len(x), 500)
        return model.apply(given, x, t, batch.get('cond'))
    if case.way == 'decode':
        return model.apply(given, x, method='decode')
    output = model.apply(given, x, **({'method': 'encode'} if case.way == 'encode' else {}))
    return output[0] if isinstance(output, tuple) else output


def _parameters(model: nn.Module, case: Case, inputs: Any) -> Any:
    """Shapes of the parameters that the case uses."""
    x = inputs['x']
    if case.way == 'decode':  # parameters are made from a volume
        sides = (side * case.config.factor for side in case.shape[:3])
        x = spec(1, *sides, case.config.in_channels)
    arguments = (x,)
    if isinstance(case.config, UNetConfig):
        arguments = (x, spec(case.batch, dtype=jnp.int32), inputs.get('cond'))
    params = dict(jax.eval_shape(model.init, key_spec(), *arguments)['params'])
    return {name: group for name, group in params.items() if name not in UNUSED[case.way]}


def pytorch() -> str | None:
    """The version of PyTorch, which is optional; None if it is missing.

    Raises:
        UserError: it is too old to be compared.
    """
    if importlib.util.find_spec('torch') is None:
        return None
    version = importlib.metadata.version('torch')
    numbers = tuple(int(part) for part in re.findall(r'\d+', version)[:2])
    if numbers < OLDEST_TORCH:
        raise UserError(
            f'PyTorch {version} is too old to be compared; '
            f"pip install 'torch>={'.'.join(map(str, OLDEST_TORCH))}'"
        )
    return version


@dataclasses.dataclass(frozen=True)
class Networks:
    """What is measured of a configuration.

    Attributes:
        config: with the changes below, in every section that has a network.
        grid: of the volumes.
        autoencoder, latent: the stage of the autoencoder and that of the diffusion or bridge.
        cases: by name; `unet`, `encode`, `decode`, `autoencoder` and `image unet`.
    """

    config: Any
    grid: Grid
    autoencoder: Stage
    latent: Stage
    cases: dict[str, Case]


def networks_of(
    config: Any,
    shape: tuple[int, ...] | None = None,
    batch: int = 1,
    dtype: str | None = None,
    convolution: str | None = None,
) -> Networks:
    """The networks of a configuration of `configs/ldm.py`, and the one of `configs/regression.py`.

    Args:
        config: it is not changed.
        shape: of the volumes; None for the configuration's grid.
        batch: volumes per call.
        dtype, convolution: of every network; None for the configuration's.

    Raises:
        UserError: the configuration has no autoencoder and U-Net, or the shape does not fit.
    """
    from configs import regression

    config, on_images = config.copy_and_resolve_references(), regression.get_config(config.size)
    for each in (config, on_images):
        each.convolution = convolution or each.get('convolution', 'auto')
        for section in each.values():
            if dtype and 'network' in getattr(section, 'keys', tuple)():
                section.network.dtype = dtype
    grid = model_grid(config)
    grid = grid if shape is None else Grid(shape, grid.spacing)
    stages = build_stages(config, grid)
    first, latent = stages[0], longest_stage(stages)
    if not isinstance(first.method, AutoencoderMethod):
        raise UserError(
            f'config.method: {config.method} has no autoencoder and U-Net of latents; '
            'try --config=configs/ldm.py'
        )
    z, volume = first.method.latent_shape, (*grid.shape, 1)
    image = build_stages(on_images, grid)[-1].method.network
    cases = {
        'unet': Case(latent.method.network, z, batch),
        'encode': Case(first.method.network, volume, batch, 'encode'),
        'decode': Case(first.method.network, z, batch, 'decode'),
        'autoencoder': Case(first.method.network, volume, batch),
        'image unet': Case(image, volume, batch),
    }
    return Networks(config, grid, first, latent, cases)
