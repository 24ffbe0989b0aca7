"""The figures of a benchmark, as PNG bytes: intervals, lesion sizes, and example cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fluidjax.detect.figures import FOUND_COLOUR, TRUTH_COLOUR, to_png

Entry = Mapping[str, float | None]
COLOUR = '#2b6ca3'
SCAN, COUNTERPART, MAP, TRUTH = range(4)


def interval_figure(entries: Mapping[str, Entry], label: str) -> bytes:
    """One bar per method, with its 95 % interval over scans; the first method on top."""
    names = list(entries)
    figure = Figure(figsize=(7.5, 0.4 + 0.34 * len(names)), layout='constrained')
    axes = figure.subplots()
    for place, name in enumerate(reversed(names)):
        entry = entries[name]
        if entry['mean'] is None:
            continue
        axes.barh(place, entry['mean'], color=COLOUR, height=0.62)
        if entry['ci_low'] is not None:
            axes.plot([entry['ci_low'], entry['ci_high']], [place, place], color='#111', lw=1.5)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlim(0, 1)
    axes.set_xlabel(f'{label}, mean and 95 % interval over scans')
    axes.spines[['top', 'right']].set_visible(False)
    return to_png(figure, dpi=110)


def size_figure(entries: Mapping[str, Mapping[str, Entry]], label: str) -> bytes:
    """One line per method over the strata of lesion size."""
    figure = Figure(figsize=(7.5, 3.6), layout='constrained')
    axes = figure.subplots()
    strata: Sequence[str] = ()
    for number, (name, by_stratum) in enumerate(entries.items()):
        strata = list(by_stratum)
        means = [np.nan if e['mean'] is None else e['mean'] for e in by_stratum.values()]
        axes.plot(
            range(len(strata)),
            means,
            marker='o',
            label=name,
            color=f'C{number % 10}',
            ls='-' if number < 10 else '--',
        )
    axes.set_xticks(range(len(strata)), strata)
    axes.set_ylim(0, 1)
    axes.set_ylabel(label)
    axes.legend(fontsize=7, ncols=2, frameon=False, loc='upper left', bbox_to_anchor=(1, 1))
    axes.spines[['top', 'right']].set_visible(False)
    return to_png(figure, dpi=110)


def example_figure(examples: Mapping[str, tuple[np.ndarray, float]]) -> bytes:
    """One column per case; scan and truth on top, then two rows per method: counterpart and map.

    Args:
        examples: for each method `(4, n, x, y)`, axial planes of scan, counterpart, map and truth
            of n cases, and the threshold of its maps. Right is right, front is up.
    """
    first = next(iter(examples.values()))[0]
    count, rows = first.shape[1], 1 + 2 * len(examples)
    figure = Figure(
        figsize=(1.6 * count + 1.2, 1.6 * rows), facecolor='black', layout='constrained'
    )
    axes = np.atleast_2d(figure.subplots(rows, count, squeeze=False))
    for axis in axes.flat:
        axis.set_axis_off()
    for case in range(count):
        _plane(axes[0, case], first[SCAN, case], 'gray', 1.0)
        _outline(axes[0, case], first[TRUTH, case], TRUTH_COLOUR)
    _name(axes[0, 0], 'scan and truth')
    for number, (name, (planes, threshold)) in enumerate(examples.items()):
        above, below = axes[1 + 2 * number], axes[2 + 2 * number]
        top = max(float(np.percentile(planes[MAP], 99.5)), 1e-6)
        for case in range(count):
            _plane(above[case], planes[COUNTERPART, case], 'gray', 1.0)
            _plane(below[case], planes[MAP, case], 'inferno', top)
            _outline(below[case], planes[MAP, case] >= threshold, FOUND_COLOUR)
            _outline(below[case], planes[TRUTH, case], TRUTH_COLOUR)
        _name(above[0], name)
    return to_png(figure, dpi=90)


def _plane(axis, plane: np.ndarray, colours: str, top: float) -> None:
    axis.imshow(plane.T, origin='lower', cmap=colours, vmin=0.0, vmax=top)


def _outline(axis, mask: np.ndarray, colour: str) -> None:
    if mask.any() and not mask.all():
        axis.contour(np.asarray(mask, float).T, levels=[0.5], colors=[colour], linewidths=0.8)


def _name(axis, text: str) -> None:
    axis.text(
        -0.06,
        0.5,
        text,
        color='#dfe6ee',
        fontsize=8,
        rotation=90,
        va='center',
        ha='right',
        transform=axis.transAxes,
    )
