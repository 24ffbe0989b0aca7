"""The pictures of the report and the README, as PNG bytes (matplotlib without a display)."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fluidjax.base.subject import Subject
from fluidjax.detect import slices
from fluidjax.detect.evaluate import region_of

TRUTH_COLOUR, FOUND_COLOUR = '#19c8ff', '#ffb000'
BAR_COLOURS = ('#2b6ca3', '#e08a2e')
CURVES = (  # title, x, its label, y, its label, whether x is logarithmic
    ('Precision and recall', 'recall', 'recall', 'precision', 'precision', False),
    ('ROC', 'fpr', 'share of healthy voxels marked', 'recall', 'recall', True),
    ('Dice over thresholds', 'marked', 'share of voxels marked', 'dice', 'Dice', True),
)
LETTERS = {'color': '#c8d2de', 'fontsize': 8}


@dataclasses.dataclass(frozen=True)
class Panel:
    """The results of one method for one subject, to be drawn.

    Attributes:
      cohort, method: as in metrics.json.
      subject: the scan.
      counterpart: (x, y, z) in [0, 1], or None for a method without.
      anomaly_map: (x, y, z).
      threshold: of the map's outline; None draws no outline.
      others: {method: anomaly map} of other methods for the small strip below.
      picture: PNG of `subject_figure`, if it is drawn already.
    """

    cohort: str
    method: str
    subject: Subject
    counterpart: np.ndarray | None
    anomaly_map: np.ndarray
    threshold: float | None = None
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    picture: bytes | None = None


def to_png(figure: Figure, dpi: int = 80) -> bytes:
    """Render to PNG bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def upper_value(volume: np.ndarray, region: np.ndarray, percentile: float = 99.5) -> float:
    """The value shown brightest: a percentile inside the region; 1 for an empty region."""
    values = np.asarray(volume)[np.asarray(region).astype(bool)]
    values = values[np.isfinite(values)]
    top = float(np.percentile(values, percentile)) if values.size else 0.0
    return top if top > 0 else 1.0


def map_scale(panels: Sequence[Panel]) -> float:
    """One upper end of the colour scale for all these maps, so that they can be compared.

    It is above the threshold: the map of a healthy brain, all below it, stays dark.
    """
    tops = [upper_value(p.anomaly_map, p.subject.brain, 99.8) for p in panels]
    cuts = [
        1.25 * p.threshold for p in panels if p.threshold is not None and math.isfinite(p.threshold)
    ]
    return max(tops + cuts, default=1.0)


def scales_of(panels: Sequence[Panel]) -> dict[str, float]:
    """{method: `map_scale` of its panels}."""
    return {
        method: map_scale([p for p in panels if p.method == method])
        for method in {p.method for p in panels}
    }


def with_pictures(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with their pictures, drawn once for all uses; a method's share a colour scale."""
    scales = scales_of(panels)
    return [
        dataclasses.replace(panel, picture=subject_figure(panel, scales[panel.method]))
        for panel in panels
    ]


def view_of(panel: Panel) -> slices.View:
    """The planes through the middle of the lesion, or the map's peak without a lesion."""
    subject, brain = panel.subject, np.asarray(panel.subject.brain).astype(bool)
    return slices.View(
        slices.centre_of(subject.lesion, panel.anomaly_map, brain),
        slices.box_around(region_of(subject)),
        slices.spacing_of(subject.affine),
    )


def draw_plane(axes, volume: np.ndarray, plane: slices.Plane, view: slices.View, **show) -> None:
    """Show one plane of a volume upright, right side right, with letters at its borders."""
    across, up = view.box[plane.across], view.box[plane.up]
    axes.imshow(
        slices.cut(volume, plane, view.centre),
        origin='lower',
        interpolation='nearest',
        aspect=slices.aspect(plane, view.spacing),
        **show,
    )
    axes.set(xlim=(across.start - 0.5, across.stop - 0.5), ylim=(up.start - 0.5, up.stop - 0.5))
    axes.set_axis_off()
    for letter, x, y in (
        (plane.left, 0.02, 0.5),
        (plane.right, 0.98, 0.5),
        (plane.bottom, 0.5, 0.02),
        (plane.top, 0.5, 0.98),
    ):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            **LETTERS,
            ha={0.02: 'left', 0.98: 'right'}.get(x, 'center'),
            va={0.02: 'bottom', 0.98: 'top'}.get(y, 'center'),
        )


