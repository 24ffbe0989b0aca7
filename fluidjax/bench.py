"""Measure fluidjax where it runs: `python -m fluidjax.bench [SUBJECT] [OPTIONS]`.

    bench --config=configs/ldm.py:demo            the parts of both training stages
    bench train --config=configs/ldm.py:demo      training on 1, 2, 4, ... devices, and its parts
    bench train --aot=v5e:4x4                     the same by a TPU compiler's estimates
    bench fluid --shape 160 160 160 --batch 4     carrying a lesion, scheme by scheme
    bench fluid --config=configs/ldm.py           also the share of a training step it takes
    bench models --config=configs/ldm.py:demo     every network, forward and training step
    bench models --only encode --shape 96 96 96 --dtype=float32
    bench models --aot=v5e:2x4                    compiled for a TPU, which need not be there
    bench map --shape 160 160 160                 from a counterpart to the anomaly map

Milliseconds are medians; compiling is timed apart. See `fluidjax.timing`, `train_timing`,
`fluid_timing` and `model_timing`, which say what each column means.
"""

import json
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

SUBJECTS = ('parts', 'train', 'fluid', 'models', 'map')
CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', lock_config=True)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each part.', lower_bound=1)
JSON = flags.DEFINE_string('json', None, 'Also write the numbers to this file.')
SHAPE = flags.DEFINE_list('shape', ['160', '160', '160'], 'fluid, models, map: voxels along '
                          'x, y (, z).')
SPACING = flags.DEFINE_list('spacing', None, 'fluid: voxel size in mm; one that fills 160 mm along '
                            'the first axis without.')
BATCH = flags.DEFINE_integer('batch', 4, 'fluid: volumes a call.', lower_bound=1)
TIME = flags.DEFINE_float('time', 0.9, 'fluid: transport time.', lower_bound=0.0)
AOT = flags.DEFINE_string('aot', None, 'models, train: compile for this TPU topology, e.g. '
                          'v5e:2x4, and run nothing; needs pip install libtpu.')
DTYPE = flags.DEFINE_enum('dtype', None, ('float32', 'bfloat16'), 'models: of the computation, '
                          "instead of the configuration's.")
ONLY = flags.DEFINE_list('only', [], 'models, train: these rows alone, e.g. encode,decode.')
QUICK = flags.DEFINE_boolean('quick', False, 'fluid: three of the schemes alone.')


def main(words: list[str]) -> None:
    """Read the flags and measure."""
    from fluidjax.files import write_text

    subject, *more = words or ['parts']
    if subject not in SUBJECTS or (more and not (subject in ('models', 'train') and ONLY.value)):
        raise cli.UserError(f"bench knows {', '.join(SUBJECTS)}, not '{' '.join(words)}'")
    if subject in ('models', 'train'):
        table = {'models': _models, 'train': _train}[subject]([*ONLY.value, *more])
    else:
        table = {'fluid': _fluid, 'map': _map, 'parts': _parts}[subject]()
    if JSON.value:
        write_text(Path(JSON.value).expanduser(), json.dumps(table, indent=2) + '\n')


def _parts() -> dict:
    from fluidjax import timing

    if CONFIG.value is None:
        raise cli.UserError('bench needs --config=FILE, e.g. --config=configs/ldm.py:demo, or the '
                            'word fluid')
    return timing.time_all(CONFIG.value, REPEATS.value)


def _train(only: list[str]) -> dict:
    if AOT.value:
        from fluidjax import aot

        aot.prepare(AOT.value)  # before anything imports JAX
    from fluidjax import train_timing

    config = CONFIG.value
    if config is None:
        from configs import ldm

        config = ldm.get_config()
    if AOT.value:
        return train_timing.compile_for(config, AOT.value, only)
    return train_timing.measure(config, REPEATS.value)


def _models(only: list[str]) -> dict:
    if AOT.value:
        from fluidjax import aot

        aot.prepare(AOT.value)  # before anything imports JAX
    from fluidjax import model_timing

    config = CONFIG.value
    if config is None:
        from configs import ldm

        config = ldm.get_config()
    shape = cli.numbers('shape', SHAPE.value, int) if flags.FLAGS['shape'].present else None
    rows = model_timing.chosen_rows(model_timing.rows_of(config, shape, DTYPE.value), only)
    if AOT.value:
        return model_timing.compile_for(rows, AOT.value)
    return model_timing.measure(rows, REPEATS.value)


def _fluid() -> dict:
    from fluidjax import fluid_timing, timing
    from fluidjax.fluid.grid import Grid

    shape, spacing = _grid()
    table = fluid_timing.time_fluid(Grid(shape, spacing), BATCH.value, TIME.value, REPEATS.value,
                                    QUICK.value)
    if CONFIG.value is not None:
        table['step'] = timing.time_step_shares(CONFIG.value, REPEATS.value)
    return table


def _map() -> dict:
    from fluidjax import timing

    shape, spacing = _grid()
    if len(shape) != 3:
        raise cli.UserError(f'--shape: {shape} must be three numbers, e.g. --shape 160 160 160')
    return timing.time_map(shape, spacing, REPEATS.value)


def _grid() -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and voxel size of the flags."""
    shape = cli.numbers('shape', SHAPE.value, int)
    if SPACING.value:
        return shape, cli.numbers('spacing', SPACING.value, float)
    return shape, (160.0 / max(shape[0], 1),) * len(shape)


if __name__ == '__main__':
    sys.argv = cli.join_lists(sys.argv, ('shape', 'spacing'))
    cli.run(main, takes_arguments=True, interrupted='nothing was written')
