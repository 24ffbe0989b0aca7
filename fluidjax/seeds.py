"""One configuration over several seeds: trained, evaluated, and put into one table."""

from __future__ import annotations

import copy
import json
import statistics
from pathlib import Path

from ml_collections import ConfigDict

from fluidjax import evaluation, experiment
from fluidjax.files import write_text

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


def is_evaluated(folder: Path) -> bool:
    """Whether the scores of a run are younger than its newest checkpoint."""
    scores = folder / 'eval' / 'metrics.json'
    checkpoints = [p.stat().st_mtime for p in (folder / 'checkpoints').glob('*/*')]
    return scores.is_file() and scores.stat().st_mtime > max(checkpoints)


def run_seeds(config: ConfigDict, seeds: list[int], workdir: Path) -> str:
    """Train and evaluate each seed in `workdir/seed<N>`, skipping what is done.

    Returns:
        The table, which is also written to `sweep.json` and `sweep.md`.
    """
    for seed in seeds:
        one = copy.deepcopy(config)
        one.seed = seed
        folder = workdir / f'seed{seed}'
        experiment.train(one, folder)
        if not is_evaluated(folder):
            evaluation.run_evaluation(folder, save_volumes=False)
    table = collect(workdir, seeds)
    write_text(workdir / 'sweep.json', json.dumps(table, indent=2) + '\n')
    write_text(workdir / 'sweep.md', as_markdown(table))
    return as_markdown(table)
