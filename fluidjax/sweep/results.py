"""RESULTS.md of a benchmark: tables, tests between methods, figures; from the scores of its cells.

A number of a table is the mean over seeds of the mean over cases, with the standard deviation over
seeds; intervals and tests are over cases, a case's score averaged over the seeds first.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes, write_text
from fluidjax.detect.evaluate import bootstrap_mean, by_size
from fluidjax.detect.figures import curve_figure
from fluidjax.detect.scores import SCORES, verdict
from fluidjax.sweep import figures as benchmark_figures
from fluidjax.sweep.cells import scores_path, slug
from fluidjax.sweep.compare import compare, subject_scores

Row = dict[str, Any]
Rows = dict[str, list[Row]]
HEADLINE = (
    'dice_validated',
    'dice_global',
    'dice_oracle',
    'ap',
    'auroc',
    'lesion_f1',
    'sensitivity_1fp',
)
TISSUE = ('contrast_removed', 'healthy_changed', 'psnr', 'ssim', 'psnr_outside', 'seconds')
TESTED = ('dice_validated', 'ap')
REFERENCES = ('fluidjax', 'conddiff')
NOTES = {'inpainting': 'inpainting (told where the lesion is: an upper bound, no detector)'}


def write(workdir: Path, title: str, names: Sequence[str]) -> Path:
    """Write `RESULTS.md` (`RESULTS-<title>.md` for another list than the comparison) and figures.

    Args:
        workdir: of the benchmark.
        title: name of the list of cells.
        names: its cells; those not finished yet are named as missing.

    Raises:
        UserError: no cell is finished.
    """
    cells = _finished(workdir, names)
    if not cells:
        raise UserError(f'{workdir}: no cell is finished; run the benchmark without --collect')
    by_set = _by_test_set(cells)
    parts = [f'# Benchmark: {title}', '', _summary(workdir, names, cells), '']
    figures = workdir / f'figures-{title}'
    for test_set, rows in by_set.items():
        parts += [f'## Test set: {test_set}', '', _set_section(rows), '']
        parts += _pictures(workdir, figures, test_set, rows, cells)
    path = workdir / ('RESULTS.md' if title == 'comparison' else f'RESULTS-{title}.md')
    write_text(path, '\n'.join(parts) + '\n')
    return path


def _finished(workdir: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The scores of every finished cell and seed, in the order of the names."""
    return [
        json.loads(path.read_text())
        for name in names
        for path in sorted(scores_path(workdir, name, 0).parent.glob('seed*.json'))
    ]


