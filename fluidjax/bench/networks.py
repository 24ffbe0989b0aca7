"""What the networks of a configuration cost: parameters, operations, memory and time of each.

On the backend that is there they are compiled and timed; for a TPU topology (`fluidjax.bench.aot`) they
are compiled alone, and the compiler's estimates stand for the times. Batch 1 a device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fluidjax.base import cli
from fluidjax.bench import aot
from fluidjax.diffusion.losses import denoising_loss
from fluidjax.diffusion.schedule import linear_schedule, q_sample
from fluidjax.fluid.grid import Grid
from fluidjax.methods.autoencoder import AutoencoderMethod
from fluidjax.models.autoencoder import Autoencoder
from fluidjax.models.conv import target_backend
from fluidjax.models.discriminator import Discriminator
from fluidjax.models.unet import UNet, UNetConfig
from fluidjax.runs.cohort import model_grid
from fluidjax.training.optimizer import make_optimizer
from fluidjax.training.settings import StageSettings
from fluidjax.training.state import create_state
from fluidjax.training.steps import make_train_step

AXIS = 'device'
CONDITIONS = {'plain': 'none', 'concat': 'concat', 'vector': 'vector'}


@dataclasses.dataclass(frozen=True)
class Row:
    """One computation to measure.

    Attributes:
        params: shapes of all its parameters, by name.
        function: `(state, batch, key) -> (state, anything)` of one device, inside a mapped axis.
        batch: shapes of one device's share.
        start: state from parameters; a forward pass has the parameters themselves.
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
    """Every network of a latent method, and its training steps.

    Args:
        config: a configuration of both stages.
        shape: the volumes' grid; None: the configuration's.
        dtype: of the computation; None: the configuration's.

    Raises:
        UserError: the configuration has no autoencoder and U-Net.
    """
    (first, first_training), (last, last_training) = _methods(config, shape, dtype)
    volume = _spec(1, *first.grid.shape, 1)
    z = _spec(1, *first.latent_shape)
    params = jax.eval_shape(first.init, _key())
    rows = _autoencoder_rows(first, params, volume, z)
    for name, condition in CONDITIONS.items():
        network = dataclasses.replace(last.network, condition=condition)
        rows |= _unet_rows(f'unet_{name}', network, z, last_training)
    brains = {'image': volume, 'brain': volume}
    rows['autoencoder_step'] = training_row(
        first.loss, first.trainable, params, brains, first_training
    )
    rows[f'{config.method}_step'] = training_row(
        last.loss, last.trainable, jax.eval_shape(last.init, _key()), brains, last_training
    )
    return rows


def _methods(config: Any, shape: tuple[int, ...] | None, dtype: str | None) -> tuple:
    """First and last method of a configuration, each with its training settings."""
    from fluidjax.runs.stages import build_stages

    grid = model_grid(config)
    if shape is not None:
        grid = Grid(shape, grid.spacing)
    stages = build_stages(config, grid)
    first, last = stages[0].method, stages[-1].method
    if not isinstance(first, AutoencoderMethod) or not isinstance(last.network, UNetConfig):
        raise cli.UserError(
            f'config.method: bench models measures latent methods, '
            f'{config.method} has no autoencoder; try --config=configs/ldm.py'
        )
    if dtype is not None:
        first = _with_dtype(first, dtype)
        last = dataclasses.replace(_with_dtype(last, dtype), autoencoder=first)
    return (first, stages[0].training), (last, stages[-1].training)


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
    params = jax.eval_shape(model.init, _key(), z, _spec(1, dtype=jnp.int32), cond)['params']
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
    """The step of a loss on new samples, gradient, update and average over devices."""
    optimizer = make_optimizer(training.optimizer, training.steps, trainable)
    step = make_train_step(loss, optimizer, training, AXIS)
    batch = {**batch, 'first': _spec(1, dtype=jnp.int32)}
    return Row(params, step, batch, lambda p: create_state(p, trainable, optimizer), donate=True)


def _spec(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def compile_row(row: Row, devices: list[Any]) -> Any:
    """The computation compiled for devices, the state replicated and the batch spread over them."""
    mesh = Mesh(np.array(devices), (AXIS,))
    whole, spread = PartitionSpec(), PartitionSpec(AXIS)
    function = jax.shard_map(
        row.function,
        mesh=mesh,
        in_specs=(whole, spread, whole),
        out_specs=(whole, spread if not row.donate else whole),
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
        on(_key(), whole),
    )
    jitted = jax.jit(function, donate_argnums=(0,) if row.donate else ())
    return jitted.lower(*arguments).compile()


def count(params: Any) -> int:
    """Numbers in a tree of arrays or their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def needs(row: Row, compiled: Any) -> dict[str, float]:
    """Parameters, operations and bytes of a compiled computation, for one device."""
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
    """Small normal numbers in the shapes of a tree."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype),
        shapes,
    )


