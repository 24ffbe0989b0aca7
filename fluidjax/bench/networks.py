"""The networks of a configuration: parameters, operations, memory and time of each.

On this machine they are compiled and timed. For a TPU topology (`fluidjax.bench.aot`) they are only
compiled, and the compiler's estimates are shown. Batch 1 per device.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fluidjax.base import cli
from fluidjax.base.subject import TISSUES
from fluidjax.bench import aot
from fluidjax.bench.timer import Table, median_seconds, this_machine
from fluidjax.diffusion.losses import denoising_loss
from fluidjax.diffusion.schedule import linear_schedule, q_sample
from fluidjax.fluid.grid import Grid
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.models.autoencoder import Autoencoder
from fluidjax.models.conv import target_backend
from fluidjax.models.discriminator import Discriminator
from fluidjax.models.unet import UNet, UNetConfig
from fluidjax.runs.cohort import model_grid
from fluidjax.training.parallel import compiler_options
from fluidjax.training.settings import StageSettings, make_optimizer
from fluidjax.training.state import create_state
from fluidjax.training.steps import make_train_step

AXIS = 'device'
# Of the published U-Nets, which are compared at the paper's size.
PUBLISHED = {'unet_plain': 'none', 'unet_concat': 'concat', 'unet_vector': 'vector'}
MEASURED = Table(
    22,
    ('parameters', 'parameters', '12,d'),
    ('TF', 'teraflop', '9.3f'),
    ('GB', 'gigabytes', '8.2f'),
    ('ms', 'milliseconds', '12.1f'),
    ('compile s', 'compile_seconds', '11.1f'),
)
ESTIMATED = Table(
    22,
    ('parameters', 'parameters', '12,d'),
    ('TF', 'teraflop', '8.2f'),
    ('arg GB', 'argument_gigabytes', '8.2f'),
    ('temp GB', 'temporary_gigabytes', '8.2f'),
    ('GB', 'gigabytes', '8.2f'),
    ('of chip', 'share_of_memory', '9.0%'),
    ('ms', 'milliseconds', '9.1f'),
    ('of peak', 'share_of_peak', '9.0%'),
    ('conv', 'convolution_share', '6.0%'),
    ('copy', 'copy_share', '6.0%'),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One computation to measure.

    Attributes:
        params: shapes of all its parameters, by name.
        function: `(state, batch, key) -> (state, anything)` of one device, inside a mapped axis.
        batch: shapes of one device's share of the batch.
        start: makes the state from the parameters; for a forward pass they are the same.
        donate: whether the state is replaced, as in training.
    """

    params: Any
    function: Callable[..., Any]
    batch: Any
    start: Callable[[Any], Any] = lambda params: params
    donate: bool = False


def rows_of(
    config: Any, shape: tuple[int, ...] | None = None, dtype: str | None = None
) -> dict[str, Row]:
    """The networks of a latent method's autoencoder and diffusion, and their training steps.

    At the paper's size the U-Net is shown with each of the published conditions.

    Args:
        config: a configuration with an autoencoder and a U-Net.
        shape: of the volumes; None for the configuration's grid.
        dtype: of the computation; None for the configuration's.

    Raises:
        UserError: the configuration has no autoencoder and U-Net.
    """
    (first, first_training), (last, last_training) = _methods(config, shape, dtype)
    volume = spec(1, *first.grid.shape, 1)
    z = spec(1, *first.latent_shape)
    params = jax.eval_shape(first.init, key_spec())
    rows = _autoencoder_rows(first, params, volume, z)
    own = {'unet': last.network.condition}
    for name, condition in (PUBLISHED if config.size == 'paper' else own).items():
        network = dataclasses.replace(last.network, condition=condition)
        rows |= _unet_rows(name, network, z, last_training)
    for name, method, training, own in (
        ('autoencoder', first, first_training, params),
        (config.method, last, last_training, jax.eval_shape(last.init, key_spec())),
    ):
        scans = scans_spec(method, 1)
        rows[f'{name}_step'] = training_row(method.loss, method.trainable, own, scans, training)
    return rows


def _methods(config: Any, shape: tuple[int, ...] | None, dtype: str | None) -> tuple:
    """The autoencoder of a configuration and its latent method, each with its training settings."""
    from fluidjax.runs.stages import build_stages, longest_stage

    grid = model_grid(config)
    if shape is not None:
        grid = Grid(shape, grid.spacing)
    stages = build_stages(config, grid)
    first, last = stages[0].method, longest_stage(stages).method
    if not isinstance(first, AutoencoderMethod) or not isinstance(last.network, UNetConfig):
        raise cli.UserError(
            f'config.method: bench models measures latent methods, '
            f'{config.method} has no autoencoder; try --config=configs/ldm.py'
        )
    if dtype is not None:
        first = _with_dtype(first, dtype)
        last = dataclasses.replace(_with_dtype(last, dtype), autoencoder=first)
    return (first, stages[0].training), (last, longest_stage(stages).training)


