"""A picture of synthesised scans of each contrast, beside real ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from data_pipelines.grids import ModelGrid
from data_pipelines.preprocess import preprocess
from data_pipelines.volume_io import load_volume
from fluidjax.base import cli
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes
from fluidjax.base.subject import Subject
from fluidjax.detect import slices
from fluidjax.detect.figures import draw_plane, to_png
from fluidjax.fluid.grid import Grid
from fluidjax.runs.cases import scans_of
from fluidjax.runs.cohort import model_grid, open_cohort
from fluidjax.runs.stages import synthesis_settings
from fluidjax.synthesis.generate import SynthesisSettings, synthesise

SUBJECTS = 3
KNOWN = ('t1w', 't2w', 'flair')


def draw(config: Any, scans: Sequence[str], picture: Path) -> dict[str, Any]:
    """Write a picture: a row for each contrast, three synthesised scans, then the real ones of it.

    Args:
        config: of a run whose scans are synthesised.
        scans: files of real scans, which are placed by the order of their tissues' intensities.
        picture: the PNG to write.

    Returns:
        The number of real scans of each contrast.

    Raises:
        UserError: a configuration without synthesis, or a scan that cannot be used.
    """
    settings, grid = synthesis_settings(config), model_grid(config)
    if settings is None:
        raise UserError('bench contrasts: needs a configuration with contrast=, e.g. contrast=any')
    subjects = list(itertools.islice(scans_of(open_cohort(config), 'train'), SUBJECTS))
    real: dict[str, list[Subject]] = {name: [] for name in settings.contrasts}
    for contrast, scan in _real(scans, grid):
        if contrast in real:
            real[contrast].append(scan)
        else:
            cli.tell(f'{scan.name}: looks like {contrast}, which is no row of the picture')
    columns = SUBJECTS + max(map(len, real.values()))
    figure = Figure(figsize=(1.9 * columns, 2.1 * len(real)), facecolor='black')
    rows = figure.subplots(len(real), columns, squeeze=False)
    for axes, (name, own) in zip(rows, real.items(), strict=True):
        made = [_synthesised(scan, name, settings, grid, i) for i, scan in enumerate(subjects)]
        for place, scan in itertools.zip_longest(axes, made + own):
            place.set_axis_off()
            if scan is not None:
                _draw(place, scan, grid)
        corner = {'transform': axes[0].transAxes, 'va': 'top', 'color': 'white', 'fontsize': 9}
        axes[0].text(0.02, 1.0, name, **corner)
    figure.subplots_adjust(0.0, 0.0, 1.0, 1.0, 0.02, 0.02)
    write_bytes(picture, to_png(figure, 80))
    cli.tell(f'{picture}: each row {SUBJECTS} synthesised scans, then real ones')
    return {name: len(own) for name, own in real.items()}


def _real(scans: Sequence[str], grid: Grid) -> Iterator[tuple[str, Subject]]:
    """Real scans on the model's grid, with the contrast that each looks like."""
    for path in scans:
        made = preprocess(load_volume(path), ModelGrid(grid.shape, grid.spacing), contrasts=KNOWN)
        yield made.contrast, Subject(path, made.image, made.brain, None, None, made.affine)


def _synthesised(
    scan: Subject, contrast: str, settings: SynthesisSettings, grid: Grid, number: int
) -> Subject:
    own = dataclasses.replace(settings, contrasts=(contrast,), cut=0.0)
    brain = scan.brain.astype(np.float32)
    key = jax.random.key(number)
    image, _, _ = synthesise(key, scan.tissue, brain, grid.spacing, own)
    return dataclasses.replace(scan, image=np.asarray(image))


def _draw(place: Any, scan: Subject, grid: Grid) -> None:
    """An axial plane through the lateral ventricles."""
    centre = tuple(n // 2 for n in grid.shape[:2]) + (round(0.57 * grid.shape[2]),)
    view = slices.View(centre, slices.box_around(scan.brain), grid.spacing)
    most = max(float(np.percentile(scan.image[scan.brain], 99.8)), 1e-3)
    draw_plane(place, scan.image, slices.AXIAL, view, cmap='gray', vmin=0.0, vmax=most)
