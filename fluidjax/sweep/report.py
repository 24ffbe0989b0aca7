"""What a sweep came to: a table, the best first, and a picture of the score over each field."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fluidjax.base.files import write_bytes, write_text
from fluidjax.detect.figures import to_png

SHOWN = ('validation_ap', 'validation_dice', 'dice_validated', 'dice_oracle', 'ap')
Results = dict[str, dict[str, Any]]


def write(workdir: Path, results: Results, score: str) -> str:
    """Write `sweep.json`, `sweep.md` and `sweep.png`; returns the table."""
    table = as_markdown(results, score)
    write_text(workdir / 'sweep.json', json.dumps(results, indent=2) + '\n')
    write_text(workdir / 'sweep.md', table)
    write_picture(workdir, results, score)
    return table


def write_picture(workdir: Path, results: Results, score: str) -> None:
    """Write `sweep.png`, where any trial has a score."""
    scored = {name: made for name, made in results.items() if 'score' in made}
    if scored:
        write_bytes(workdir / 'sweep.png', figure(scored, score))


def varied(results: Results) -> list[str]:
    """The fields in which trials differ."""
    names = dict.fromkeys(name for made in results.values() for name in made['fields'])
    return [
        name
        for name in names
        if len({json.dumps(made['fields'].get(name)) for made in results.values()}) > 1
    ]


def as_markdown(results: Results, score: str) -> str:
    """A line for every setting, the best first; its seeds are put together as mean and spread."""
    fields = varied(results)
    settings = [name for name in fields if name != 'seed']
    columns = [score, *(name for name in SHOWN if name != score)]
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for trial, made in results.items():
        groups.setdefault(json.dumps([made['fields'].get(f) for f in settings]), []).append(
            (trial, made)
        )
    rows = []
    for values, members in groups.items():
        good = [made for _, made in members if 'score' in made]
        order = statistics.mean(made['score'] for made in good) if good else -float('inf')
        cells = [_short(value) for value in json.loads(values)]
        cells += [
            mean_and_spread([made['scores'].get(column) for made in good]) for column in columns
        ]
        failed = [made['error'] for _, made in members if 'error' in made]
        cells.append(', '.join(trial for trial, _ in members))
        cells.append(failed[0][:80] if failed else '')
        rows.append((order, cells))
    rows.sort(key=lambda row: -row[0])
    head = [*(name.rpartition('.')[2] for name in settings), *columns, 'trials', 'failed']
    lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    lines += ['| ' + ' | '.join(cells) + ' |' for _, cells in rows]
    return '\n'.join(lines) + '\n'


def _short(value: Any) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def mean_and_spread(values: list[float | None]) -> str:
    """Mean and standard deviation of those that are known, as tables show them."""
    known = [value for value in values if value is not None]
    if not known:
        return '-'
    spread = f' ± {statistics.stdev(known):.3f}' if len(known) > 1 else ''
    return f'{statistics.mean(known):.3f}{spread}'


def figure(results: Results, score: str) -> bytes:
    """The score over each field that was varied, a point a trial (PNG)."""
    fields = varied(results) or ['trial']
    drawn = Figure(figsize=(3.6 * len(fields), 3.2), layout='constrained')
    panels = drawn.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, fields, strict=True):
        values = [made['fields'].get(name) for made in results.values()]
        scores = [made['score'] for made in results.values()]
        numeric = all(isinstance(value, (int, float)) for value in values)
        panel.scatter(
            values if numeric else [str(value) for value in values],
            scores,
            s=28,
            color='#2b6ca3',
            alpha=0.8,
        )
        if numeric and min(values) > 0 and max(values) > 20 * min(values):
            panel.set_xscale('log')
        panel.set_xlabel(name.rpartition('.')[2])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(score.replace('_', ' '))
    return to_png(drawn, dpi=110)
