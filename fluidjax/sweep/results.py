"""RESULTS.md of a benchmark: tables, tests between methods and figures, from its cells' scores.

Tables show means over cases, averaged over the seeds, with the standard deviation over the seeds.
Intervals and tests are over scans, whose scores are averaged over seeds and lesions first.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.files import read_json, write_bytes, write_text
from fluidjax.detect.evaluate import bootstrap_mean, by_size
from fluidjax.detect.figures import curve_figure
from fluidjax.detect.scores import SCORES, verdict
from fluidjax.sweep import figures
from fluidjax.sweep.cells import scores_path, slug
from fluidjax.sweep.compare import compare, subject_scores
from fluidjax.sweep.report import markdown_table, mean_and_spread

Row = dict[str, Any]
Rows = dict[str, list[Row]]
HEADLINE = (
    'dice_validated',
    'dice_best',
    'threshold_loss',
    'dice_global',
    'dice_oracle',
    'ap',
    'auroc',
    'lesion_f1',
    'sensitivity_1fp',
)
FALSE_ALARMS = ('healthy_ml', 'healthy_ml_90', 'strict_ml', 'strict_ml_90')
TISSUE = (
    'contrast_removed',
    'healthy_changed',
    'psnr',
    'ssim',
    'psnr_outside',
    'sharpness',
    'seconds',
)
TESTED = ('dice_validated', 'ap')
REFERENCES = ('regression with head', 'conddiff with head', 'fluidjax', 'conddiff')
# Rows that are no detectors; they are in no test.
NOTES = {'inpainting': 'inpainting (is given the lesion mask: an upper bound, not a detector)'}


def write(workdir: Path, title: str, names: Sequence[str], validation: str = 'mixture') -> Path:
    """Write the figures and `RESULTS.md`, or `RESULTS-<title>.md` for any list but the comparison.

    Args:
        workdir: folder of the benchmark.
        title: name of the list of cells.
        names: its cells; the page lists those that are not finished.
        validation: the lesions that recipes and thresholds were chosen on.

    Returns:
        The page.

    Raises:
        UserError: no cell is finished.
    """
    cells = _finished(workdir, names, validation)
    if not cells:
        raise UserError(f'{workdir}: no cell is finished; run the benchmark without --collect')
    by_set = _by_test_set(cells)
    parts = [f'# Benchmark: {title}', '', _summary(names, cells), '', _recipes(cells), '']
    ending = '' if validation == 'mixture' else f'-{validation}'
    folder = workdir / f'figures-{title}{ending}'
    for test_set, rows in by_set.items():
        parts += [f'## Test set: {test_set}', '', _set_section(rows), '']
        parts += _pictures(workdir, folder, test_set, rows, cells, validation)
    name = '' if title == 'comparison' else f'-{title}'
    path = workdir / f'RESULTS{name}{ending}.md'
    write_text(path, '\n'.join(parts) + '\n')
    return path


def _finished(workdir: Path, names: Sequence[str], validation: str) -> list[dict[str, Any]]:
    """The scores of every finished cell and seed, in the order of the names.

    Raises:
        UserError: some are of other test sets than the others.
    """
    paths = [
        path
        for name in names
        for path in sorted(scores_path(workdir, name, 0, validation).parent.glob('seed*.json'))
    ]
    cells = [read_json(path, 'delete it to score the cell again') for path in paths]
    versions = [cell.get('version', 1) for cell in cells]
    scans = next((cell['scans'] for cell in cells if 'scans' in cell), None)
    for path, cell in zip(paths, cells, strict=True):
        version = cell.get('version', 1)
        if cell.get('scans', scans) != scans:
            raise UserError(
                f'{path}: scored on other scans (--healthy, --patients) than '
                f'{paths[0]}; move it away, or run its cell again'
            )
        if version != max(versions):
            raise UserError(
                f'{path}: scored on the test sets of version {version}, others on those of '
                f'{max(versions)}; move it away, or run its cell again'
            )
    return cells


def _by_test_set(cells: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """{test set: {method: scores of all cases and seeds}}."""
    by_set: dict[str, Rows] = {}
    for cell in cells:
        for row in cell['rows']:
            rows = by_set.setdefault(row['cohort'], {})
            rows.setdefault(row['method'], []).append({**row, 'seed': cell['seed']})
    return by_set


def _summary(names: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> str:
    finished: dict[str, list[float]] = {}
    for cell in cells:
        finished.setdefault(cell['cell'], []).append(cell['training_seconds'] / 60.0)
    table = markdown_table(
        ['cell', 'seeds', 'training, minutes per seed'],
        [
            [name, str(len(minutes)), f'{statistics.mean(minutes):.1f}']
            for name, minutes in finished.items()
        ],
    )
    missing = [name for name in names if name not in finished]
    return table + (f'\nNot finished: {", ".join(missing)}.' if missing else '')


def _recipes(cells: Sequence[Mapping[str, Any]]) -> str:
    """What each row chose on the validation cases, for each seed."""
    lines = [
        [row, str(cell['seed']), words, '–' if dice is None else f'{dice:.3f}']
        for cell in cells
        for row, words in cell.get('recipes', {}).items()
        for dice in [cell['validation'][row]['dice']]
    ]
    head = ['method', 'seed', 'map, chosen on validation cases', 'Dice there']
    return '## Recipes\n\n' + markdown_table(head, lines)


def _set_section(rows: Rows) -> str:
    lines = [row for several in rows.values() for row in several]
    cases = len({row['name'] for row in lines})
    scans = len({row.get('scan', row['name']) for row in lines})
    parts = [
        f'{cases} cases of {scans} scans.\n',
        _table(rows, HEADLINE),
        'False positives, ml marked in the same scans without a lesion:\n',
        _table(rows, FALSE_ALARMS),
        'The healthy counterpart:\n',
        _table(rows, TISSUE, with_verdict=True),
    ]
    for reference in REFERENCES:
        if reference in rows and len(rows) > 1:
            parts.append(_comparison(rows, reference))
    return '\n'.join([*parts, 'Dice (validated) by lesion size:\n', _sizes(rows)])


def _table(rows: Rows, scores: Sequence[str], with_verdict: bool = False) -> str:
    head = ['method', *(SCORES[score].label for score in scores)] + ['verdict'] * with_verdict
    lines = []
    for method, cases in rows.items():
        line = [NOTES.get(method, method), *(_cell(cases, score) for score in scores)]
        if with_verdict:
            means = {
                score: bootstrap_mean(subject_scores(cases, score).values()) for score in TISSUE
            }
            line.append(verdict(means) or '')
        lines.append(line)
    return markdown_table(head, lines)


def _cell(rows: Sequence[Row], score: str) -> str:
    """Mean and standard deviation over the seeds of a score's mean over the cases."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row.get(score) is not None:
            by_seed.setdefault(row['seed'], []).append(row[score])
    means = [statistics.mean(values) for values in by_seed.values()]
    return mean_and_spread(means, SCORES[score].digits)