def time_row(row: Row, compiled: Any, repeats: int) -> float:
    """Median seconds of a call after one to warm up."""
    state = row.start(some_numbers(row.params))
    batch = jax.tree.map(
        lambda x: 0.5 + jnp.abs(x) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        some_numbers(row.batch),
    )
    key, times = jax.random.key(0), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        after, rest = compiled(state, batch, key)
        jax.block_until_ready((after, rest))
        times.append(time.perf_counter() - began)
        state = after if row.donate else state
    return statistics.median(times[1:])


def chosen_rows(rows: dict[str, Row], only: list[str]) -> dict[str, Row]:
    """The rows named, all where none is.

    Raises:
        UserError: no such row.
    """
    for name in only:
        if name not in rows:
            raise cli.UserError(f"--only: no '{name}'; there are {', '.join(rows)}")
    return {name: row for name, row in rows.items() if not only or name in only}


def measure(rows: dict[str, Row], repeats: int) -> dict[str, dict[str, float]]:
    """Compile and time rows on the first device that is there; print each as it comes."""
    device = jax.devices()[0]
    cli.tell(
        f'{device.platform} ({device.device_kind}), batch 1; TF: 1e12 operations; GB: '
        'arguments, results and temporaries\n'
        f'{"":22s}{"parameters":>12s}{"TF":>9s}{"GB":>8s}{"ms":>12s}{"compile s":>11s}'
    )
    table = {}
    for name, row in rows.items():
        began = time.perf_counter()
        compiled = compile_row(row, [device])
        compile_seconds = time.perf_counter() - began
        made = table[name] = needs(row, compiled) | {
            'compile_seconds': compile_seconds,
            'milliseconds': 1000.0 * time_row(row, compiled, repeats),
        }
        cli.tell(
            f'{name:22s}{made["parameters"]:12,d}{made["teraflop"]:9.3f}'
            f'{made["gigabytes"]:8.2f}{made["milliseconds"]:12.1f}{compile_seconds:11.1f}'
        )
    return {
        'device': f'{device.platform} {device.device_kind}',
        'jax': jax.__version__,
        'rows': table,
    }


def compile_for(
    rows: dict[str, Row], topology: str, context: Callable[[], Any] = contextlib.nullcontext
) -> dict[str, Any]:
    """Compile rows for a TPU topology, run nothing, and print what they need of one chip.

    Args:
        context: entered around tracing, e.g. `lambda: conv_algorithm('direct')`.
    """
    chip, devices = aot.chip_of(topology), aot.topology_devices(topology)
    cli.tell(
        f'{topology}, {len(devices)} chips of {chip.gigabytes:.0f} GB, batch 1 on each; '
        'estimates of the compiler, nothing was run\n'
        f'{"":22s}{"parameters":>12s}{"TF":>8s}{"arg GB":>8s}{"temp GB":>8s}{"GB":>8s}'
        f'{"of chip":>9s}{"ms":>9s}{"of peak":>9s}{"conv":>6s}{"copy":>6s}'
    )
    table = {}
    for name, row in rows.items():
        try:
            with target_backend('tpu'), context():
                compiled = compile_row(row, devices)
        except jax.errors.JaxRuntimeError as error:
            table[name] = {'error': str(error).strip().splitlines()[0]}
            cli.tell(f'{name:22s} does not compile: {table[name]["error"][:150]}')
            continue
        table[name] = needs(row, compiled) | aot.estimate(compiled, chip)
        table[name]['share_of_memory'] = 1e9 * table[name]['gigabytes'] / 2**30 / chip.gigabytes
        cli.tell(_estimate_line(name, table[name]))
    return {'topology': topology, 'jax': jax.__version__, 'rows': table}


def _estimate_line(name: str, made: dict[str, float]) -> str:
    seconds = made['seconds']
    share = lambda value: '-' if math.isnan(value) else f'{value:.0%}'  # noqa: E731
    shown = '-' if math.isnan(seconds) else f'{1000.0 * seconds:.1f}'
    return (
        f'{name:22s}{made["parameters"]:12,d}{made["teraflop"]:8.2f}'
        f'{made["argument_gigabytes"]:8.2f}{made["temporary_gigabytes"]:8.2f}'
        f'{made["gigabytes"]:8.2f}{made["share_of_memory"]:9.0%}{shown:>9s}'
        f'{share(made["share_of_peak"]):>9s}{share(made["convolution_seconds"] / seconds):>6s}'
        f'{share(made["copy_seconds"] / seconds):>6s}'
    )