def draw_outline(
    axes, mask: np.ndarray, plane: slices.Plane, view: slices.View, colour: str, width: float = 1.2
) -> None:
    """The border of a mask in one plane, along the voxels' edges; nothing where it is empty."""
    section = np.pad(slices.cut(mask, plane, view.centre).astype(bool), 1)
    rows, columns = np.nonzero(section[:, 1:] != section[:, :-1])
    upright = [((c - 0.5, r - 1.5), (c - 0.5, r - 0.5)) for r, c in zip(rows, columns)]
    rows, columns = np.nonzero(section[1:] != section[:-1])
    level = [((c - 1.5, r - 0.5), (c - 0.5, r - 0.5)) for r, c in zip(rows, columns)]
    axes.add_collection(
        LineCollection(upright + level, colors=colour, linewidths=width, capstyle='projecting')
    )


def _grid(rows: int, columns: int, width: float, height: float, **spec):
    figure = Figure(figsize=(width, height), facecolor='black')
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=spec)


def _grey(subject: Subject) -> dict:
    return {'cmap': 'gray', 'vmin': 0.0, 'vmax': upper_value(subject.image, subject.brain, 99.8)}


def _heat(top: float) -> dict:
    return {'cmap': 'hot', 'vmin': 0.0, 'vmax': top}


def _colour_bar(figure: Figure, place: tuple[float, ...], scale: float) -> None:
    bar = figure.colorbar(ScalarMappable(Normalize(0, scale), 'hot'), cax=figure.add_axes(place))
    bar.ax.tick_params(colors='white', labelsize=8)
    # Numbers of many digits would be cut off at the edge of the picture.
    bar.formatter.set_powerlimits((-3, 3))
    bar.ax.yaxis.get_offset_text().set(color='white', size=8)
    bar.outline.set_edgecolor('white')


def subject_figure(panel: Panel, scale: float | None = None, dpi: int = 100) -> bytes:
    """PNG of one subject: scan, counterpart, map, and outlines on the scan, in three planes.

    Args:
      panel: see `Panel`; the planes are chosen by `view_of`.
      scale: upper end of the map's colours (`map_scale` of all panels); by default of this map.
      dpi: resolution.
    """
    subject, view, grey = panel.subject, view_of(panel), _grey(panel.subject)
    scale = map_scale([panel]) if scale is None else scale
    figure, grid = _grid(
        3, 4, 9.6, 7.6, left=0.01, right=0.93, bottom=0.05, top=0.95, wspace=0.03, hspace=0.03
    )
    for row, plane in zip(grid, slices.PLANES):
        draw_plane(row[0], subject.image, plane, view, **grey)
        if panel.counterpart is None:
            row[1].set_axis_off()
            row[1].text(0.5, 0.5, 'none', ha='center', color='#8a93a0', fontsize=9)
        else:
            draw_plane(row[1], panel.counterpart, plane, view, **grey)
        draw_plane(row[2], panel.anomaly_map, plane, view, **_heat(scale))
        draw_plane(row[3], subject.image, plane, view, **grey)
        _draw_outlines(row[3], panel, plane, view)
    for axes, title in zip(grid[0], ('scan', 'healthy counterpart', 'anomaly map', 'outlines')):
        axes.set_title(title, color='white', fontsize=10)
    _colour_bar(figure, (0.94, 0.25, 0.012, 0.5), scale)
    _legend(figure, panel)
    return to_png(figure, dpi)


def _draw_outlines(axes, panel: Panel, plane: slices.Plane, view: slices.View) -> None:
    if panel.threshold is not None and math.isfinite(panel.threshold):
        mask = (np.asarray(panel.anomaly_map) >= panel.threshold) & region_of(panel.subject)
        draw_outline(axes, mask, plane, view, FOUND_COLOUR, width=2.2)
    if panel.subject.lesion is not None:
        draw_outline(axes, panel.subject.lesion, plane, view, TRUTH_COLOUR)


def _legend(figure: Figure, panel: Panel) -> None:
    truth = 'true lesion' if panel.subject.lesion is not None else 'no lesion mask is known'
    cut = panel.threshold is not None and math.isfinite(panel.threshold)
    marked = f'map ≥ {panel.threshold:.3g}' if cut else 'no threshold'
    handles = [
        Line2D([], [], color=TRUTH_COLOUR, label=truth),
        Line2D([], [], color=FOUND_COLOUR, label=marked),
    ]
    figure.legend(
        handles=handles, loc='lower right', ncols=2, frameon=False, fontsize=9, labelcolor='white'
    )


def strip_figure(panel: Panel, dpi: int = 100) -> bytes:
    """PNG of one row: the axial plane of the scan and of every method's map, each on its own
    colour scale (methods differ in what they measure), with the true lesion outlined."""
    subject, view = panel.subject, view_of(panel)
    maps = {panel.method: panel.anomaly_map, **panel.others}
    figure, grid = _grid(
        1,
        len(maps) + 1,
        1.9 * (len(maps) + 1),
        2.5,
        left=0.01,
        right=0.99,
        bottom=0.02,
        top=0.88,
        wspace=0.04,
    )
    draw_plane(grid[0, 0], subject.image, slices.AXIAL, view, **_grey(subject))
    for axes, anomaly_map in zip(grid[0, 1:], maps.values()):
        top = upper_value(anomaly_map, subject.brain, 99.8)
        draw_plane(axes, anomaly_map, slices.AXIAL, view, **_heat(top))
    for axes, title in zip(grid[0], ('scan', *maps)):
        axes.set_title(title, color='white', fontsize=9)
        if subject.lesion is not None:
            draw_outline(axes, subject.lesion, slices.AXIAL, view, TRUTH_COLOUR)
    return to_png(figure, dpi)


