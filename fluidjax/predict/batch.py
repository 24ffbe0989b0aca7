"""The loop of `fluidjax predict`: files in, anomaly maps and pages out.

    files -> read and preprocessed -> Detector, in batches -> on the scan's voxels -> files

A scan that cannot be used does not stop the others, and leaves no file.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from fluidjax.base import cli
from fluidjax.base.errors import UserError
from fluidjax.predict.files import (
    Source,
    check_folder,
    describe_folder,
    write_folder_index,
    write_prediction,
)
from fluidjax.predict.on_scan import grid_of, predicted_on_scan
from fluidjax.predict.reading import Options, Scan, failure_line, read_scans
from fluidjax.predict.scans import ScanFile
from fluidjax.runs import thresholds
from fluidjax.runs.detector import Detector, Output
from fluidjax.runs.load import load_run


def predict(
    files: Sequence[ScanFile],
    workdir: Path,
    out: Path,
    rule: str = 'dice',
    options: Options = Options(),
    jobs: int = 1,
) -> None:
    """Write counterpart, maps, masks, table of regions, picture and page of each scan.

    Args:
        files: the scans, see `scans.scan_files`.
        workdir: a trained and evaluated run, or a model package.
        out: the folder to write to, see `predict.files`.
        rule: which threshold of the run marks a voxel, see `runs.thresholds`.
        options: how scans are read.
        jobs: how many scans are preprocessed at once; the results do not depend on it.

    Raises:
        UserError: no trained and evaluated run, or some scan failed (after all others are done).
    """
    check_folder(out)
    if options.brain and len(files) > 1:
        raise UserError(
            f'--brain: is the mask of one scan, but there are {len(files)}; predict them one by one'
        )
    run = load_run(workdir)
    if run.method.needs_mask:
        raise UserError(
            f'{workdir}: {run.config.method} needs a mask of the lesion, so it cannot find any; '
            'predict with a run of another method'
        )
    threshold = thresholds.load(run, rule)
    source = Source(workdir.name, str(run.config.method), run.step, rule, threshold)
    options = options.of_run(run)
    scans = read_scans(files, grid_of(run), options, jobs)
    failures = _predict_all(scans, len(files), Detector(run), source, out)
    if len(failures) < len(files):
        describe_folder(out)
        cli.tell(f'{write_folder_index(out, failures)}')
    if failures and len(files) == 1:
        raise UserError(failures[0])
    for line in failures:
        cli.tell(f'failed: {line}')
    if failures:
        raise UserError(f'{len(failures)} of {len(files)} scans failed, see above')


def _predict_all(
    scans: Iterator[Scan | str], count: int, detector: Detector, source: Source, out: Path
) -> list[str]:
    """Predict and write every scan that can be used; returns a line for each other."""
    failures: list[str] = []
    size = int(detector.run.config.detect.batch_size)
    with tqdm(total=count, desc='predict', unit='scan', disable=count < 2) as bar:
        usable = _usable(scans, failures, bar)
        while batch := list(itertools.islice(usable, size)):
            output = detector.detect([scan.case for scan in batch])
            for number, scan in enumerate(batch):
                try:
                    _write(out, scan, output, number, source)
                except OSError as error:
                    failures.append(failure_line(scan.file, error))
                bar.update()
    return failures


def _usable(scans: Iterator[Scan | str], failures: list[str], bar: tqdm) -> Iterator[Scan]:
    """The scans that could be read; the line of each other is added to `failures`."""
    for scan in scans:
        if isinstance(scan, Scan):
            yield scan
        else:
            failures.append(scan)
            bar.update()


def _write(out: Path, scan: Scan, output: Output, number: int, source: Source) -> None:
    """Write one scan of a batch, and say so."""
    predicted = predicted_on_scan(scan.case, output, number, source.threshold, scan.volume)
    summary = write_prediction(out, scan, predicted, source)
    for warning in scan.warnings:
        tqdm.write(f'{scan.file.path}: {warning}', file=sys.stderr)
    regions = f'{summary["regions"]} region{"s" * (summary["regions"] != 1)}'
    tqdm.write(
        f'{scan.file.path}: {summary["marked_ml"]:.1f} ml marked in {regions}; '
        f'{out / summary["page"]}',
        file=sys.stderr,
    )
