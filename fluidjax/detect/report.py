"""report.html: one file with tables, curves, a slice viewer and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fluidjax.base.files import asset, write_text
from fluidjax.detect import figures, viewer
from fluidjax.detect.evaluate import Row, json_safe
from fluidjax.detect.figures import Panel
from fluidjax.detect.html import HERE, facts_table, filled, image, number, page, table
from fluidjax.detect.scores import COHORT_SCORES, SCORES

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
PANEL_SCORES = ('dice_validated', 'dice_oracle', 'ap', 'lesion_f1')
ROW_COLUMNS = ('cohort', 'method', 'name', 'lesion_ml')


def best_methods(methods: Mapping[str, Mapping], score: str) -> set[str]:
    """The methods with the best mean of a score, several if they tie; empty if it is not ranked."""
    means = {name: (entries.get(score) or {}).get('mean') for name, entries in methods.items()}
    means = {name: mean for name, mean in means.items() if mean is not None}
    better = SCORES[score].better
    if not means or better == 0:
        return set()
    best = max(better * mean for mean in means.values())
    return {name for name, mean in means.items() if better * mean == best}


def _scores_table(
    methods: Mapping[str, Mapping], scores: Sequence[str], verdicts: Mapping[str, str]
) -> str:
    """Methods by scores with intervals, the best of each column bold."""
    best = {score: best_methods(methods, score) for score in scores}

    def cell(name: str, entries: Mapping, score: str) -> str:
        entry, digits = entries.get(score) or {}, SCORES[score].digits
        text = number(entry.get('mean'), digits)
        if entry.get('ci_low') is not None:
            low, high = number(entry['ci_low'], digits), number(entry['ci_high'], digits)
            text += f'<small>{low} to {high}</small>'
        return f'<td class="best">{text}</td>' if name in best[score] else f'<td>{text}</td>'

    def method(name: str) -> str:
        verdict = verdicts.get(name)
        return escape(name) + (f'<span class="verdict">{escape(verdict)}</span>' if verdict else '')

    body = [
        [method(name), *(cell(name, entries, score) for score in scores)]
        for name, entries in methods.items()
    ]
    head = ['method', *(SCORES[score].label for score in scores)]
    return table(head, body, better=[0, *(SCORES[score].better for score in scores)])


def _cohort_section(
    cohort: str,
    methods: Mapping[str, Mapping],
    verdicts: Mapping[str, str],
    curves: Mapping[str, Mapping],
    thresholds: Mapping[str, float | None],
    reliability: Sequence[Mapping[str, float]],
) -> str:
    """Tables, bars and curves of one cohort; the scores beyond the headline are folded."""
    counts = [
        entry['n']
        for entries in methods.values()
        for score, entry in entries.items()
        if score not in ('seconds', *COHORT_SCORES) and entry and entry.get('n')
    ]
    more = [score for score in SCORES if score not in HEADLINE]
    bars = figures.bar_figure(methods, {score: SCORES[score].label for score in BAR_SCORES})
    lines = ''
    if any(curves.values()):
        picture = image(figures.curve_figure(curves, thresholds), 'curves of ' + cohort)
        lines = filled(HERE, 'curves.html', picture=picture)
    if reliability:
        picture = image(figures.reliability_figure(reliability), 'reliability in ' + cohort)
        lines += filled(HERE, 'reliability.html', picture=picture)
    return filled(
        HERE,
        'cohort.html',
        cohort=escape(cohort),
        subjects=f'Subjects with a mask: {max(counts)}'
        if counts
        else 'No subject has a lesion mask',
        headline=_scores_table(methods, HEADLINE, verdicts),
        more_count=len(more),
        more=_scores_table(methods, more, verdicts),
        bars=image(bars, 'Dice and AP of ' + cohort),
        curves=lines,
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


def _panel_section(panel: Panel, rows: Sequence[Row], scale: float) -> str:
    """One subject: a caption with its scores, its picture, and the strip of other methods."""
    row = json_safe(_row_of(panel, rows))
    facts = [
        f'{SCORES[score].label} {number(row[score], SCORES[score].digits)}'
        for score in PANEL_SCORES
        if row.get(score) is not None
    ]
    if row.get('lesion_ml') is not None:
        facts.insert(0, f'lesion {number(row["lesion_ml"], 1)} ml')
    title = f'{panel.subject.name} · {panel.cohort} · {panel.method}'
    strip = ''
    if panel.others:
        names = ', '.join([panel.method, *panel.others])
        strip = (
            '<figcaption>The same axial plane by every method, each on its own scale</figcaption>'
            + image(figures.strip_figure(panel), 'maps of ' + names)
        )
    return filled(
        HERE,
        'panel.html',
        title=escape(title),
        facts='; '.join(facts or ['no lesion mask, so no scores']),
        picture=image(panel.picture or figures.subject_figure(panel, scale), title),
        strip=strip,
    )


def _pictures_section(panels: Sequence[Panel], rows: Sequence[Row]) -> str:
    """All panels; those of one method share a colour scale."""
    if not panels:
        return ''
    scales = figures.scales_of(panels)
    slices = viewer.viewer_html(panels, scales)
    return filled(
        HERE,
        'pictures.html',
        slices=f'<h2>Slices</h2>\n{slices}\n' if slices else '',
        panels='\n'.join(_panel_section(panel, rows, scales[panel.method]) for panel in panels),
    )


def _rows_table(rows: Sequence[Row]) -> str:
    """Every subject of every method."""
    leading = [key for key in ROW_COLUMNS if any(key in row for row in rows)]
    shown = [score for score in SCORES if any(score in row for row in rows)]
    digits = {score: SCORES[score].digits for score in shown} | {'lesion_ml': 1}
    body = [
        [number(row.get(key), digits.get(key, 3)) for key in (*leading, *shown)]
        for row in json_safe(rows)
    ]
    better = [*(0 for _ in leading), *(SCORES[score].better for score in shown)]
    head = [*(key.replace('_', ' ') for key in leading), *(SCORES[score].label for score in shown)]
    return table(head, body, better=better)


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
    recipes: Mapping[str, str] | None = None,
    reliability: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> None:
    """Write the report; the page loads nothing from elsewhere.

    Args:
      path: of the HTML file; replaced as a whole.
      title: headline.
      config: the run's configuration, nested; shown folded.
      metrics: {cohort: {method: {score: {mean, ci_low, ci_high, n}}}}, as in metrics.json.
      rows: of all cohorts and methods (`evaluate.score_method`, with `cohort` and `method` added).
      panels: the subjects to picture, in this order.
      thresholds: {method: threshold}.
      facts: {what: value} for the header, such as checkpoint, step, date, seed.
      curves: {cohort: {method: `curves.curve_of`}}, drawn below the tables.
      verdicts: {cohort: {method: a word or two, or ''}}, beside the method's name.
      recipes: {method: how its maps are made, in words}.
      reliability: {cohort: `reliability.diagram` of the run's own row}.
    """
    verdicts, curves, reliability = verdicts or {}, curves or {}, reliability or {}
    cohorts = [
        _cohort_section(
            cohort,
            methods,
            verdicts.get(cohort, {}),
            curves.get(cohort, {}),
            thresholds,
            reliability.get(cohort, ()),
        )
        for cohort, methods in metrics.items()
    ]
    chosen = [
        [escape(name), number(value, 5), escape((recipes or {}).get(name, ''))]
        for name, value in json_safe(thresholds).items()
    ]
    body = filled(
        HERE,
        'report.html',
        title=escape(title),
        facts=facts_table('run', facts) if facts else '',
        cohorts='\n'.join(cohorts),
        pictures=_pictures_section(panels, rows),
        explanations=''.join(
            f'<dt>{score.label}</dt><dd>{escape(score.explanation)}</dd>'
            for score in SCORES.values()
        ),
        thresholds=table(['method', 'threshold', 'map'], chosen),
        count=len(rows),
        rows=_rows_table(rows),
        config=escape(json.dumps(json_safe(config), indent=2, default=str)),
    )
    write_text(path, page(title, body, asset(HERE, 'viewer.css'), asset(HERE, 'sort.js')))
