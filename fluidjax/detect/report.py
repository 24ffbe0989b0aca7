"""report.html: one file with tables, curves, a slice viewer and pictures.

It opens from disk without a network, and its policy (CSP) forbids it to load anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fluidjax.base.files import write_text
from fluidjax.detect import figures, viewer
from fluidjax.detect.evaluate import Row, json_safe
from fluidjax.detect.figures import Panel
from fluidjax.detect.scores import SCORES

BAR_SCORES = ('dice_validated', 'ap')
HEADLINE = (
    'dice_validated',
    'dice_global',
    'dice_oracle',
    'ap',
    'auroc',
    'lesion_f1',
    'psnr',
    'seconds',
)
# NiiVue reads its font from a data: address.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    'img-src data: blob:; connect-src data: blob:; font-src data:'
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 2rem auto;
       max-width: 1240px; padding: 0 1.2rem }
h1 { margin-bottom: .2rem } h2 { margin-top: 2.4rem; border-bottom: 2px solid #d8dee8 }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums }
th, td { padding: .32rem .5rem; border-bottom: 1px solid #e3e8ef; text-align: right }
th:first-child, td:first-child { text-align: left; white-space: nowrap }
thead th { background: #f2f5f9 }
td small { color: #66707f; display: block; font-size: 11px; white-space: nowrap }
thead th[data-better] { cursor: pointer } thead th[data-better]:hover { background: #e3e9f1 }
th[aria-sort=ascending]::after { content: ' ▲' } th[aria-sort=descending]::after { content: ' ▼' }
.verdict { margin-left: .5em; padding: 0 .45em; border-radius: 9px; font-size: 11.5px;
           background: #fdecc8; color: #6b4a00; white-space: nowrap }
td.best { font-weight: 700; background: #eef7ee } td.best small { font-weight: 400 }
.facts td { text-align: left } .scroll { overflow-x: auto } img { max-width: 100% }
figure { margin: 1.6rem 0; background: #000; color: #dfe6ee; padding: .6rem; border-radius: 6px }
figure.light { background: none; padding: 0 } figcaption { font-size: 13.5px; margin: 0 0 .4rem }
details { margin: .8rem 0 } summary { cursor: pointer; color: #2b5c8a }
dt { font-weight: 600 } dd { margin: 0 0 .5rem } pre { background: #f6f8fa; padding: .8rem;
overflow-x: auto } .note { color: #55606f }
"""
# A click sorts best first (text: A to Z), the next the other way, the third restores the order.
# A cell is worth the number its own text begins with; dashes stay last either way.
SORT = """
document.querySelectorAll('table').forEach(table => {
  const body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.querySelectorAll('th[data-better]')];
  const key = (row, i) => {
    const text = (row.cells[i].firstChild?.textContent ?? '').trim();
    return text === '–' || text === '' ? null : Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b
    : String(a).localeCompare(String(b), undefined, {numeric: true});
  heads.forEach((head, i) => {
    const sort = () => {
      const text = rows.map(row => key(row, i)).some(value => typeof value === 'string');
      const order = text || head.dataset.better === '-1' ? ['ascending', 'descending']
        : ['descending', 'ascending'];
      const next = order[order.indexOf(head.getAttribute('aria-sort')) + 1];
      heads.forEach(other => other.removeAttribute('aria-sort'));
      if (next) head.setAttribute('aria-sort', next);
      const sign = next === 'ascending' ? 1 : -1;
      body.append(...(next ? [...rows].sort((p, q) => {
        const a = key(p, i), b = key(q, i);
        return a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b);
      }) : rows));
    };
    head.tabIndex = 0;
    head.title = 'sort';
    head.onclick = sort;
    head.onkeydown = event => { if (event.key === 'Enter') sort(); };
  });
});
"""
HOW_TO_READ = (
    'Neurological view: the right side of the brain is on the right (R), the front (A) of an axial '
    'plane is up. The planes go through the centre of the true lesion, or through the peak of the '
    'map where no lesion is known. All large maps of a method share one colour scale.'
)


def number(value: Any, digits: int = 3) -> str:
    """A cell's number, a dash for what is undefined, anything else as its escaped text."""
    if value is None:
        return '–'
    return f'{value:.{digits}f}' if isinstance(value, float) else escape(str(value))


def image(png: bytes, alternative: str) -> str:
    """An <img> that holds its own data."""
    data = base64.b64encode(png).decode('ascii')
    return f'<img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'


def table(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    kind: str = '',
    better: Sequence[int] | None = None,
) -> str:
    """An HTML table of cells that are HTML already; a body cell may be a whole <td>.

    `better` makes the columns sort by a click: -1 where less is better, which then comes first.
    """

    def cell(text):
        return text if text.startswith('<td') else f'<td>{text}</td>'

    marks = [''] * len(head) if better is None else [f' data-better="{b}"' for b in better]
    top = ''.join(f'<th{mark}>{text}</th>' for text, mark in zip(head, marks, strict=True))
    lines = ''.join(f'<tr>{"".join(map(cell, row))}</tr>\n' for row in body)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>\n'
        f'<tbody>{lines}</tbody></table></div>'
    )


