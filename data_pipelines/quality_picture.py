"""A picture of how a scan was brought onto the model's grid."""

from __future__ import annotations

import io
import textwrap

import numpy as np

from data_pipelines import grids, mni_template, resampling
from data_pipelines.volume_io import Volume
from fluidjax.base.subject import Preprocessed

_PICTURE_MM, _PICTURE_HALF_MM = 1.0, np.array([100.0, 115.0, 100.0])


def quality_figure(
    result: Preprocessed, grid: grids.ModelGrid, scan: Volume, dpi: int = 90
) -> bytes:
    """A picture of how a scan was brought onto the model's grid, PNG.

    Rows: axial, coronal, sagittal plane. Columns: the scan with the brain outlined; the model's
    image with the template's brain and white matter outlined; if shading was divided out, also the
    image with it.
    The right of an axial plane is the subject's right, its front is up; a sagittal plane faces
    right.

    Args:
      result: of preprocessing `scan` on `grid`.
      grid: the model's.
      scan: its voxels.
      dpi: resolution.
    """
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # slow to import, and only used here
    from matplotlib.figure import Figure

    columns = 2 if result.before is None else 3
    figure = Figure(figsize=(3.2 * columns, 10.2), facecolor='black')
    axes = figure.subplots(
        3,
        columns,
        gridspec_kw=dict(left=0.01, right=0.99, bottom=0.09, top=0.95, wspace=0.02, hspace=0.03),
    )
    for row, axis in zip(axes, (2, 1, 0), strict=True):
        _draw_row(row, result, grid, scan, axis)
    titles = ('scan, brain outlined', "model's image, atlas outlined", 'with its shading')
    for place, title in zip(axes[0], titles, strict=False):
        place.set_title(title, color='white', fontsize=9)
    _write_below(figure, result)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi, facecolor='black')
    return buffer.getvalue()


def _draw_row(row, result: Preprocessed, grid: grids.ModelGrid, scan: Volume, axis: int) -> None:
    """Draw a plane, sampled at 1 mm, through the middle of the brain."""
    in_mni = _plane(axis)
    to_scan = result.affine @ np.linalg.inv(grid.affine)
    in_scan = (in_mni @ to_scan[:3, :3].T + to_scan[:3, 3]).astype(np.float32)
    maps = mni_template.load_template(1.0)
    on_model = lambda data: resampling.sample(data, grid.affine, in_mni)
    template = lambda data: resampling.sample(data, maps.affine, in_mni)
    brain = on_model(result.brain)
    head = resampling.sample(scan.data, scan.affine, in_scan)
    inside = head[brain >= 0.5]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (head.min(), head.max())
    _show(row[0], head, axis, min(float(low), float(np.median(scan.data))), 1.15 * float(high))
    _outline(row[0], brain, '#ffb000', 1.2)
    _show(row[1], on_model(result.image), axis, 0.0, 1.0)
    _outline(row[1], template(maps.brain), '#19c8ff', 1.2)
    _outline(row[1], template(maps.wm), '#ff5fa2', 0.6)
    if result.before is not None:
        _show(row[2], on_model(result.before), axis, 0.0, 1.0)


def _plane(axis: int) -> np.ndarray:
    """MNI152 positions of a plane, (across, up, 3) mm.

    The sagittal plane lies beside the midline, where there is white matter.
    """
    centre = np.array(grids.MNI_BRAIN_CENTRE) + ((18.0, 0.0, 5.0) * (np.arange(3) == axis))
    ends = [
        np.arange(c - h, c + h + 0.5, _PICTURE_MM)
        for c, h in zip(centre, _PICTURE_HALF_MM, strict=True)
    ]
    ends[axis] = centre[axis : axis + 1]
    positions = np.stack(np.meshgrid(*ends, indexing='ij'), axis=-1)
    return positions.squeeze(axis).astype(np.float32)


def _show(axes, plane: np.ndarray, axis: int, low: float, high: float) -> None:
    axes.imshow(plane.T, origin='lower', cmap='gray', vmin=low, vmax=max(high, low + 1e-6))
    axes.set_axis_off()
    left, right, bottom, top = ('PAIS', 'LRIS', 'LRPA')[axis]
    style = {'color': '#c8d2de', 'fontsize': 8, 'transform': axes.transAxes}
    for letter, x, y in (
        (left, 0.03, 0.5),
        (right, 0.97, 0.5),
        (bottom, 0.5, 0.03),
        (top, 0.5, 0.97),
    ):
        axes.text(x, y, letter, ha='center', va='center', **style)


def _outline(axes, fraction: np.ndarray, colour: str, width: float) -> None:
    if fraction.max() >= 0.5 > fraction.min():
        axes.contour(fraction.T, [0.5], colors=colour, linewidths=width)


def _write_below(figure, result: Preprocessed) -> None:
    """Write the numbers and the warnings below the pictures."""
    facts = f'brain: {result.extraction}; overlap with MNI152 {result.overlap:.2f}'
    if result.before is not None:
        facts += f'; shading by a factor of {result.shading:.2f} corrected'
    warnings = result.warnings or ('no warnings',)
    lines = [line for text in (facts, *warnings) for line in textwrap.wrap(text, 105)]
    figure.text(
        0.02,
        0.08,
        '\n'.join(lines[:7]),
        color='#ffb000' if result.warnings else 'white',
        fontsize=7.5,
        va='top',
    )