def _comparison(rows: Rows, reference: str) -> str:
    detectors = {name: lines for name, lines in rows.items() if name not in NOTES}
    results = [compare(detectors, score, reference) for score in TESTED]
    lines = []
    for method in (name for name in detectors if name != reference):
        line = [method, str(results[0][method]['seeds'])]
        for result in results:
            difference, p = result[method]['difference'], result[method]['p_holm']
            line += ['–', '–'] if p is None else [f'{difference:+.3f}', _p(p)]
        lines.append(line)
    head = ['against', 'common seeds']
    for score in TESTED:
        head += [f'{SCORES[score].label}, difference', 'p']
    return (
        f'{reference} against the others: mean paired difference, p of a two-sided Wilcoxon '
        'signed-rank test over the scans, on the seeds that both have, corrected by Holm over the '
        'rows of this table.\n\n'
    ) + markdown_table(head, lines)


def _p(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _sizes(rows: Rows) -> str:
    strata = list(by_size(next(iter(rows.values()))))
    lines = [
        [method, *(_cell(some, 'dice_validated') for some in by_size(cases).values())]
        for method, cases in rows.items()
    ]
    return markdown_table(['method', *strata], lines)


def _pictures(
    workdir: Path,
    folder: Path,
    test_set: str,
    rows: Rows,
    cells: Sequence[Mapping[str, Any]],
    validation: str,
) -> list[str]:
    """Write the figures of a test set; returns the Markdown that shows them."""
    label = SCORES['dice_validated'].label
    dice = {method: _dice_over_cases(cases) for method, cases in rows.items()}
    sizes = {
        method: {name: _dice_over_cases(some) for name, some in by_size(cases).items()}
        for method, cases in rows.items()
    }
    pictures = {
        'dice': figures.interval_figure(dice, label),
        'sizes': figures.size_figure(sizes, label),
    }
    curves = {
        row: curve
        for cell in cells
        if cell['seed'] == cells[0]['seed']
        for row, curve in cell['curves'].get(test_set, {}).items()
    }
    if curves:
        pictures['curves'] = curve_figure(curves)
    examples = _examples(workdir, test_set, cells, validation)
    if examples:
        pictures['examples'] = figures.example_figure(examples)
    lines = []
    for kind, png in pictures.items():
        path = folder / f'{slug(test_set)}-{kind}.png'
        write_bytes(path, png)
        lines += [f'![{kind}, {test_set}]({path.relative_to(workdir)})', '']
    return lines


def _dice_over_cases(rows: Sequence[Row]) -> dict[str, float | None]:
    """Mean and interval over the scans."""
    return bootstrap_mean(subject_scores(rows, 'dice_validated').values())


def _examples(
    workdir: Path, test_set: str, cells: Sequence[Mapping[str, Any]], validation: str
) -> dict[str, tuple[np.ndarray, float]]:
    """For each method `(4, n, x, y)` slices of the first seed, and the threshold."""
    examples = {}
    for cell in cells:
        path = scores_path(workdir, cell['cell'], cell['seed'], validation).with_suffix('.npz')
        if cell['seed'] != cells[0]['seed'] or not path.is_file():
            continue
        with np.load(path) as slices:
            for key in slices.files:
                where, row, *rest = key.split('|')
                if where == test_set and not rest:
                    examples[row] = (slices[key], float(slices[f'{key}|threshold']))
    return examples
