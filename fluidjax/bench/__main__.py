"""Measure speed and memory on this machine.

    fluidjax bench --config=configs/ldm.py:demo            the parts of both training stages
    fluidjax bench train --config=configs/ldm.py:demo      training on 1, 2, 4, ... devices
    fluidjax bench train --aot=v5e:4x4                     the same, estimated by a TPU's compiler
    fluidjax bench fluid --shape 160 160 160 --batch=4     transport of a lesion, each scheme
    fluidjax bench models --config=configs/ldm.py:demo     every network, forward and training step
    fluidjax bench models --only=encode --shape 96 96 96 --dtype=float32
    fluidjax bench map --shape 160 160 160                 from a counterpart to the anomaly map

Milliseconds are medians; compilation is timed separately. With `fluid`, --config adds the share of
a training step that the randomization takes. With --aot nothing is run, and no TPU is needed.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax.base import cli

SUBJECTS = ('parts', 'train', 'fluid', 'models', 'map')
FLAGS = flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', flag_values=FLAGS
)
REPEATS = flags.DEFINE_integer(
    'repeats', 5, 'Timed calls of each part.', lower_bound=1, flag_values=FLAGS
)
JSON = flags.DEFINE_string('json', None, 'Also write the numbers to this file.', flag_values=FLAGS)
SHAPE = cli.define_words(
    'shape',
    ['160', '160', '160'],
    'fluid, models, map: voxels along x, y (, z).',
    flag_values=FLAGS,
)
SPACING = cli.define_words(
    'spacing',
    None,
    'fluid: voxel size in mm; one that fills 160 mm along the first axis without.',
    flag_values=FLAGS,
)
BATCH = flags.DEFINE_integer('batch', 4, 'fluid: volumes a call.', lower_bound=1, flag_values=FLAGS)
TIME = flags.DEFINE_float('time', 0.9, 'fluid: transport time.', lower_bound=0.0, flag_values=FLAGS)
AOT = flags.DEFINE_string(
    'aot',
    None,
    'models, train: compile for this TPU topology, e.g. '
    'v5e:2x4, and run nothing; needs pip install libtpu.',
    flag_values=FLAGS,
)
DTYPE = flags.DEFINE_enum(
    'dtype',
    None,
    ('float32', 'bfloat16'),
    "models: of the computation, instead of the configuration's.",
    flag_values=FLAGS,
)
ONLY = cli.define_words(
    'only', [], 'models, train: these rows alone, e.g. encode,decode.', flag_values=FLAGS
)
QUICK = flags.DEFINE_boolean(
    'quick', False, 'fluid: three of the schemes alone.', flag_values=FLAGS
)


def main(words: list[str]) -> None:
    """Read the flags and measure."""
    from fluidjax.base.files import write_text

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
    from fluidjax.bench import timer

    if CONFIG.value is None:
        raise cli.UserError(
            'bench needs --config=FILE, e.g. --config=configs/ldm.py:demo, or the word fluid'
        )
    return timer.time_all(CONFIG.value, REPEATS.value)


def _train(only: list[str]) -> dict:
    if AOT.value:
        from fluidjax.bench import aot

        aot.prepare(AOT.value)  # before anything imports JAX
    from fluidjax.bench import training

    config = CONFIG.value
    if config is None:
        from configs import ldm

        config = ldm.get_config()
    if AOT.value:
        return training.compile_for(config, AOT.value, only)
    return training.measure(config, REPEATS.value)


def _models(only: list[str]) -> dict:
    if AOT.value:
        from fluidjax.bench import aot

        aot.prepare(AOT.value)  # before anything imports JAX
    from fluidjax.bench import networks

    config = CONFIG.value
    if config is None:
        from configs import ldm

        config = ldm.get_config()
    shape = cli.numbers('shape', SHAPE.value, int) if FLAGS['shape'].present else None
    rows = networks.chosen_rows(networks.rows_of(config, shape, DTYPE.value), only)
    if AOT.value:
        return networks.compile_for(rows, AOT.value)
    return networks.measure(rows, REPEATS.value)


def _fluid() -> dict:
    from fluidjax.bench import fluid, timer
    from fluidjax.fluid.grid import Grid

    shape, spacing = _grid()
    table = fluid.time_fluid(
        Grid(shape, spacing), BATCH.value, TIME.value, REPEATS.value, QUICK.value
    )
    if CONFIG.value is not None:
        table['step'] = timer.time_step_shares(CONFIG.value, REPEATS.value)
    return table


def _map() -> dict:
    from fluidjax.bench import timer

    shape, spacing = _grid()
    if len(shape) != 3:
        raise cli.UserError(f'--shape: {shape} must be three numbers, e.g. --shape 160 160 160')
    return timer.time_map(shape, spacing, REPEATS.value)


def _grid() -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and voxel size of the flags."""
    shape = cli.numbers('shape', SHAPE.value, int)
    if SPACING.value:
        return shape, cli.numbers('spacing', SPACING.value, float)
    return shape, (160.0 / max(shape[0], 1),) * len(shape)


def command() -> None:
    """`fluidjax bench`."""
    cli.run(main, FLAGS, takes_arguments=True, interrupted='nothing was written')


if __name__ == '__main__':
    command()
