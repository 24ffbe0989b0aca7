"""Time the parts of a configuration: `python -m fluidjax.bench --config=configs/ldm.py:demo`.

Milliseconds a call (median) and seconds to compile, on whatever backend is there, for drawing
pairs, encoding, the gradients of both stages and reconstruction, at the training's batch sizes.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', lock_config=True)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each part.', lower_bound=1)
JSON = flags.DEFINE_string('json', None, 'Also write the table to this file.')


def time_part(function: Callable, *arguments: Any, repeats: int) -> dict[str, float]:
    """Compile a function, then the median of its timed calls."""
    import jax

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
    import jax
    import jax.numpy as jnp

    from data_pipelines.grids import GRIDS
    from fluidjax import experiment
    from fluidjax.compiling import run_once
    from fluidjax.fluid.grid import Grid

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


def main() -> None:
    """Read the flags and time."""
    if CONFIG.value is None:
        raise cli.UserError('bench needs --config=FILE, e.g. --config=configs/ldm.py:demo')
    table = time_all(CONFIG.value, REPEATS.value)
    if JSON.value:
        from fluidjax.files import write_text

        write_text(Path(JSON.value), json.dumps(table, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
