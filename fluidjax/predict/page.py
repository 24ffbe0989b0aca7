"""The HTML page of one scan, and the index of many; they open from disk without a network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fluidjax.base.files import write_text
from fluidjax.detect import slices, viewer
from fluidjax.detect.figures import Panel
from fluidjax.detect.report import POLICY, SORT, STYLE, image, number, table
from fluidjax.predict.regions import COLUMNS, Region

NOTICE = 'Research use; not for diagnosis.'
MAX_VIEWED = 12_000_000  # voxels of the brain's box in the viewer: some 15 MB of page
PAGE_STYLE = """
.notice { background: #fdecc8; color: #6b4a00; padding: .5rem .8rem; border-radius: 6px;
          font-weight: 600 }
.warnings { background: #fde3df; color: #7a1c10; padding: .5rem .8rem .5rem 2rem;
            border-radius: 6px }
td.left { text-align: left } button { font: inherit; cursor: pointer }
"""
GO = """
document.querySelectorAll('button[data-go]').forEach(button => {
  button.onclick = () => {
    window.dispatchEvent(new CustomEvent('fluidjax-go', {detail: JSON.parse(button.dataset.go)}));
    document.getElementById('viewer')?.scrollIntoView({behavior: 'smooth', block: 'center'});
  };
});
"""
QUALITY_NOTE = (
    'The scan with the outline of the brain that was found, and of the atlas as it was registered. '
    'Where they part, do not trust the map.'
)
HOW_TO_READ = (
    'Neurological view: the right side of the brain is on the right (R), the front (A) of an axial '
    'plane is up. The planes go through the peak of the map. Orange is where the map reaches the '
    'threshold.'
)


def write_scan_page(
    path: str | Path,
    panel: Panel,
    mask: np.ndarray,
    picture: bytes,
    regions: Sequence[Region],
    facts: Mapping[str, Any],
    warnings: Sequence[str],
    files: Sequence[str],
    quality: bytes | None = None,
) -> None:
    """Write the page of one scan: warnings, viewer, table of marked regions, picture, files.

    Args:
      path: of the HTML file.
      panel: the scan with what was made of it, on one grid, RAS+.
      mask: (x, y, z) bool on that grid, the marked voxels.
      picture: PNG, `figures.subject_figure`.
      regions: the table.
      facts: {what: value} for the header.
      warnings: sentences.
      files: names of the files beside the page, linked to.
      quality: PNG of how the scan was brought onto the model's grid, or None.
    """
    links = ' · '.join(f'<a href="{quote(name)}">{escape(name)}</a>' for name in files)
    parts = [
        f'<h1>{escape(panel.subject.name)}</h1>',
        f'<p class="notice">{NOTICE}</p>',
        _warnings(warnings),
        _facts(facts),
        _viewer(panel, mask),
        _regions(regions),
        f'<h2>Picture</h2>\n<p class="note">{HOW_TO_READ}</p>\n<figure>'
        f'{image(picture, panel.subject.name)}</figure>',
        _quality(quality),
        f'<h2>Files</h2>\n<p>{links}</p>',
    ]
    _write(path, panel.subject.name, parts, viewer.STYLE, GO)


def _quality(picture: bytes | None) -> str:
    if picture is None:
        return ''
    return (
        f'<h2>Preprocessing</h2>\n<p class="note">{QUALITY_NOTE}</p>\n'
        f'<figure>{image(picture, "preprocessing")}</figure>'
    )


def _viewer(panel: Panel, mask: np.ndarray) -> str:
    """The slice viewer with the mask's outline, thinned where the scan is very large."""
    subject = dataclasses.replace(panel.subject, lesion=mask)
    step, small = thinned(dataclasses.replace(panel, subject=subject))
    note = (
        ''
        if step == 1
        else (
            '<p class="note">The viewer shows one voxel in '
            f'{step} along each axis; the files hold all.</p>'
        )
    )
    html = viewer.viewer_html([small], outline='mask')
    return f'<h2>Slices</h2>\n{html}{note}' if html else ''


def thinned(panel: Panel, most: int = MAX_VIEWED) -> tuple[int, Panel]:
    """Every n-th voxel of a panel along each axis, so that the brain's box has at most about `most`
    voxels: n and the panel."""
    box = slices.box_around(np.asarray(panel.subject.brain))
    voxels = math.prod(side.stop - side.start for side in box)
    step = max(1, math.ceil((voxels / most) ** (1 / 3)))
    if step == 1:
        return 1, panel

    def few(volume):
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


def _warnings(warnings: Sequence[str]) -> str:
    lines = ''.join(f'<li>{escape(text)}</li>' for text in warnings)
    return f'<ul class="warnings">{lines}</ul>' if lines else ''


def _facts(facts: Mapping[str, Any]) -> str:
    return table(
        ['scan', ''], [[escape(str(k)), escape(str(v))] for k, v in facts.items()], 'facts'
    )


def _regions(regions: Sequence[Region]) -> str:
    """The marked regions; a button beside each moves the viewer there."""
    head = '<h2>Marked regions</h2>\n'
    if not regions:
        return f'{head}<p>None: the map stays below the threshold, or above it in specks only.</p>'
    body = [
        [
            *(
                number(value, 1 if name in 'xyz' or name.startswith('mni') else 3)
                for name, value in dataclasses.asdict(region).items()
            ),
            f'<button data-go="[{region.x}, {region.y}, {region.z}]">show</button>',
        ]
        for region in regions
    ]
    terms = ''.join(
        f'<dt>{name}</dt><dd>{escape(column["Description"])}</dd>'
        for name, column in COLUMNS.items()
    )
    return (
        f'{head}{table([*(name.replace("_", " ") for name in COLUMNS), ""], body)}'
        f'<details><summary>What the columns mean</summary><dl>{terms}</dl></details>'
    )


def write_index(
    path: str | Path, summaries: Sequence[Mapping[str, Any]], failures: Sequence[str] = ()
) -> None:
    """Write the page that lists all scans of a folder.

    Args:
      path: of the HTML file.
      summaries: a scan each: `name`, `page` (relative to `path`), `marked_ml`, `regions`,
        `largest_ml`, `threshold_rule`, `warnings`.
      failures: lines about scans that could not be used.
    """
    body = [
        [
            f'<td><a href="{quote(s["page"])}">{escape(s["name"])}</a></td>',
            number(float(s['marked_ml']), 1),
            number(s['regions']),
            number(float(s['largest_ml']), 1),
            escape(str(s['threshold_rule'])),
            f'<td class="left">{escape("; ".join(s["warnings"])) or "–"}</td>',
        ]
        for s in summaries
    ]
    head = ['scan', 'ml marked', 'regions', 'largest, ml', 'threshold', 'warnings']
    failed = ''.join(f'<li>{escape(line)}</li>' for line in failures)
    parts = [
        '<h1>fluidjax: anomalies</h1>',
        f'<p class="notice">{NOTICE}</p>',
        table(head, body, better=[0, 1, 1, 1, 0, 0]),
        f'<h2>Not done</h2>\n<ul class="warnings">{failed}</ul>' if failed else '',
    ]
    _write(path, 'fluidjax: anomalies', parts, '', SORT)


def _write(path: str | Path, title: str, parts: Sequence[str], style: str, script: str) -> None:
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<title>{escape(title)}</title>\n<style>{STYLE}{PAGE_STYLE}{style}</style>'
        '</head>\n<body>\n' + '\n'.join(parts) + f'\n<script>{script}</script>\n</body></html>\n',
    )
