"""Measure speed and memory on this machine.

    fluidjax bench --config=configs/ldm.py:demo            the parts of a training step
    fluidjax bench train --config=configs/ldm.py:demo      training on 1, 2, 4, ... devices
    fluidjax bench train --aot=v5e:4x4                     the same, estimated by a TPU's compiler
    fluidjax bench models --config=configs/ldm.py:demo     every network, forward and training step
    fluidjax bench models --only encode decode --shape 96 96 96 --dtype=float32
    fluidjax bench fluid --shape 160 160 160 --batch=4     transport of a lesion, each scheme
    fluidjax bench map --shape 160 160 160                 from a counterpart to the anomaly map

Times are medians, without compilation. With --aot nothing is run, and no TPU is needed.
"""

from pathlib import Path
from typing import Any

from fluidjax.base import cli

FLAGS = cli.Flags()
CONFIG = FLAGS.add_config(
    'Configuration file, e.g. configs/ldm.py:demo; with fluid, also measure the share of '
    'randomization in its training step.'
)
REPEATS = FLAGS.add_integer('repeats', 5, 'Timed calls of each part.', least=1)
JSON = FLAGS.add_text('json', None, 'Also write the numbers to this file.')
SHAPE = FLAGS.add_words(
    'shape', ['160', '160', '160'], 'fluid, models, map: voxels along x, y (, z).'
)
SPACING = FLAGS.add_words(
    'spacing', None, 'fluid, map: voxel size in mm; by default the first axis has 160 mm.'
)
BATCH = FLAGS.add_integer('batch', 4, 'fluid: volumes per call.', least=1)
TIME = FLAGS.add_number('time', 0.9, 'fluid: transport time.', least=0.0)
AOT = FLAGS.add_text(
    'aot',
    None,
    'models, train: only compile for this TPU topology, e.g. v5e:2x4; needs pip install libtpu.',
)
DTYPE = FLAGS.add_choice(
    'dtype',
    None,
    ('float32', 'bfloat16'),
    "models: of the computation, instead of the configuration's.",
)
ONLY = FLAGS.add_words('only', [], 'models, train --aot: only these rows, e.g. encode decode.')
QUICK = FLAGS.add_switch('quick', False, 'fluid: only three of the schemes.')


def main(words: list[str]) -> None:
    """Measure one subject."""
    from fluidjax.base.disk import check_output
    from fluidjax.base.files import write_json

    subject, *more = words or ['parts']
    if subject not in SUBJECTS or more:
        raise cli.UserError(f"bench knows {', '.join(SUBJECTS)}, not '{' '.join(words)}'")
    if AOT.value and subject not in ('models', 'train'):
        raise cli.UserError(
            f'--aot: bench {subject} does not compile for TPUs; models and train do'
        )
    path = Path(JSON.value).expanduser() if JSON.value else None
    if path is not None:
        check_output(path.parent, '--json')
    if AOT.value:
        from fluidjax.bench import aot

        aot.prepare(AOT.value)  # before anything imports JAX
    table = SUBJECTS[subject]()
    if path is not None:
        write_json(path, table)


def _parts() -> dict:
    from fluidjax.bench import timer

    if CONFIG.value is None:
        raise cli.UserError(
            f'bench needs --config=FILE, e.g. --config=configs/ldm.py:demo, or one of the words '
            f'{", ".join(SUBJECTS)}'
        )
    return timer.time_all(CONFIG.value, REPEATS.value)


def _train() -> dict:
    from fluidjax.bench import training

    if AOT.value:
        return training.compile_for(_config(), AOT.value, ONLY.value)
    return training.measure(_config(), REPEATS.value)


def _models() -> dict:
    from fluidjax.bench import networks

    shape = cli.numbers('shape', SHAPE.value, int) if FLAGS['shape'].present else None
    rows = networks.rows_of(_config(), shape, DTYPE.value)
    rows = networks.chosen_rows(rows, ONLY.value)
    if AOT.value:
        return networks.compile_for(rows, AOT.value)
    return networks.measure(rows, REPEATS.value)


def _config() -> Any:
    from configs import ldm

    return ldm.get_config() if CONFIG.value is None else CONFIG.value


def _fluid() -> dict:
    from fluidjax.bench import fluid, timer
    from fluidjax.fluid.grid import Grid

    grid = Grid(*_shape_and_spacing())
    table = fluid.time_fluid(grid, BATCH.value, TIME.value, REPEATS.value, QUICK.value)
    if CONFIG.value is not None:
        table['step'] = timer.time_step_shares(CONFIG.value, REPEATS.value)
    return table


def _map() -> dict:
    from fluidjax.bench import timer

    shape, spacing = _shape_and_spacing()
    if len(shape) != 3:
        raise cli.UserError(f'--shape: {shape} must be three numbers, e.g. --shape 160 160 160')
    return timer.time_map(shape, spacing, REPEATS.value)


def _shape_and_spacing() -> tuple[tuple[int, ...], tuple[float, ...]]:
    shape = cli.numbers('shape', SHAPE.value, int)
    if SPACING.value:
        return shape, cli.numbers('spacing', SPACING.value, float)
    return shape, (160.0 / max(shape[0], 1),) * len(shape)


SUBJECTS = {'parts': _parts, 'train': _train, 'models': _models, 'fluid': _fluid, 'map': _map}


def command() -> None:
    """`fluidjax bench`."""
    cli.run(main, FLAGS, takes_arguments=True, interrupted='nothing was written')


if __name__ == '__main__':
    command()
