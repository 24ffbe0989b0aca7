"""A run applied to scans it has never seen: files in, anomaly maps and pages out.

    scan files -> read, preprocess -> Detector, a batch at a time -> on the scan's voxels -> files

A scan that cannot be used does not stop the others, and leaves no file.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fluidjax.base import cli
from fluidjax.base.errors import UserError
from fluidjax.predict.files import (
    Scan,
    Source,
    check_folder,
    describe_folder,
    write_folder_index,
    write_prediction,
)
from fluidjax.predict.on_scan import predicted_on_scan
from fluidjax.predict.scan_input import Steps, model_grid_of, on_model_grid, subject_of
from fluidjax.predict.scans import ScanFile, scan_files
from fluidjax.runs import thresholds
from fluidjax.runs.detector import Detector, Output
from fluidjax.runs.load import Run, load_run


@dataclasses.dataclass(frozen=True)
class Options:
    """What a person may ask for.

    Attributes:
        steps: of preprocessing.
        brain: file of a brain mask on the voxels of the one scan, or ''.
        quality: also draw how the scan was brought onto the model's grid.
    """

    steps: Steps = Steps()
    brain: str = ''
    quality: bool = True


def predict(
    scans: Sequence[str], workdir: Path, out: Path, rule: str = 'dice', options: Options = Options()
) -> None:
    """Write counterpart, maps, masks, lesion table, picture and page of each scan, on its voxels.

    Args:
        scans: image files and folders, see `scan_names.scan_files`.
        workdir: a trained and evaluated run.
        out: the folder to write to, see `predicted_files`.
        rule: which threshold of the run's calibration marks a voxel, see `calibration`.
        options: of preprocessing.

    Raises:
        UserError: no trained and evaluated run, names that collide (before any work), or some scan
            failed (after all others are done).
    """
    check_folder(out)
    files = scan_files(scans, out)
    if options.brain and len(files) > 1:
        raise UserError(
            f'--brain: is the mask of one scan, but there are {len(files)}; predict them one by one'
        )
    run = load_run(workdir)
    if run.method.needs_mask:
        raise UserError(
            f'{workdir}: {run.config.method} must be told where the lesion is, so it '
            'finds none; predict with a run of another method'
        )
    threshold = thresholds.load(workdir, run.name, run.step, rule)
    source = Source(workdir.name, str(run.config.method), run.step, rule, threshold)
    failures = _predict_all(files, Detector(run), source, out, options)
    if len(failures) < len(files):
        describe_folder(out)
        cli.tell(f'{write_folder_index(out, failures)}')
    if failures:
        for line in failures:
            cli.tell(f'failed: {line}')
        raise UserError(
            f'{len(failures)} of {len(files)} scans failed, see above'
            if len(files) > 1
            else failures[0]
        )


def read_scan(file: ScanFile, run: Run, options: Options = Options()) -> Scan:
    """A scan, read and brought onto the model's grid.

    Raises:
        UserError: the file cannot be used; the message says why.
    """
    from data_pipelines.quality import quality_figure
    from data_pipelines.volume_io import load_volume

    volume, grid = load_volume(file.path), model_grid_of(run)
    brain = load_volume(options.brain) if options.brain else None
    made = on_model_grid(volume, run, options.steps, brain)
    picture = quality_figure(made, grid, volume) if options.quality else None
    return Scan(
        file,
        volume,
        subject_of(file.name, made),
        grid.affine @ np.linalg.inv(made.affine),
        made.overlap,
        made.warnings,
        made.extraction,
        picture,
    )


def _predict_all(
    files: Sequence[ScanFile], detector: Detector, source: Source, out: Path, options: Options
) -> list[str]:
    """Predict and write every scan that can be read; a line for each that cannot."""
    failures: list[str] = []
    size = int(detector.run.config.detect.batch_size)
    with tqdm(total=len(files), desc='predict', unit='scan', disable=len(files) < 2) as bar:
        readable = _readable(files, detector.run, options, failures, bar)
        while batch := list(itertools.islice(readable, size)):
            output = detector.detect([scan.case for scan in batch])
            for i, scan in enumerate(batch):
                try:
                    _write(out, scan, output, i, source)
                except OSError as error:
                    failures.append(_line(scan.file, error))
                bar.update()
    return failures


def _readable(
    files: Sequence[ScanFile], run: Run, options: Options, failures: list[str], bar: tqdm
) -> Iterator[Scan]:
    """The scans that can be read, one by one; a line is added to `failures` for each other."""
    for file in files:
        try:
            yield read_scan(file, run, options)
        except Exception as error:  # one strange file among a thousand must not end the night's run
            failures.append(_line(file, error))
            bar.update()


def _line(file: ScanFile, error: Exception) -> str:
    """What went wrong with a scan, as one line that begins with its path."""
    text = ' '.join(str(error).split())
    if not isinstance(error, UserError):
        what = error.strerror if isinstance(error, OSError) else f'{type(error).__name__}: {text}'
        text = f'{file.path}: failed unexpectedly ({what}); look at it in a viewer'
    return text if text.startswith(str(file.path)) else f'{file.path}: {text}'


def _write(out: Path, scan: Scan, output: Output, i: int, source: Source) -> None:
    """Write the i-th scan of a batch, and say so."""
    spread = None if output.uncertainty is None else output.uncertainty[i]
    found = predicted_on_scan(
        scan.case, output.counterparts[i], output.maps[i], spread, source.threshold, scan.volume
    )
    summary = write_prediction(out, scan, found, source)
    for warning in scan.warnings:
        tqdm.write(f'{scan.file.path}: {warning}', file=sys.stderr)
    regions = f'{summary["regions"]} region{"s" * (summary["regions"] != 1)}'
    tqdm.write(
        f'{scan.file.path}: {summary["marked_ml"]:.1f} ml marked in {regions}; '
        f'{out / summary["page"]}',
        file=sys.stderr,
    )
