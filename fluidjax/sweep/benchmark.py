"""Train and score all methods on the same cohort and budget, and write RESULTS.md.

    fluidjax benchmark --scale=demo --seeds=0,1,2 --workdir=runs/benchmark
    fluidjax benchmark --list=ablations --workdir=runs/benchmark
    fluidjax benchmark --cells=fluidjax,conddiff --healthy=HEALTHY --patients=PATIENTS
    fluidjax benchmark --cells=conddiff --validation=training

The cells, methods with their settings, are listed in configs/benchmark.py. Each is trained and
scored once per seed; the same command continues an interrupted benchmark. The test sets are lesions
simulated as in training and in another way; with --healthy and --patients, also simulated lesions
in scans of other people, and real lesions.
"""

from pathlib import Path

from fluidjax.base import cli, environment

FLAGS = cli.Flags()
SCALE = FLAGS.add_choice('scale', 'demo', ['smoke', 'demo', 'paper'], 'Size of grid and training.')
SEEDS = FLAGS.add_words('seeds', ['0', '1', '2'], 'Seeds of the training.')
LIST = FLAGS.add_choice('list', 'comparison', ['comparison', 'ablations'], 'List of cells.')
CELLS = FLAGS.add_words('cells', None, 'Only these cells of the list.')
WORKDIR = FLAGS.add_text('workdir', 'runs/benchmark', 'Folder of the benchmark.')
HEALTHY = FLAGS.add_text('healthy', '', 'Folder of healthy scans of other people to test on.')
PATIENTS = FLAGS.add_text(
    'patients', '', 'Folder of scans with lesion masks to test on; needs --healthy.'
)
LESIONS = FLAGS.add_text(
    'lesions',
    '',
    'Folder of lesion masks in MNI space, for the ablations that train on real masks.',
)
VALIDATION = FLAGS.add_choice(
    'validation',
    'mixture',
    ['mixture', 'training'],
    'Lesions that maps and thresholds are chosen on: of several laws, or of that of training.',
)
COLLECT = FLAGS.add_switch('collect', False, 'Only write the tables of the finished cells.')


def main() -> None:
    """Run the cells, and write the tables."""
    from configs.benchmark import LISTS

    listed = LISTS[LIST.value]
    chosen = list(listed) if CELLS.value is None else CELLS.value
    unknown = [name for name in chosen if name not in listed]
    if unknown:
        raise cli.UserError(
            f"--cells: no '{unknown[0]}' in {LIST.value}; there are {', '.join(listed)}"
        )
    if PATIENTS.value and not HEALTHY.value:
        raise cli.UserError('--patients needs --healthy, the folder of healthy scans beside them')
    environment.use_all_cores()
    from fluidjax.sweep import cells, results  # import JAX and TensorFlow

    seeds = cli.numbers('seeds', SEEDS.value, int)
    workdir = Path(WORKDIR.value).expanduser() / SCALE.value
    if not COLLECT.value:
        folders = cells.Folders(HEALTHY.value, PATIENTS.value, LESIONS.value)
        cells.run(
            {name: listed[name] for name in chosen},
            SCALE.value,
            seeds,
            workdir,
            folders,
            VALIDATION.value,
        )
    print(
        f'results: {results.write(workdir, LIST.value, list(listed), VALIDATION.value).absolute()}'
    )


def command() -> None:
    """`fluidjax benchmark`."""
    cli.run(main, FLAGS, interrupted='the same command continues the benchmark')