def best_methods(methods: Mapping[str, Mapping], score: str) -> set[str]:
    """The methods with the best mean of a score (several if they tie); none if not ranked."""
    means = {name: (entries.get(score) or {}).get('mean') for name, entries in methods.items()}
    means = {name: mean for name, mean in means.items() if mean is not None}
    better = SCORES[score].better
    if not means or better == 0:
        return set()
    best = max(better * mean for mean in means.values())
    return {name for name, mean in means.items() if better * mean == best}


def scores_table(
    methods: Mapping[str, Mapping], scores: Sequence[str], verdicts: Mapping[str, str] | None = None
) -> str:
    """Methods by scores with intervals, the best of each column bold."""
    best = {score: best_methods(methods, score) for score in scores}

    def cell(name, entries, score):
        entry, digits = entries.get(score) or {}, SCORES[score].digits
        text = number(entry.get('mean'), digits)
        if entry.get('ci_low') is not None:
            low, high = number(entry['ci_low'], digits), number(entry['ci_high'], digits)
            text += f'<small>{low} to {high}</small>'
        return f'<td class="best">{text}</td>' if name in best[score] else f'<td>{text}</td>'

    def method(name):
        verdict = (verdicts or {}).get(name)
        return escape(name) + (f'<span class="verdict">{escape(verdict)}</span>' if verdict else '')

    body = [
        [method(name), *(cell(name, entries, score) for score in scores)]
        for name, entries in methods.items()
    ]
    return table(
        ['method', *(SCORES[score].label for score in scores)],
        body,
        better=[0, *(SCORES[score].better for score in scores)],
    )


def _tables(methods: Mapping[str, Mapping], verdicts: Mapping[str, str] | None) -> str:
    """The headline scores, and below them the rest, folded away."""
    first = [score for score in HEADLINE if score in SCORES]
    rest = [score for score in SCORES if score not in HEADLINE]
    folded = (
        f'<details><summary>{len(rest)} more scores</summary>'
        f'{scores_table(methods, rest, verdicts)}</details>'
        if rest
        else ''
    )
    return f'{scores_table(methods, first, verdicts)}\n{folded}'


def cohort_section(
    cohort: str,
    methods: Mapping[str, Mapping],
    verdicts: Mapping[str, str] | None = None,
    curves: Mapping[str, Mapping] | None = None,
    thresholds: Mapping[str, float | None] | None = None,
) -> str:
    """Tables, bars and curves of one cohort."""
    counts = [
        entry['n']
        for entries in methods.values()
        for score, entry in entries.items()
        if score != 'seconds' and entry and entry.get('n')
    ]
    bars = figures.bar_figure(methods, {score: SCORES[score].label for score in BAR_SCORES})
    subjects = f'Subjects with a mask: {max(counts)}' if counts else 'No subject has a lesion mask'
    lines = ''
    if any((curves or {}).values()):
        drawn = image(figures.curve_figure(curves, thresholds), 'curves of ' + cohort)
        lines = (
            f'<figure class="light">{drawn}'
            '<figcaption class="note">Voxels of all subjects pooled. A dot is the validated '
            'threshold.</figcaption></figure>'
        )
    return (
        f'<h2>Scores: {escape(cohort)}</h2>\n<p class="note">{subjects}; mean and 95 % '
        f'bootstrap interval over subjects; bold is best. A click on a header sorts.</p>\n'
        f'{_tables(methods, verdicts)}\n'
        f'<figure class="light">{image(bars, "Dice and AP of " + cohort)}</figure>{lines}'
    )


def explanations() -> str:
    """What every score means, in plain words."""
    items = ''.join(f'<dt>{s.label}</dt><dd>{escape(s.explanation)}</dd>' for s in SCORES.values())
    return f'<h2>What the scores mean</h2>\n<dl>{items}</dl>'


def thresholds_section(thresholds: Mapping[str, float | None]) -> str:
    """The validated threshold of each method."""
    body = [[escape(method), number(value, 5)] for method, value in json_safe(thresholds).items()]
    return (
        '<h2>Thresholds</h2>\n<p class="note">Chosen on validation subjects; a voxel is marked '
        f'where its map is at least this.</p>\n{table(["method", "threshold"], body)}'
    )


def _row_of(panel: Panel, rows: Sequence[Row]) -> Row:
    """The panel's row; rows that name their cohort and method are matched on those too."""
    for row in rows:
        if (
            row['name'] == panel.subject.name
            and row.get('method', panel.method) == panel.method
            and row.get('cohort', panel.cohort) == panel.cohort
        ):
            return row
    return {}


