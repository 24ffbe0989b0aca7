"""Train and evaluate one configuration over seeds, and put the scores in one table.

    python -m fluidjax.sweep --config=configs/ldm.py:demo --seeds=0,1,2 --workdir=runs/sweep

A seed that is finished is not computed again. Writes `sweep.json` and `sweep.md` into the workdir.
"""

import copy
import json
import statistics
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep; each seed gets one in it.')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds, comma-separated.')
SCORES = ('dice_validated', 'dice_global', 'dice_oracle', 'ap', 'auroc', 'lesion_f1', 'psnr')


def collect(workdir: Path, seeds: list[int]) -> dict[str, dict[str, list[float | None]]]:
    """For each cohort/method and score its means, one a seed, from the runs' metrics.json."""
    table: dict[str, dict[str, list[float | None]]] = {}
    for seed in seeds:
        metrics = json.loads((workdir / f'seed{seed}' / 'eval' / 'metrics.json').read_text())
        for cohort, methods in metrics.items():
            for method, scores in methods.items():
                row = table.setdefault(f'{cohort}/{method}', {score: [] for score in SCORES})
                for score in SCORES:
                    row[score].append(scores[score]['mean'])
    return table


def as_markdown(table: dict[str, dict[str, list[float | None]]]) -> str:
    """The table with mean and standard deviation over the seeds."""

    def cell(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return '-'
        spread = f' ± {statistics.stdev(known):.3f}' if len(known) > 1 else ''
        return f'{statistics.mean(known):.3f}{spread}'

    lines = ['| method | ' + ' | '.join(SCORES) + ' |', '|---' * (len(SCORES) + 1) + '|']
    lines += [f'| {name} | ' + ' | '.join(cell(row[score]) for score in SCORES) + ' |'
              for name, row in table.items()]
    return '\n'.join(lines) + '\n'


def _is_evaluated(folder: Path) -> bool:
    """Whether the scores of a run are younger than its newest checkpoint."""
    scores = folder / 'eval' / 'metrics.json'
    checkpoints = [p.stat().st_mtime for p in (folder / 'checkpoints' / 'diffusion').iterdir()]
    return scores.is_file() and scores.stat().st_mtime > max(checkpoints)


def main() -> None:
    """Read the flags and run the seeds one after another."""
    from fluidjax import evaluation, experiment
    from fluidjax.files import write_text

    if CONFIG.value is None or not WORKDIR.value:
        raise cli.UserError('sweep needs --config=FILE and --workdir=DIR, e.g. '
                            '--config=configs/ldm.py:demo --workdir=runs/sweep')
    try:
        seeds = [int(seed) for seed in SEEDS.value]
    except ValueError as error:
        raise cli.UserError(f'--seeds={",".join(SEEDS.value)}: give whole numbers') from error
    workdir = Path(WORKDIR.value).expanduser()
    for seed in seeds:
        config = copy.deepcopy(CONFIG.value)
        config.seed = seed
        folder = workdir / f'seed{seed}'
        experiment.train(config, folder)
        if not _is_evaluated(folder):
            evaluation.run_evaluation(folder, save_volumes=False)
    table = collect(workdir, seeds)
    write_text(workdir / 'sweep.json', json.dumps(table, indent=2) + '\n')
    write_text(workdir / 'sweep.md', as_markdown(table))
    print(f'{len(seeds)} seeds, mean and standard deviation:\n{as_markdown(table)}')


if __name__ == '__main__':
    cli.run(main)
