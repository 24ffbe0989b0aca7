"""HTML that the report and predict's pages share.

Pages open from disk without a network, and their policy (CSP) forbids them to load anything; fonts
may come from data: addresses, as NiiVue's does.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

from fluidjax.base.files import asset

HERE = 'fluidjax.detect'


def filled(package: str, name: str, /, **values: Any) -> str:
    """A template of a package's assets with its `$name`s replaced by values, which are HTML."""
    return Template(asset(package, name)).substitute(values)


def page(title: str, body: str, style: str = '', script: str = '') -> str:
    """A whole page.

    Args:
      title: plain text.
      body: HTML.
      style: CSS beside that of all pages.
      script: JavaScript.
    """
    style = asset(HERE, 'style.css') + style
    return filled(HERE, 'page.html', title=escape(title), style=style, body=body, script=script)


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
    """A table of cells that are HTML already; a cell of the body may be a whole <td>.

    `better` makes the columns sort by a click (`sort.js`): -1 where less is better, which then
    comes first.
    """
    marks = [''] * len(head) if better is None else [f' data-better="{b}"' for b in better]
    top = ''.join(f'<th{mark}>{text}</th>' for text, mark in zip(head, marks, strict=True))
    lines = ''.join(f'<tr>{"".join(map(_cell, row))}</tr>\n' for row in body)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>\n'
        f'<tbody>{lines}</tbody></table></div>'
    )


def _cell(text: str) -> str:
    return text if text.startswith('<td') else f'<td>{text}</td>'


def facts_table(what: str, facts: dict[str, Any]) -> str:
    """A table of names and values, which are plain text."""
    rows = [[escape(str(name)), escape(str(value))] for name, value in facts.items()]
    return table([what, ''], rows, 'facts')