def bar_figure(methods: Mapping[str, Mapping], scores: Mapping[str, str], dpi: int = 90) -> bytes:
    """PNG of horizontal bars with 95 % intervals.

    Args:
      methods: {method: {score: {mean, ci_low, ci_high, n}}}, one cohort of metrics.json.
      scores: {score: label} to show, at most two.
      dpi: resolution.
    """
    figure = Figure(figsize=(8.0, 0.9 + 0.5 * len(methods)), layout='constrained')
    axes, height = figure.subplots(), 0.8 / len(scores)
    for i, (score, label) in enumerate(scores.items()):
        entries = [entry.get(score) or {} for entry in methods.values()]
        means = [entry.get('mean') or 0.0 for entry in entries]
        places = np.arange(len(methods)) + (i - (len(scores) - 1) / 2) * height
        axes.barh(places, means, height, color=BAR_COLOURS[i], label=label)
        for place, entry in zip(places, entries):
            if entry.get('ci_low') is not None:
                axes.plot([entry['ci_low'], entry['ci_high']], [place] * 2, color='#222', lw=1.4)
    axes.set_yticks(range(len(methods)), list(methods))
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc='best')
    return to_png(figure, dpi)


def curve_figure(
    curves: Mapping[str, Mapping],
    thresholds: Mapping[str, float | None] | None = None,
    dpi: int = 90,
) -> bytes:
    """PNG of precision-recall, ROC and Dice curves of all methods.

    Args:
      curves: {method: `curves.curve_of`}; empty ones are left out.
      thresholds: {method: threshold}, marked by a dot on its curves.
      dpi: resolution.
    """
    drawn = {
        method: {name: np.asarray(values, float) for name, values in curve.items()}
        for method, curve in curves.items()
        if curve
    }
    figure = Figure(figsize=(13.0, 4.0 + 0.25 * math.ceil(len(drawn) / 4)), layout='constrained')
    grid = figure.subplots(1, len(CURVES))
    for axes, (title, x, x_label, y, y_label, logarithmic) in zip(grid, CURVES):
        for i, (method, curve) in enumerate(drawn.items()):
            style = {'color': f'C{i % 10}', 'ls': ('-', '--', ':')[i // 10 % 3]}
            axes.plot(curve[x], curve[y], lw=1.5, label=method, **style)
            chosen = _index_at(curve, (thresholds or {}).get(method))
            if chosen is not None:
                axes.plot(curve[x][chosen], curve[y][chosen], 'o', ms=5, color=style['color'])
        axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 1.02))
        if logarithmic:
            axes.set_xscale('log')
            axes.set_xlim(1e-4, 1.0)
        else:
            axes.set_xlim(0, 1.02)
        axes.grid(color='#e3e8ef', lw=0.6)
        axes.spines[['top', 'right']].set_visible(False)
    if drawn:
        figure.legend(
            *grid[0].get_legend_handles_labels(),
            loc='outside lower center',
            ncols=min(len(drawn), 5),
            frameon=False,
            fontsize=9,
        )
    return to_png(figure, dpi)


def reliability_figure(bins: Sequence[Mapping[str, float]], dpi: int = 90) -> bytes:
    """PNG of a reliability diagram: the share of lesion beside the probability that was predicted.

    Args:
      bins: of `reliability.diagram`.
      dpi: resolution.
    """
    figure = Figure(figsize=(4.2, 4.0), layout='constrained')
    axes = figure.subplots()
    predicted, observed = ([one[name] for one in bins] for name in ('predicted', 'observed'))
    axes.plot([0, 1], [0, 1], color='#9aa5b1', lw=1, ls='--')
    axes.plot(predicted, observed, 'o-', ms=5, lw=1.5)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel='predicted probability', ylabel='share of lesion')
    axes.grid(color='#e3e8ef', lw=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    return to_png(figure, dpi)


def _index_at(curve: Mapping[str, np.ndarray], threshold: float | None) -> int | None:
    """The curve's point at a threshold: the last with at least that threshold (they fall); None
    where nothing is marked at it."""
    if threshold is None or not math.isfinite(threshold):
        return None
    at_least = int((curve['threshold'] >= threshold * (1 - 1e-5)).sum())
    return at_least - 1 if at_least else None
