"""The results of a sweep: a table in Markdown, the numbers in JSON, and a picture.

A sweep over fields gives one line per setting, the best first. A sweep over seeds gives one line
per method, with mean and standard deviation over the seeds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fluidjax.base.files import read_json, write_bytes, write_json, write_text
from fluidjax.detect.figures import to_png

SHOWN = ('validation_ap', 'validation_dice', 'dice_validated', 'dice_oracle', 'ap')
OF_SEEDS = ('dice_validated', 'dice_global', 'dice_oracle', 'ap', 'auroc', 'lesion_f1', 'psnr')
Results = dict[str, dict[str, Any]]


def write(workdir: Path, results: Results, score: str) -> str:
    """Write `sweep.json`, `sweep.md` and `sweep.png` of a sweep over fields.

    Args:
        workdir: folder of the sweep.
        results: by trial, see `TrialStore.result`.
        score: the name of the score that trials are compared by.

    Returns:
        The table.
    """
    return _write(workdir, results, as_markdown(results, score), results, score)


def write_seeds(workdir: Path, results: Results, score: str) -> str:
    """Write the files of `write` for a sweep over seeds; seeds that failed are left out."""
    scores = scores_of_seeds(workdir, [name for name, one in results.items() if 'score' in one])
    rows = [[name, *map(mean_and_spread, by_score.values())] for name, by_score in scores.items()]
    table = markdown_table(['method', *OF_SEEDS], rows)
    return _write(workdir, scores, table, results, score)


def _write(workdir: Path, numbers: Any, table: str, results: Results, score: str) -> str:
    write_json(workdir / 'sweep.json', numbers)
    write_text(workdir / 'sweep.md', table)
    scored = {name: result for name, result in results.items() if 'score' in result}
    if scored:
        write_bytes(workdir / 'sweep.png', figure(scored, score))
    return table


def scores_of_seeds(workdir: Path, names: Iterable[str]) -> dict[str, dict[str, list]]:
    """The mean scores of evaluated runs.

    Args:
        workdir: folder of the sweep.
        names: of the runs, which are folders in it.

    Returns:
        {'COHORT/METHOD': {score: values}}, one value per run, None where a run has none.
    """
    table: dict[str, dict[str, list[float | None]]] = {}
    for name in names:
        path = workdir / name / 'eval' / 'metrics.json'
        for cohort, methods in read_json(path, 'evaluate the run again').items():
            for method, scores in methods.items():
                row = table.setdefault(f'{cohort}/{method}', {score: [] for score in OF_SEEDS})
                for score in OF_SEEDS:
                    row[score].append(scores[score]['mean'])
    return table


def varied_fields(results: Results) -> list[str]:
    """The fields in which trials differ."""
    names = dict.fromkeys(name for result in results.values() for name in result['fields'])
    values = {
        name: {json.dumps(result['fields'].get(name)) for result in results.values()}
        for name in names
    }
    return [name for name in names if len(values[name]) > 1]


def as_markdown(results: Results, score: str) -> str:
    """One line per setting, the best first, with mean and standard deviation over its seeds."""
    settings = [name for name in varied_fields(results) if name != 'seed']
    columns = [score, *(name for name in SHOWN if name != score)]
    groups: dict[str, Results] = {}
    for trial, result in results.items():
        values = json.dumps([result['fields'].get(name) for name in settings])
        groups.setdefault(values, {})[trial] = result
    rows = []
    for values, trials in sorted(groups.items(), key=lambda group: -_mean_score(group[1])):
        scores = [result['scores'] for result in trials.values() if 'score' in result]
        failures = [result['error'] for result in trials.values() if 'error' in result]
        rows.append(
            [
                *map(_short, json.loads(values)),
                *(mean_and_spread([one.get(column) for one in scores]) for column in columns),
                ', '.join(trials),
                failures[0][:80] if failures else '',
            ]
        )
    head = [*(name.rpartition('.')[2] for name in settings), *columns, 'trials', 'failed']
    return markdown_table(head, rows)


def _mean_score(trials: Results) -> float:
    scores = [result['score'] for result in trials.values() if 'score' in result]
    return statistics.mean(scores) if scores else -math.inf


def _short(value: Any) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def mean_and_spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean and standard deviation of the known values, as tables show them."""
    known = [value for value in values if value is not None]
    if not known:
        return '–'
    spread = f' ± {statistics.stdev(known):.{digits}f}' if len(known) > 1 else ''
    return f'{statistics.mean(known):.{digits}f}{spread}'


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, with a newline at its end."""
    lines = [f'| {" | ".join(cells)} |\n' for cells in (head, *rows)]
    return ''.join([lines[0], '|---' * len(head) + '|\n', *lines[1:]])


def figure(results: Results, score: str) -> bytes:
    """The score over each field that was varied, one point per trial (PNG)."""
    fields = varied_fields(results) or ['trial']
    drawn = Figure(figsize=(3.6 * len(fields), 3.2), layout='constrained')
    panels = drawn.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    scores = [result['score'] for result in results.values()]
    for panel, name in zip(panels, fields, strict=True):
        values = [result['fields'].get(name) for result in results.values()]
        numeric = all(isinstance(value, (int, float)) for value in values)
        shown = values if numeric else [str(value) for value in values]
        panel.scatter(shown, scores, s=28, color='#2b6ca3', alpha=0.8)
        if numeric and min(values) > 0 and max(values) > 20 * min(values):
            panel.set_xscale('log')
        panel.set_xlabel(name.rpartition('.')[2])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(score.replace('_', ' '))
    return to_png(drawn, dpi=110)
