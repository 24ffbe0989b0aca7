"""Compare all methods on the same cohort and budget, and write RESULTS.md.

    python -m fluidjax.benchmark --scale=demo --seeds=0,1,2 --workdir=runs/benchmark
    python -m fluidjax.benchmark --list=ablations --workdir=runs/benchmark
    python -m fluidjax.benchmark --cells=fluidjax,conddiff --healthy=HEALTHY --patients=PATIENTS

Each cell, a method with a seed, is trained and scored once; a finished one is not computed again,
and a killed one goes on. The cells are those of `configs/benchmark.py`. Test sets: lesions of the
training's law, lesions of another law and shape, and with --healthy and --patients simulated
lesions in other people's scans, and real ones. See `fluidjax.benchmark_cells`.
"""

from pathlib import Path

from absl import flags

from fluidjax import cli

SCALE = flags.DEFINE_enum('scale', 'demo', ['smoke', 'demo', 'paper'], 'Size of the grid and runs.')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds, comma-separated.')
LIST = flags.DEFINE_enum('list', 'comparison', ['comparison', 'ablations'], 'Which cells.')
CELLS = flags.DEFINE_list('cells', None, 'These cells of the list alone.')
WORKDIR = flags.DEFINE_string('workdir', 'runs/benchmark', 'Folder of the benchmark.')
HEALTHY = flags.DEFINE_string('healthy', '', 'Folder of healthy scans, another anatomy to test on.')
PATIENTS = flags.DEFINE_string('patients', '', 'Folder of scans with lesion masks to test on; '
                               'needs --healthy.')
LESIONS = flags.DEFINE_string('lesions', '', 'Folder of lesion masks in MNI space, for the '
                              'ablations that train on real ones.')
COLLECT = flags.DEFINE_boolean('collect', False, 'Only write the tables of what is finished.')


def main() -> None:
    """Read the flags, run the cells, write the tables."""
    from configs.benchmark import LISTS

    cells = LISTS[LIST.value]
    chosen = list(cells) if CELLS.value is None else CELLS.value
    unknown = [name for name in chosen if name not in cells]
    if unknown:
        raise cli.UserError(f"--cells: no '{unknown[0]}' in {LIST.value}; there are "
                            f'{", ".join(cells)}')
    if PATIENTS.value and not HEALTHY.value:
        raise cli.UserError('--patients needs --healthy, the folder of healthy scans beside them')
    from fluidjax import benchmark_cells, benchmark_report  # import JAX and TensorFlow

    seeds = cli.numbers('seeds', SEEDS.value, int)
    workdir = Path(WORKDIR.value).expanduser() / SCALE.value
    if not COLLECT.value:
        folders = benchmark_cells.Folders(HEALTHY.value, PATIENTS.value, LESIONS.value)
        benchmark_cells.run({name: cells[name] for name in chosen}, SCALE.value, seeds, workdir,
                            folders)
    print(f'results: {benchmark_report.write(workdir, LIST.value, list(cells)).absolute()}')


if __name__ == '__main__':
    cli.run(main, interrupted='the same command goes on from there')