def _with_dtype(method: Any, dtype: str) -> Any:
    return dataclasses.replace(method, network=dataclasses.replace(method.network, dtype=dtype))


def _autoencoder_rows(
    method: AutoencoderMethod, params: Any, volume: Any, z: Any
) -> dict[str, Row]:
    network, losses = Autoencoder(method.network), method.losses
    judge = Discriminator(
        losses.discriminator_features, losses.discriminator_layers, method.network.dtype
    )

    def parts(*names: str) -> Any:
        return {name: group for name, group in params['autoencoder'].items() if name in names}

    def forward(model: Any, params: Any, batch: Any, **how: str) -> Row:
        return Row(params, lambda p, x, key: (p, model.apply({'params': p}, x, **how)), batch)

    into = parts('encoder', 'quant_mu', 'quant_log_var', 'linear_encode')
    out_of = parts('decoder', 'post_quant', 'linear_decode')
    return {
        'encode': forward(network, into, volume, method='encode'),
        'decode': forward(network, out_of, z, method='decode'),
        'autoencode': forward(network, params['autoencoder'], volume),
        'discriminator': forward(judge, params['discriminator'], volume),
    }


def _unet_rows(name: str, network: UNetConfig, z: Any, training: StageSettings) -> dict[str, Row]:
    """A U-Net's forward pass, and its training step from given latents."""
    model = UNet(network)
    cond = None if network.condition == 'none' else z
    params = jax.eval_shape(model.init, key_spec(), z, spec(1, dtype=jnp.int32), cond)['params']
    schedule = linear_schedule(1000)

    def forward(params: Any, batch: Any, key: Any) -> tuple[Any, jax.Array]:
        return params, model.apply(
            {'params': params}, batch['z'], jnp.full((1,), 500), batch.get('cond')
        )

    def loss(params: Any, batch: Any, key: jax.Array, share: Any) -> tuple[jax.Array, dict]:
        z_0, t = batch['z'], jax.random.randint(key, (1,), 0, 1000)
        eps = jax.random.normal(key, z_0.shape)
        z_t = q_sample(schedule, z_0, t, eps)
        output = model.apply({'params': params['unet']}, z_t, t, batch.get('cond'))
        return jnp.mean(denoising_loss(schedule, 'eps', output, z_0, z_t, t, eps)['loss']), {}

    batch = {'z': z} if cond is None else {'z': z, 'cond': cond}
    return {
        name: Row(params, forward, batch),
        f'{name}_step': training_row(loss, ('unet',), {'unet': params}, batch, training),
    }


def training_row(
    loss: Callable, trainable: tuple[str, ...], params: Any, batch: Any, training: StageSettings
) -> Row:
    """A training step on new samples: loss, gradient, average over the devices, update."""
    optimizer = make_optimizer(training.optimizer, training.steps, trainable)
    step = make_train_step(loss, optimizer, training, AXIS)

    def row_step(state: Any, batch: Any, key: jax.Array) -> Any:
        return step(state, batch['samples'], batch['first'].reshape(()), key)

    batch = {'samples': batch, 'first': spec(1, dtype=jnp.int32)}
    return Row(
        params, row_step, batch, lambda p: create_state(p, trainable, optimizer), donate=True
    )


def spec(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """The shape of an array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def scans_spec(method: Any, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of scans as training brings them to a method."""
    healthy = method if method.pairs is None else method.pairs
    shape = healthy.grid.shape
    batch = {'image': spec(size, *shape, 1), 'brain': spec(size, *shape, 1, dtype=jnp.uint8)}
    if getattr(healthy, 'synthesis', None) is not None:
        batch['tissue'] = spec(size, *shape, len(TISSUES), dtype=jnp.uint8)
    return batch


def key_spec() -> Any:
    """The shape of a random key."""
    return jax.eval_shape(lambda: jax.random.key(0))


def compile_row(row: Row, devices: list[Any]) -> Any:
    """Compile a row for devices, with its state on each of them and its batch spread over them."""
    mesh = Mesh(np.array(devices), (AXIS,))
    whole, spread = PartitionSpec(), PartitionSpec(AXIS)
    # A forward pass that gave back its parameters would copy them.
    forward = lambda state, batch, key: row.function(state, batch, key)[1]
    function = jax.shard_map(
        row.function if row.donate else forward,
        mesh=mesh,
        in_specs=(whole, spread, whole),
        out_specs=(whole, whole) if row.donate else spread,
        check_vma=False,
    )

    def on(tree: Any, spec: PartitionSpec, times: int = 1) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (times * x.shape[0], *x.shape[1:]) if times > 1 else x.shape,
                x.dtype,
                sharding=NamedSharding(mesh, spec),
            ),
            tree,
        )

    arguments = (
        on(jax.eval_shape(row.start, row.params), whole),
        on(row.batch, spread, len(devices)),
        on(key_spec(), whole),
    )
    jitted = jax.jit(function, donate_argnums=(0,) if row.donate else ())
    return jitted.lower(*arguments).compile(compiler_options(devices[0]))


