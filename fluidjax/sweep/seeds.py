"""One configuration over several seeds: a sweep whose table has a line a method."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from ml_collections import ConfigDict

from fluidjax.base.files import write_text
from fluidjax.base.trials import Fields
from fluidjax.sweep.report import Results, mean_and_spread, write_picture
from fluidjax.sweep.store import TrialStore

SCORES = ('dice_validated', 'dice_global', 'dice_oracle', 'ap', 'auroc', 'lesion_f1', 'psnr')


def store(workdir: Path, seeds: list[int], place: int = 0, places: int = 1) -> TrialStore:
    """The seeds as trials `seed0`, `seed1`, ...; of several places this one's."""
    return TrialStore(workdir, {f'seed{seed}': {'seed': seed} for seed in seeds[place::places]})


def config_of(config: ConfigDict, fields: Fields) -> ConfigDict:
    """The configuration of one seed."""
    one = copy.deepcopy(config)
    one.seed = fields['seed']
    return one


def collect(workdir: Path, names: list[str]) -> dict[str, dict[str, list[float | None]]]:
    """For each cohort/method and score its means, one a seed, from the runs' metrics.json."""
    table: dict[str, dict[str, list[float | None]]] = {}
    for name in names:
        metrics = json.loads((workdir / name / 'eval' / 'metrics.json').read_text())
        for cohort, methods in metrics.items():
            for method, scores in methods.items():
                row = table.setdefault(f'{cohort}/{method}', {score: [] for score in SCORES})
                for score in SCORES:
                    row[score].append(scores[score]['mean'])
    return table


def as_markdown(table: dict[str, dict[str, list[float | None]]]) -> str:
    """The table with mean and standard deviation over the seeds."""
    lines = ['| method | ' + ' | '.join(SCORES) + ' |', '|---' * (len(SCORES) + 1) + '|']
    lines += [
        f'| {name} | ' + ' | '.join(mean_and_spread(row[score]) for score in SCORES) + ' |'
        for name, row in table.items()
    ]
    return '\n'.join(lines) + '\n'


def write(workdir: Path, results: Results, score: str) -> str:
    """Write `sweep.json`, `sweep.md` and `sweep.png` of the seeds that did not fail; see
    `sweep_report.write`.
    """
    table = collect(workdir, [name for name, made in results.items() if 'score' in made])
    write_text(workdir / 'sweep.json', json.dumps(table, indent=2) + '\n')
    write_text(workdir / 'sweep.md', as_markdown(table))
    write_picture(workdir, results, score)
    return as_markdown(table)
