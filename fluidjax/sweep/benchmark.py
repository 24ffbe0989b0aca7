"""Train and score all methods on the same cohort and budget, and write RESULTS.md.

    fluidjax benchmark --scale=demo --seeds=0,1,2 --workdir=runs/benchmark
    fluidjax benchmark --list=ablations --workdir=runs/benchmark
    fluidjax benchmark --cells=fluidjax,conddiff --healthy=HEALTHY --patients=PATIENTS

Each cell, a method with a seed, is trained and scored once; finished ones are not computed again,
and interrupted ones go on. The cells are listed in `configs/benchmark.py`. The test sets are lesions
of the training's law, lesions of another law and shape, and with --healthy and --patients simulated
lesions in other people's scans, and real lesions.
"""

from pathlib import Path

from absl import flags

from fluidjax.base import cli

FLAGS = flags.FlagValues()
SCALE = flags.DEFINE_enum(
    'scale', 'demo', ['smoke', 'demo', 'paper'], 'Size of the grid and runs.', flag_values=FLAGS
)
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds, comma-separated.', flag_values=FLAGS)
LIST = flags.DEFINE_enum(
    'list', 'comparison', ['comparison', 'ablations'], 'Which cells.', flag_values=FLAGS
)
CELLS = flags.DEFINE_list('cells', None, 'These cells of the list alone.', flag_values=FLAGS)
WORKDIR = flags.DEFINE_string(
    'workdir', 'runs/benchmark', 'Folder of the benchmark.', flag_values=FLAGS
)
HEALTHY = flags.DEFINE_string(
    'healthy', '', 'Folder of healthy scans, another anatomy to test on.', flag_values=FLAGS
)
PATIENTS = flags.DEFINE_string(
    'patients',
    '',
    'Folder of scans with lesion masks to test on; needs --healthy.',
    flag_values=FLAGS,
)
LESIONS = flags.DEFINE_string(
    'lesions',
    '',
    'Folder of lesion masks in MNI space, for the ablations that train on real ones.',
    flag_values=FLAGS,
)
COLLECT = flags.DEFINE_boolean(
    'collect', False, 'Only write the tables of what is finished.', flag_values=FLAGS
)


def main() -> None:
    """Read the flags, run the cells, write the tables."""
    from configs.benchmark import LISTS

    cells = LISTS[LIST.value]
    chosen = list(cells) if CELLS.value is None else CELLS.value
    unknown = [name for name in chosen if name not in cells]
    if unknown:
        raise cli.UserError(
            f"--cells: no '{unknown[0]}' in {LIST.value}; there are {', '.join(cells)}"
        )
    if PATIENTS.value and not HEALTHY.value:
        raise cli.UserError('--patients needs --healthy, the folder of healthy scans beside them')
    from fluidjax.sweep import cells as benchmark_cells  # import JAX and TensorFlow
    from fluidjax.sweep import results

    seeds = cli.numbers('seeds', SEEDS.value, int)
    workdir = Path(WORKDIR.value).expanduser() / SCALE.value
    if not COLLECT.value:
        folders = benchmark_cells.Folders(HEALTHY.value, PATIENTS.value, LESIONS.value)
        benchmark_cells.run(
            {name: cells[name] for name in chosen}, SCALE.value, seeds, workdir, folders
        )
    print(f'results: {results.write(workdir, LIST.value, list(cells)).absolute()}')


def command() -> None:
    """`fluidjax benchmark`."""
    cli.run(main, FLAGS, interrupted='the same command goes on from there')


if __name__ == '__main__':
    command()
