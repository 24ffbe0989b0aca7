"""Measure speed and memory on this machine.

    fluidjax bench --config=configs/ldm.py:demo            the parts of a training step
    fluidjax bench train --config=configs/ldm.py:demo      training on 1, 2, 4, ... devices
    fluidjax bench train --aot=v5e:4x4                     the same, estimated by a TPU's compiler
    fluidjax bench models --config=configs/ldm.py:demo     every network, forward and training step
    fluidjax bench models --only encode decode --shape 96 96 96 --dtype=float32
    fluidjax bench fluid --shape 160 160 160 --batch=4     transport of a lesion, each scheme
    fluidjax bench map --shape 160 160 160                 from a counterpart to the anomaly map
    fluidjax bench gpu                                     all of a GPU, in 8 minutes, as tables
    fluidjax bench cpu --batch=2                           networks at 2 mm, beside PyTorch
    fluidjax bench memory --config=configs/ldm.py:paper    what training needs, what fits a card
    fluidjax bench code --config=configs/ldm.py:demo       PSNR and sharpness of its autoencoder
    fluidjax bench evaluation --scans 4 20 60              memory of an evaluation at 160^3
    fluidjax bench robustness --healthy SCANS              what it marks in changed healthy scans
    fluidjax bench contrasts --real SCANS --picture=FILE   synthesised scans beside real ones
    fluidjax bench rehearsal --config=configs/ldm.py:2mm   three steps of all: train, eval, predict

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
    'shape',
    ['160', '160', '160'],
    'fluid, models, map, cpu, gpu, evaluation: voxels along x, y (, z).',
)
SPACING = FLAGS.add_words(
    'spacing', None, 'fluid, map: voxel size in mm; by default the first axis has 160 mm.'
)
BATCH = FLAGS.add_integer(
    'batch',
    4,
    'fluid, cpu, gpu (there 1): volumes per call; memory: volumes of a step per device.',
    least=1,
)
CARD = FLAGS.add_integer('card', None, 'memory: GB of the card; by default 24, 40 and 80.', least=1)
COMPILE = FLAGS.add_switch('compile', False, 'memory: also compile for the CPU, minutes a stage.')
TIME = FLAGS.add_number('time', 0.9, 'fluid: transport time.', least=0.0)
AOT = FLAGS.add_text(
    'aot',
    None,
    'models, train, memory: only compile for this TPU topology, e.g. v5e:2x4; needs pip install '
    'libtpu.',
)
DTYPE = FLAGS.add_choice(
    'dtype',
    None,
    ('float32', 'bfloat16'),
    "models, gpu: of the computation, instead of the configuration's (gpu: bfloat16).",
)
MINUTES = FLAGS.add_number('minutes', 8.0, 'gpu: rows after this time are left out.', least=0.1)
ROW_SECONDS = FLAGS.add_number('row_seconds', 100.0, 'gpu: the longest for a row.', least=1.0)
ONLY = FLAGS.add_words(
    'only', [], 'models, train --aot, cpu, gpu: only these rows, e.g. encode decode.'
)
SCANS = FLAGS.add_words(
    'scans', ['4', '20', '60'], 'evaluation: numbers of validation and of test scans.'
)
STEPS = FLAGS.add_integer('steps', 3, 'rehearsal: training steps of each stage.', least=1)
SCAN = FLAGS.add_text('scan', '', 'rehearsal: the scan to predict; by default a simulated one.')
KEEP = FLAGS.add_text('keep', '', 'rehearsal: folder in which scans and run are kept.')
HEALTHY = FLAGS.add_words('healthy', [], 'robustness: files and folders of healthy T1w scans.')
MODEL = FLAGS.add_text(
    'model', '', 'robustness: a run or a package; by default the one that comes with fluidjax.'
)
DRAWS = FLAGS.add_integer('draws', 5, 'robustness: random draws of a change per scan.', least=1)
BIAS_FIELD = FLAGS.add_choice(
    'bias-field', 'auto', ['none', 'auto', 'always'], 'robustness: as in a prediction.'
)
REAL = FLAGS.add_words('real', [], 'contrasts: files of real scans of any contrast.')
PICTURE = FLAGS.add_text('picture', '', 'contrasts: the PNG to write.')
QUICK = FLAGS.add_switch('quick', False, 'fluid: only three of the schemes.')


def main(words: list[str]) -> None:
    """Measure one subject."""
    from fluidjax.base.disk import check_output
    from fluidjax.base.files import write_json

    subject, *more = words or ['parts']
    if subject not in SUBJECTS or more:
        raise cli.UserError(f"bench knows {', '.join(SUBJECTS)}, not '{' '.join(words)}'")
    if AOT.value and subject not in ('models', 'train', 'memory'):
        raise cli.UserError(
            f'--aot: bench {subject} does not compile for TPUs; models, train and memory do'
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
    from fluidjax.base import environment
    from fluidjax.bench import training

    if AOT.value:
        return training.compile_for(_config(), AOT.value, ONLY.value)
    environment.use_all_cores()
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
    from fluidjax.fluid.grid import Grid

    shape, spacing = _shape_and_spacing()
    if len(shape) != 3:
        raise cli.UserError(f'--shape: {shape} must be three numbers, e.g. --shape 160 160 160')
    Grid(shape, spacing)  # refuses impossible ones
    return timer.time_map(shape, spacing, REPEATS.value)


def _memory() -> dict:
    from fluidjax.bench import memory

    batch = BATCH.value if FLAGS['batch'].present else None
    cards = memory.CARDS if CARD.value is None else (CARD.value,)
    return memory.measure(_config(), batch, cards, AOT.value, COMPILE.value)


def _gpu() -> dict:
    from configs import ldm
    from fluidjax.bench import gpu

    if CONFIG.value is None:
        configs = {size: ldm.get_config(size) for size in ('paper', '2mm')}
    else:
        configs = {str(CONFIG.value.size): CONFIG.value}
    plan = gpu.Plan(
        configs,
        _chosen_shape(),
        BATCH.value if FLAGS['batch'].present else 1,
        DTYPE.value or 'bfloat16',
        REPEATS.value,
        ROW_SECONDS.value,
        MINUTES.value,
        tuple(ONLY.value),
        anywhere=CONFIG.value is not None or FLAGS['shape'].present,
    )
    return gpu.measure(plan)


def _cpu() -> dict:
    from configs import ldm
    from fluidjax.base import environment

    environment.use_all_cores()
    from fluidjax.bench import cpu

    config = ldm.get_config('2mm,method=fluidjax') if CONFIG.value is None else CONFIG.value
    return cpu.measure(config, _chosen_shape(), BATCH.value, REPEATS.value, ONLY.value)


def _chosen_shape() -> tuple[int, ...] | None:
    """The three numbers of --shape; None without it."""
    if not FLAGS['shape'].present:
        return None
    shape = cli.numbers('shape', SHAPE.value, int)
    if len(shape) != 3:
        raise cli.UserError(f'--shape: {shape} must be three numbers, e.g. --shape 80 96 80')
    return shape


def _rehearsal() -> dict:
    from fluidjax.bench import rehearsal

    return rehearsal.rehearse(_config(), STEPS.value, SCAN.value, KEEP.value)


def _evaluation() -> dict:
    from fluidjax.bench import evaluation

    counts = cli.numbers('scans', SCANS.value, int)
    return evaluation.measure(counts, _chosen_shape() or (160, 160, 160))


def _robustness() -> dict:
    from fluidjax.base import environment

    if not HEALTHY.value:
        raise cli.UserError('bench robustness needs --healthy SCAN_OR_FOLDER ..., healthy scans')
    environment.use_all_cores()
    from fluidjax.bench import robustness
    from fluidjax.runs import package

    model = Path(MODEL.value).expanduser() if MODEL.value else package.BUNDLED
    return robustness.measure(model, HEALTHY.value, DRAWS.value, bias_field=BIAS_FIELD.value)


def _contrasts() -> dict:
    from configs import ldm
    from fluidjax.bench import contrasts

    if not PICTURE.value:
        raise cli.UserError('bench contrasts needs --picture=FILE.png')
    config = ldm.get_config('2mm,contrast=any') if CONFIG.value is None else CONFIG.value
    return contrasts.draw(config, REAL.value, Path(PICTURE.value).expanduser())


def _code() -> dict:
    from fluidjax.base import environment

    environment.use_all_cores()
    from fluidjax.bench import code

    return code.measure(_config())


def _shape_and_spacing() -> tuple[tuple[int, ...], tuple[float, ...]]:
    shape = cli.numbers('shape', SHAPE.value, int)
    if SPACING.value:
        return shape, cli.numbers('spacing', SPACING.value, float)
    return shape, (160.0 / max(shape[0], 1),) * len(shape)


SUBJECTS = {
    'parts': _parts,
    'train': _train,
    'models': _models,
    'fluid': _fluid,
    'map': _map,
    'gpu': _gpu,
    'cpu': _cpu,
    'memory': _memory,
    'rehearsal': _rehearsal,
    'robustness': _robustness,
    'contrasts': _contrasts,
    'code': _code,
    'evaluation': _evaluation,
}


def command() -> None:
    """`fluidjax bench`."""
    cli.run(main, FLAGS, takes_arguments=True, interrupted='nothing was written')


if __name__ == '__main__':
    command()