def panel_section(panel: Panel, rows: Sequence[Row], scale: float) -> str:
    """One subject: a caption with its scores, its picture, and the strip of other methods."""
    row = json_safe(_row_of(panel, rows))
    facts = [
        f'{SCORES[score].label} {number(row[score], SCORES[score].digits)}'
        for score in ('dice_validated', 'dice_oracle', 'ap', 'lesion_f1')
        if row.get(score) is not None
    ]
    if row.get('lesion_ml') is not None:
        facts.insert(0, f'lesion {number(row["lesion_ml"], 1)} ml')
    facts = facts or ['no lesion mask, so no scores']
    title = f'{panel.subject.name} · {panel.cohort} · {panel.method}'
    strip = ''
    if panel.others:
        names = ', '.join([panel.method, *panel.others])
        strip = (
            f'<figcaption>The same axial plane by every method, each on its own scale'
            f'</figcaption>{image(figures.strip_figure(panel), "maps of " + names)}'
        )
    return (
        f'<figure><figcaption><b>{escape(title)}</b> — {"; ".join(facts)}</figcaption>\n'
        f'{image(figures.subject_figure(panel, scale), title)}{strip}</figure>'
    )


def pictures_section(panels: Sequence[Panel], rows: Sequence[Row]) -> str:
    """All panels; those of one method share a colour scale."""
    if not panels:
        return ''
    scales = figures.scales_of(panels)
    parts = [panel_section(panel, rows, scales[panel.method]) for panel in panels]
    scrolled = viewer.viewer_html(panels, scales)
    scrolled = f'<h2>Slices</h2>\n{scrolled}\n' if scrolled else ''
    return f'{scrolled}<h2>Pictures</h2>\n<p class="note">{HOW_TO_READ}</p>\n' + '\n'.join(parts)


def rows_section(rows: Sequence[Row]) -> str:
    """Every subject of every method, folded away."""
    leading = [
        key for key in ('cohort', 'method', 'name', 'lesion_ml') if any(key in row for row in rows)
    ]
    shown = [score for score in SCORES if any(score in row for row in rows)]
    digits = {score: SCORES[score].digits for score in shown} | {'lesion_ml': 1}
    body = [
        [number(row.get(key), digits.get(key, 3)) for key in (*leading, *shown)]
        for row in json_safe(rows)
    ]
    better = [*(0 for _ in leading), *(SCORES[s].better for s in shown)]
    head = [*(key.replace('_', ' ') for key in leading), *(SCORES[s].label for s in shown)]
    return (
        f'<h2>Every subject</h2>\n<details><summary>{len(rows)} rows</summary>'
        f'{table(head, body, better=better)}</details>'
    )


def write_report(
    path: str | Path,
    title: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Mapping]],
    rows: Sequence[Row],
    panels: Sequence[Panel],
    thresholds: Mapping[str, float | None],
    facts: Mapping[str, Any] | None = None,
    curves: Mapping[str, Mapping[str, Mapping]] | None = None,
    verdicts: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the report; nothing in it is loaded from elsewhere.

    Args:
      path: of the HTML file; replaced as a whole.
      title: headline.
      config: the run's configuration, any nesting; shown folded.
      metrics: {cohort: {method: {score: {mean, ci_low, ci_high, n}}}}, as in metrics.json.
      rows: of all cohorts and methods (`evaluate.score_method`, with `cohort` and `method` added).
      panels: what to picture, in this order.
      thresholds: {method: threshold}.
      facts: {what: value} for the header, such as checkpoint, step, date, seed.
      curves: {cohort: {method: `curves.curves_of`}}, drawn below the tables.
      verdicts: {cohort: {method: a word or two, or ''}}, beside the method's name.
    """
    header = (
        table(
            ['run', ''],
            [[escape(str(k)), escape(str(v))] for k, v in (facts or {}).items()],
            'facts',
        )
        if facts
        else ''
    )
    settings = escape(json.dumps(json_safe(config), indent=2, default=str))
    parts = [
        f'<h1>{escape(title)}</h1>',
        header,
        *(
            cohort_section(
                cohort,
                methods,
                (verdicts or {}).get(cohort),
                (curves or {}).get(cohort),
                thresholds,
            )
            for cohort, methods in metrics.items()
        ),
        pictures_section(panels, rows),
        explanations(),
        thresholds_section(thresholds),
        rows_section(rows),
        f'<h2>Configuration</h2>\n<details><summary>show</summary><pre>{settings}</pre></details>',
    ]
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<title>{escape(title)}</title>\n<style>{STYLE}{viewer.STYLE}</style></head>'
        f'\n<body>\n' + '\n'.join(parts) + f'\n<script>{SORT}</script>\n</body></html>\n',
    )