def count(params: Any) -> int:
    """The number of values in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def needs(row: Row, compiled: Any) -> dict[str, float]:
    """Parameters, operations and memory of a compiled row, for one device."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    arguments = memory.argument_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        'parameters': count(row.params),
        'teraflop': float(cost.get('flops', math.nan)) / 1e12,
        'gigabytes_accessed': float(cost.get('bytes accessed', math.nan)) / 1e9,
        'argument_gigabytes': arguments / 1e9,
        'temporary_gigabytes': memory.temp_size_in_bytes / 1e9,
        'gigabytes': (arguments + results + memory.temp_size_in_bytes) / 1e9,
    }


def some_numbers(shapes: Any) -> Any:
    """Small normal numbers with the shapes of a tree."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype),
        shapes,
    )


def caller(row: Row, compiled: Any, devices: int = 1) -> Callable[[], Any]:
    """A call of a compiled row on small numbers, for as many devices as it was compiled for."""
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((devices * x.shape[0], *x.shape[1:]), x.dtype), row.batch
    )
    batch = jax.tree.map(
        lambda x: 0.5 + jnp.abs(x) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        some_numbers(batch),
    )
    batch = jax.tree.map(lambda x: jnp.ones_like(x) if x.dtype == jnp.uint8 else x, batch)
    arguments = row.start(some_numbers(row.params)), batch, jax.random.key(0)
    state, batch, key = jax.device_put(arguments, compiled.input_shardings[0])

    def call() -> Any:
        nonlocal state
        result = compiled(state, batch, key)
        state = result[0] if row.donate else state
        return result

    return call


def time_row(row: Row, compiled: Any, repeats: int) -> float:
    """Median seconds of a call."""
    return median_seconds(caller(row, compiled), repeats)


def chosen_rows(rows: dict[str, Row], only: list[str]) -> dict[str, Row]:
    """The rows of some names, or all rows for no names.

    Raises:
        UserError: there is no row of a name.
    """
    for name in only:
        if name not in rows:
            raise cli.UserError(f"--only: no '{name}'; there are {', '.join(rows)}")
    return {name: row for name, row in rows.items() if not only or name in only}


def measure(rows: dict[str, Row], repeats: int) -> dict[str, dict[str, float]]:
    """Compile and time rows on the first device, and print a table."""
    machine, device = this_machine(), jax.devices()[0]
    cli.tell(
        f'{machine["device"]}, batch 1; TF: 1e12 operations; GB: arguments, results and temporaries'
    )
    MEASURED.print_head()
    table = {}
    for name, row in rows.items():
        began = time.perf_counter()
        compiled = compile_row(row, [device])
        compile_seconds = time.perf_counter() - began
        table[name] = needs(row, compiled) | {
            'compile_seconds': compile_seconds,
            'milliseconds': 1000.0 * time_row(row, compiled, repeats),
        }
        MEASURED.print_row(name, table[name])
    return {**machine, 'rows': table}


def compile_for(rows: dict[str, Row], topology: str, size: int = 1) -> dict[str, Any]:
    """Compile rows for a TPU topology without running them, and print a table for one chip.

    `size` is the batch of a chip that the rows were made with.
    """
    chip, devices = aot.chip_of(topology), aot.topology_devices(topology)
    cli.tell(
        f'{topology}, {len(devices)} chips of {chip.gigabytes:.0f} GB, batch {size} on each; '
        'estimates of the compiler, nothing was run'
    )
    ESTIMATED.print_head()
    table = {}
    for name, row in rows.items():
        try:
            with target_backend('tpu'):
                compiled = compile_row(row, devices)
        except jax.errors.JaxRuntimeError as error:
            table[name] = {'error': str(error).strip().splitlines()[0]}
            cli.tell(f'{name:22s} does not compile: {table[name]["error"][:150]}')
            continue
        needed, estimated = needs(row, compiled), aot.estimate(compiled, chip)
        share = 1e9 * needed['gigabytes'] / 2**30 / chip.gigabytes
        table[name] = {**needed, **estimated, 'share_of_memory': share}
        seconds = estimated['seconds']
        shown = {
            'milliseconds': 1000.0 * seconds,
            'convolution_share': estimated['convolution_seconds'] / seconds,
            'copy_share': estimated['copy_seconds'] / seconds,
        }
        ESTIMATED.print_row(name, table[name] | shown)
    return {'topology': topology, 'jax': jax.__version__, 'rows': table}
