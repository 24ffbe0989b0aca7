"""How long the parts of a configuration take on the backend that is there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.grids import GRIDS
from fluidjax import cli, experiment
from fluidjax.compiling import run_once
from fluidjax.fluid.grid import Grid


def time_part(function: Callable, *arguments: Any, repeats: int) -> dict[str, float]:
    """Compile a function, then the median of its timed calls."""
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(1000.0 * (time.perf_counter() - began))
    return {'milliseconds': statistics.median(times), 'compile_seconds': compile_seconds}


def time_all(config: Any, repeats: int) -> dict[str, dict[str, float]]:
    """Every part of both stages on random brains of the configuration's grid."""
    grid = Grid(GRIDS[config.size].shape, GRIDS[config.size].spacing)
    stages = experiment.build_stages(config, grid)
    auto, diffusion = stages.autoencoder, stages.diffusion
    key = jax.random.key(0)

    def batch_of(size: int) -> dict[str, jax.Array]:
        image = jax.random.uniform(key, (size, *grid.shape, 1), minval=0.3, maxval=0.9)
        return {'image': image, 'brain': jnp.ones_like(image)}

    def step_of(method: Any) -> Callable:
        def gradient(trained: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
            return jax.grad(lambda p: method.loss({**frozen, **p}, batch, key)[0])(trained)
        return gradient

    def split(method: Any, params: Any) -> tuple[Any, Any]:
        trained = {name: params[name] for name in method.trainable}
        return trained, {n: group for n, group in params.items() if n not in method.trainable}

    small = batch_of(stages.autoencoder_training.batch_size)
    large = batch_of(stages.diffusion_training.batch_size)
    auto_params, params = run_once(auto.init, key), run_once(diffusion.init, key)
    one = large['image'][:1]
    parts = {
        f'draw {len(large["image"])} pairs': (diffusion.pairs, large, key),
        f'encode {len(large["image"])}': (diffusion.encode, params, large['image']),
        f'autoencoder gradient, batch {len(small["image"])}':
            (step_of(auto), *split(auto, auto_params), small, key),
        f'diffusion gradient, batch {len(large["image"])}':
            (step_of(diffusion), *split(diffusion, params), large, key),
        'reconstruct 1': (diffusion.reconstruct, params, one, key),
    }
    table = {}
    for name, (function, *arguments) in parts.items():
        table[name] = time_part(function, *arguments, repeats=repeats)
        cli.tell(f'{name:34s}{table[name]["milliseconds"]:12.1f} ms'
                 f'{table[name]["compile_seconds"]:10.1f} s to compile')
    return table