def _by_test_set(cells: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """{test set: {method: lines of all seeds}}."""
    found: dict[str, Rows] = {}
    for cell in cells:
        for row in cell['rows']:
            rows = found.setdefault(row['cohort'], {})
            rows.setdefault(row['method'], []).append({**row, 'seed': cell['seed']})
    return found


def _summary(workdir: Path, names: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> str:
    done: dict[str, list[Mapping]] = {}
    for cell in cells:
        done.setdefault(cell['cell'], []).append(cell)
    missing = [name for name in names if name not in done]
    lines = ['| cell | seeds | training, minutes a seed |', '|---|---|---|']
    for name, runs in done.items():
        minutes = statistics.mean(cell['training_seconds'] for cell in runs) / 60.0
        lines.append(f'| {name} | {len(runs)} | {minutes:.1f} |')
    if missing:
        lines += ['', f'Not finished: {", ".join(missing)}.']
    return '\n'.join(lines)


def _set_section(rows: Rows) -> str:
    cases = len({row['name'] for lines in rows.values() for row in lines})
    parts = [
        f'{cases} cases.',
        '',
        _table(rows, HEADLINE),
        '',
        'The healthy counterpart:',
        '',
        _table(rows, TISSUE, with_verdict=True),
    ]
    for reference in REFERENCES:
        if reference in rows and len(rows) > 1:
            parts += ['', _comparison(rows, reference)]
    parts += ['', 'Dice (validated) by lesion size:', '', _sizes(rows)]
    return '\n'.join(parts)


def _table(rows: Rows, scores: Sequence[str], with_verdict: bool = False) -> str:
    head = ['method', *(SCORES[score].label for score in scores)] + ['verdict'] * with_verdict
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for method, found in rows.items():
        cells = [_cell(found, score) for score in scores]
        if with_verdict:
            cells.append(
                verdict(
                    {score: bootstrap_mean(row.get(score) for row in found) for score in TISSUE}
                )
                or ''
            )
        lines.append('| ' + ' | '.join([NOTES.get(method, method), *cells]) + ' |')
    return '\n'.join(lines)


def _cell(rows: Sequence[Row], score: str) -> str:
    """Mean and standard deviation over seeds of the mean over cases."""
    means = seed_means(rows, score)
    if not means:
        return '–'
    digits = SCORES[score].digits
    spread = f' ± {statistics.stdev(means):.{digits}f}' if len(means) > 1 else ''
    return f'{statistics.mean(means):.{digits}f}{spread}'


def seed_means(rows: Sequence[Row], score: str) -> list[float]:
    """A score's mean over the cases, for each seed that has one."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row.get(score) is not None:
            by_seed.setdefault(row['seed'], []).append(row[score])
    return [statistics.mean(values) for values in by_seed.values()]


def over_cases(rows: Sequence[Row], score: str) -> list[float]:
    """A score of each case, averaged over the seeds."""
    return list(subject_scores(rows, score).values())


def _comparison(rows: Rows, reference: str) -> str:
    lines = [
        f'{reference} against the others: mean paired difference, p of a two-sided Wilcoxon '
        'signed-rank test over the cases, corrected by Holm.',
        '',
        '| against | ' + ' | '.join(f'{SCORES[s].label}, difference | p' for s in TESTED) + ' |',
        '|---' * (1 + 2 * len(TESTED)) + '|',
    ]
    found = {score: compare(rows, score, reference) for score in TESTED}
    for method in (name for name in rows if name != reference):
        cells = []
        for score in TESTED:
            one = found[score][method]
            cells += (
                ['–', '–']
                if one['p_holm'] is None
                else [f'{one["difference"]:+.3f}', _p(one['p_holm'])]
            )
        lines.append(f'| {method} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _p(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _sizes(rows: Rows) -> str:
    strata = list(by_size(next(iter(rows.values()))))
    lines = ['| method | ' + ' | '.join(strata) + ' |', '|---' * (1 + len(strata)) + '|']
    for method, found in rows.items():
        cells = [_cell(some, 'dice_validated') for some in by_size(found).values()]
        lines.append(f'| {method} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _pictures(
    workdir: Path, folder: Path, test_set: str, rows: Rows, cells: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Markdown of the figures of a test set, which are written."""
    dice = {
        method: bootstrap_mean(over_cases(found, 'dice_validated'))
        for method, found in rows.items()
    }
    sizes = {
        method: {
            name: bootstrap_mean(over_cases(some, 'dice_validated'))
            for name, some in by_size(found).items()
        }
        for method, found in rows.items()
    }
    made = {
        'dice': benchmark_figures.interval_figure(dice, SCORES['dice_validated'].label),
        'sizes': benchmark_figures.size_figure(sizes, SCORES['dice_validated'].label),
    }
    curves = {
        row: curve
        for cell in cells
        if cell['seed'] == cells[0]['seed']
        for row, curve in cell['curves'].get(test_set, {}).items()
    }
    if curves:
        made['curves'] = curve_figure(curves)
    examples = _examples(workdir, test_set, cells)
    if examples:
        made['examples'] = benchmark_figures.example_figure(examples)
    lines = []
    for kind, png in made.items():
        path = folder / f'{slug(test_set)}-{kind}.png'
        write_bytes(path, png)
        lines += [f'![{kind}, {test_set}]({path.relative_to(workdir)})', '']
    return lines


def _examples(
    workdir: Path, test_set: str, cells: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[np.ndarray, float]]:
    """For each method of the first seed `(4, n, x, y)` slices and its threshold."""
    found = {}
    for cell in cells:
        path = scores_path(workdir, cell['cell'], cell['seed']).with_suffix('.npz')
        if cell['seed'] != cells[0]['seed'] or not path.is_file():
            continue
        with np.load(path) as held:
            for key in held.files:
                where, row, *rest = key.split('|')
                if where == test_set and not rest:
                    found[row] = (held[key], float(held[f'{key}|threshold']))
    return found
