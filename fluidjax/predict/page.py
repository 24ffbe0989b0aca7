"""The HTML page of one scan, and the index of many; they open from disk without a network."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fluidjax.base.files import asset, write_text
from fluidjax.detect import html, slices, viewer
from fluidjax.detect.figures import Panel
from fluidjax.predict.regions import Region

HERE = 'fluidjax.predict'
# The fields of a scan's summary that the index shows.
SUMMARY = ('name', 'page', 'marked_ml', 'regions', 'largest_ml', 'threshold_rule', 'warnings')
MAX_VIEWED = 12_000_000  # voxels of the brain's box in the viewer: some 15 MB of page


def write_scan_page(
    path: str | Path,
    panel: Panel,
    mask: np.ndarray,
    picture: bytes,
    regions: Sequence[Region],
    columns: Mapping[str, Any],
    facts: Mapping[str, Any],
    warnings: Sequence[str],
    files: Sequence[str],
    quality: bytes | None = None,
) -> None:
    """Write the page of one scan: warnings, viewer, table of marked regions, picture, files.

    Args:
      path: of the HTML file.
      panel: the scan, its counterpart and its map, on one grid, RAS+.
      mask: (x, y, z) bool on that grid, the marked voxels.
      picture: PNG, `figures.subject_figure`.
      regions: the table.
      columns: of the table, `regions.columns`.
      facts: {what: value} for the header.
      warnings: sentences.
      files: names of the files beside the page, linked to.
      quality: PNG of how the scan was brought onto the model's grid, or None.
    """
    name = panel.subject.name
    body = html.filled(
        HERE,
        'scan.html',
        name=escape(name),
        warnings=_warnings(warnings),
        facts=html.facts_table('scan', facts),
        viewer=_viewer(panel, mask),
        regions=_regions(regions, columns),
        picture=html.image(picture, name),
        quality='' if quality is None else _quality(quality),
        files=' · '.join(f'<a href="{_link(file)}">{escape(file)}</a>' for file in files),
    )
    style = asset(HERE, 'page.css') + asset(html.HERE, 'viewer.css')
    write_text(path, html.page(name, body, style, asset(HERE, 'go.js')))


def _link(path: str) -> str:
    """A relative path in an address; its bytes need not be UTF-8."""
    return quote(os.fsencode(path))


def _quality(picture: bytes) -> str:
    return html.filled(HERE, 'quality.html', picture=html.image(picture, 'preprocessing'))


def _viewer(panel: Panel, mask: np.ndarray) -> str:
    """The slice viewer with the mask's outline, thinned where the scan is very large."""
    subject = dataclasses.replace(panel.subject, lesion=mask)
    step, small = thinned(dataclasses.replace(panel, subject=subject))
    note = (
        f'<p class="note">The viewer shows one voxel in {step} along each axis; the files hold '
        'all.</p>'
    )
    text = viewer.viewer_html([small], outline='mask')
    return f'<h2>Slices</h2>\n{text}{note if step > 1 else ""}' if text else ''


def thinned(panel: Panel, most: int = MAX_VIEWED) -> tuple[int, Panel]:
    """Every n-th voxel of a panel along each axis, so that the brain's box has at most about `most`
    voxels.

    Returns:
      n and the panel.
    """
    box = slices.box_around(np.asarray(panel.subject.brain))
    voxels = math.prod(side.stop - side.start for side in box)
    step = max(1, math.ceil((voxels / most) ** (1 / 3)))
    if step == 1:
        return 1, panel

    def few(volume: np.ndarray | None) -> np.ndarray | None:
        return None if volume is None else np.asarray(volume)[::step, ::step, ::step]

    subject = dataclasses.replace(
        panel.subject,
        image=few(panel.subject.image),
        brain=few(panel.subject.brain),
        lesion=few(panel.subject.lesion),
        healthy=None,
        affine=np.asarray(panel.subject.affine) @ np.diag([step, step, step, 1.0]),
    )
    return step, dataclasses.replace(
        panel,
        subject=subject,
        counterpart=few(panel.counterpart),
        anomaly_map=few(panel.anomaly_map),
    )


def _warnings(lines: Sequence[str]) -> str:
    items = ''.join(f'<li>{escape(line)}</li>' for line in lines)
    return f'<ul class="warnings">{items}</ul>' if items else ''


def _regions(regions: Sequence[Region], columns: Mapping[str, Any]) -> str:
    """The marked regions; a button beside each moves the viewer there."""
    if not regions:
        return '<p>None: the map stays below the threshold, or above it in specks only.</p>'
    body = [
        [
            *(
                html.number(value, 1 if name in 'xyz' or name.startswith('mni') else 3)
                for name, value in dataclasses.asdict(region).items()
            ),
            f'<button data-go="[{region.x}, {region.y}, {region.z}]">show</button>',
        ]
        for region in regions
    ]
    terms = ''.join(
        f'<dt>{name}</dt><dd>{escape(column["Description"])}</dd>'
        for name, column in columns.items()
    )
    head = [*(name.replace('_', ' ') for name in columns), '']
    return (
        f'{html.table(head, body)}'
        f'<details><summary>What the columns mean</summary><dl>{terms}</dl></details>'
    )


def write_index(
    path: str | Path, summaries: Sequence[Mapping[str, Any]], failures: Sequence[str] = ()
) -> None:
    """Write the page that lists all scans of a folder.

    Args:
      path: of the HTML file.
      summaries: one per scan, with the fields `SUMMARY`; `page` is relative to `path`.
      failures: lines about scans that could not be used.
    """
    rows = [
        [
            f'<td><a href="{_link(s["page"])}">{escape(s["name"])}</a></td>',
            html.number(float(s['marked_ml']), 1),
            html.number(s['regions']),
            html.number(float(s['largest_ml']), 1),
            escape(str(s['threshold_rule'])),
            f'<td class="left">{escape("; ".join(s["warnings"])) or "–"}</td>',
        ]
        for s in summaries
    ]
    head = ['scan', 'ml marked', 'regions', 'largest, ml', 'threshold', 'warnings']
    scans = html.table(head, rows, better=[0, 1, 1, 1, 0, 0])
    failed = f'<h2>Not done</h2>\n{_warnings(failures)}' if failures else ''
    body = html.filled(HERE, 'index.html', scans=scans, failures=failed)
    script = asset(html.HERE, 'sort.js')
    write_text(path, html.page('fluidjax: anomalies', body, asset(HERE, 'page.css'), script))
