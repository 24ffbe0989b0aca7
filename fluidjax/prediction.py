"""A run applied to scans it has never seen: files in, anomaly maps and a picture out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fluidjax import cli
from fluidjax.detect.evaluate import voxel_ml
from fluidjax.detect.figures import Panel
from fluidjax.errors import UserError
from fluidjax.evaluation import Case, Detector, save_panel
from fluidjax.experiment import load_run

LOW_OVERLAP = 0.85


def load_threshold(workdir: Path, method: str) -> float:
    """The threshold that the evaluation of a run chose on validation subjects.

    Raises:
        UserError: the run was not evaluated yet.
    """
    path = workdir / 'eval' / 'thresholds.json'
    if not path.is_file():
        raise UserError(f'{workdir}: has no threshold yet; evaluate the run first: '
                        f'python -m fluidjax.eval --workdir={workdir}')
    return float(json.loads(path.read_text())[method])


def case_of(path: str, detector: Detector) -> Case:
    """A skull-stripped T1w scan, brought onto the model's grid.

    Raises:
        UserError: the file cannot be used; the message says why.
    """
    from data_pipelines import volume_io
    from data_pipelines.grids import ModelGrid
    from data_pipelines.preprocess import preprocess

    config, grid = detector.run.config, detector.run.grid
    registration = 'affine' if config.cohort.name == 'template' else config.cohort.registration
    made = preprocess(volume_io.load_volume(path), ModelGrid(grid.shape, grid.spacing),
                      registration=registration)
    if made.overlap < LOW_OVERLAP:
        cli.tell(f'{path}: its brain overlaps the atlas by only {made.overlap:.2f}; is it a '
                 'skull-stripped T1w scan? Look at the picture before the numbers')
    return Case(volume_io.strip_ending(Path(path).name), made.image, made.brain, None, None,
                made.affine)


def predict(scans: Sequence[str], workdir: Path, out: Path) -> None:
    """Write counterpart, anomaly map, mask and a picture for each scan, in the scan's own space.

    A scan that fails does not stop the others; failures are listed at the end.

    Raises:
        UserError: no trained and evaluated run, or some scan failed.
    """
    run = load_run(workdir)
    threshold = load_threshold(workdir, run.config.method)
    detector = Detector(run)
    failed = []
    for number, path in enumerate(scans, 1):
        try:
            case = case_of(path, detector)
        except UserError as error:
            failed.append(str(error))
            continue
        output, _ = detector.detect([case])
        folder = out / case.name
        save_panel(folder, Panel('predicted', run.config.method, case, output.counterparts[0],
                                 output.maps[0], threshold))
        marked = int(np.sum((output.maps[0] >= threshold) & case.brain))
        volume = marked * voxel_ml(case.affine)
        cli.tell(f'[{number}/{len(scans)}] {path}: {volume:.1f} ml marked; {folder}')
    if failed:
        raise UserError(f'{len(failed)} of {len(scans)} scans failed: ' + '; '.join(failed))
