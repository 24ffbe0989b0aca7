"""A run applied to scans it has never seen: files in, anomaly maps and a picture out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.subject import Subject
from fluidjax import calibration, cli
from fluidjax.detect.evaluate import voxel_ml
from fluidjax.detect.figures import Panel
from fluidjax.detector import Detector
from fluidjax.errors import UserError
from fluidjax.evaluation import save_panel
from fluidjax.experiment import load_run

LOW_OVERLAP = 0.85


def volume_name(path: str) -> str:
    """A scan's name: its file's, without the ending."""
    from data_pipelines.volume_io import strip_ending

    return strip_ending(Path(path).name)


def case_of(path: str, detector: Detector) -> Subject:
    """A skull-stripped T1w scan, brought onto the model's grid.

    Raises:
        UserError: the file cannot be used; the message says why.
    """
    from data_pipelines.grids import ModelGrid
    from data_pipelines.preprocess import preprocess
    from data_pipelines.volume_io import load_volume

    config, grid = detector.run.config, detector.run.grid
    registration = 'affine' if config.cohort.name == 'template' else config.cohort.registration
    made = preprocess(load_volume(path), ModelGrid(grid.shape, grid.spacing),
                      registration=registration)
    if made.overlap < LOW_OVERLAP:
        cli.tell(f'{path}: its brain overlaps the atlas by only {made.overlap:.2f}; is it a '
                 'skull-stripped T1w scan? Look at the picture before the numbers')
    if not made.brain.any():
        raise UserError(f"{path}: no brain on the model's grid; is it a skull-stripped T1w scan?")
    return Subject(volume_name(path), made.image, made.brain, None, None,
                made.affine)


def predict(scans: Sequence[str], workdir: Path, out: Path, rule: str = 'dice') -> None:
    """Write counterpart, anomaly map, mask and a picture for each scan, in the scan's own space.

    A scan that fails does not stop the others; failures are listed at the end.

    Args:
        rule: which threshold of the run's calibration marks a voxel, see `calibration`.

    Raises:
        UserError: no trained and evaluated run, or some scan failed.
    """
    names = [volume_name(path) for path in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two scans are called '{twice[0]}' and would overwrite each other in "
                        f'{out}; rename one, or predict them apart')
    run = load_run(workdir)
    if run.method.needs_mask:
        raise UserError(f'{workdir}: {run.config.method} must be told where the lesion is, so it '
                        'finds none; predict with a run of another method')
    threshold = calibration.load(workdir, run.name, run.step, rule)
    detector = Detector(run)
    failed = []
    for number, path in enumerate(scans, 1):
        try:
            case = case_of(path, detector)
        except UserError as error:
            failed.append(str(error))
            continue
        output = detector.detect([case])
        folder = out / case.name
        save_panel(folder, Panel('predicted', run.config.method, case, output.counterparts[0],
                                 output.maps[0], threshold),
                   None if output.uncertainty is None else output.uncertainty[0])
        marked = int(np.sum((output.maps[0] >= threshold) & case.brain))
        volume = marked * voxel_ml(case.affine)
        cli.tell(f'[{number}/{len(scans)}] {path}: {volume:.1f} ml marked; {folder}')
    if failed:
        raise UserError(f'{len(failed)} of {len(scans)} scans failed: ' + '; '.join(failed))
