"""The loop of `fluidjax predict`: files in, anomaly maps and pages out.

    files -> read and preprocessed -> Detector, in batches -> on the scan's voxels -> files

A scan that cannot be used does not stop the others, and leaves no file. A disk that cannot be
written to stops all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from data_pipelines.scan_folders import counted
from fluidjax.base import cli, disk
from fluidjax.base.errors import DiskError, UserError
from fluidjax.base.failures import failure_line
from fluidjax.base.names import shown
from fluidjax.predict.files import Source, write_prediction
from fluidjax.predict.fuse import fuse_sessions
from fluidjax.predict.models import Models, load_models
from fluidjax.predict.on_scan import grid_of, predicted_on_scan
from fluidjax.predict.out_folder import (
    check_folder,
    describe_folder,
    refuse_another_scan,
    write_folder_index,
)
from fluidjax.predict.reading import Options, Scan, read_scans
from fluidjax.predict.scans import ScanFile, Selection
from fluidjax.runs.detector import Detector, Output


def predict(
    selection: Selection,
    workdir: Path,
    out: Path,
    rule: str = 'dice',
    options: Options = Options(),
    jobs: int = 1,
    counterpart: str = 'filled',
    fuse: bool = False,
) -> None:
    """Write counterpart, maps, masks, table of regions, picture and page of each scan.

    Args:
        selection: the scans, and the files that are none.
        workdir: a trained and evaluated run, or a model package.
        out: the folder to write to, see `predict.files`.
        rule: which threshold of the run marks a voxel, see `runs.thresholds`.
        options: how scans are read.
        jobs: how many scans are preprocessed at once; the results do not depend on it.
        counterpart: what is written as the healthy image, one of `on_scan.COUNTERPARTS`.
        fuse: also fuse the contrasts of each session, see `predict.fuse`.

    Raises:
        UserError: no trained and evaluated run, or some scan failed or session was not fused (after
            all others are done).
    """
    files = selection.files
    check_folder(out)
    for file in files:
        refuse_another_scan(out, file)
    if options.brain and len(files) > 1:
        raise UserError(
            f'--brain: is the mask of one scan, but there are {len(files)}; predict them one by one'
        )
    models = load_models(workdir, rule, counterpart)
    options = options.of_run(models.run, models.contrasts)
    with contextlib.closing(read_scans(files, grid_of(models.run), options, jobs)) as scans:
        outcome = _predict_all(scans, len(files), models, out)
    if fuse and not outcome.problem:
        _fuse(outcome, out)
    _report(outcome, selection, out)


@dataclasses.dataclass
class _Outcome:
    """What became of the scans.

    Attributes:
        done: those whose results were written.
        failures: a line for each that failed.
        not_fused: a line for each session that could not be fused.
        problem: what is wrong with the disk, if that stopped the others.
    """

    done: list[ScanFile] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    not_fused: list[str] = dataclasses.field(default_factory=list)
    problem: str = ''

    def left(self, files: Sequence[ScanFile]) -> list[str]:
        """The paths of the scans that were not tried, or not to the end."""
        paths = [shown(file.path) for file in files if file not in self.done]
        return [p for p in paths if not any(line.startswith(f'{p}:') for line in self.failures)]


def _fuse(outcome: _Outcome, out: Path) -> None:
    """Fuse the sessions, while the disk takes the results, and say what was marked."""
    try:
        for is_fused, line in fuse_sessions(out, outcome.done):
            cli.tell(line) if is_fused else outcome.not_fused.append(line)
    except Exception as error:
        if not disk.is_of_disk(error):
            raise
        outcome.problem = _problem_of_disk(out, error)


def _report(outcome: _Outcome, selection: Selection, out: Path) -> None:
    """Write the index of the folder, and name the scans and other files that are not in it.

    Raises:
        UserError: there are such scans, an argument without any, or sessions that were not fused.
    """
    files, failures = selection.files, outcome.failures
    left = outcome.left(files)
    counts = counted(len(outcome.done), selection.left_out, len(failures) + len(left))
    try:
        if outcome.done:
            describe_folder(out)
            missing = [*failures, *selection.failures, *(f'{path}: not done' for path in left)]
            lines = [*missing, *outcome.not_fused, *counts[1:]]
            cli.tell(f'{write_folder_index(out, lines)}')
    except OSError as error:
        outcome.problem = outcome.problem or _problem_of_disk(out, error)
    if len(files) + len(selection.left_out) + len(selection.failures) > 1:
        for line in counts:
            cli.tell(line)
    elif failures:
        raise UserError(failures[0])
    for line in (*failures, *selection.failures):
        cli.tell(f'failed: {line}')
    for line in (*(f'not done: {path}' for path in left), *outcome.not_fused):
        cli.tell(line)
    if outcome.problem:
        missing = f'{len(left)} of {len(files)} scans are not done, see above'
        raise DiskError(f'{outcome.problem}{f"; {missing}" if left else ""}')
    if failures:
        raise UserError(f'{len(failures)} of {len(files)} scans failed, see above')
    if selection.failures:
        raise UserError(f'{len(selection.failures)} of the arguments hold no scan, see above')
    if outcome.not_fused:
        raise UserError(f'not fused: {len(outcome.not_fused)} of the sessions, see above')


def _problem_of_disk(out: Path, error: Exception) -> str:
    if isinstance(error, DiskError):
        return str(error)
    return f'--out: {shown(out)}: {disk.reason(error, out)}'


def _predict_all(scans: Iterator[Scan | str], count: int, models: Models, out: Path) -> _Outcome:
    """Predict and write every scan that can be used, while the disk takes the results."""
    outcome = _Outcome()
    with tqdm(total=count, desc='predict', unit='scan', disable=count < 2) as bar:
        usable = _usable(scans, outcome.failures, bar)
        for scan, output, number in _detected(usable, models, outcome.failures):
            try:
                if output is not None:
                    source = models.for_contrast(scan.contrast).source
                    _write(out, scan, output, number, source)
                    outcome.done.append(scan.file)
            except Exception as error:
                if disk.is_of_disk(error):
                    outcome.problem = _problem_of_disk(out, error)
                    break
                outcome.failures.append(failure_line(scan.file.path, error))
            bar.update()
    return outcome


def _detected(
    usable: Iterator[Scan], models: Models, failures: list[str]
) -> Iterator[tuple[Scan, Output | None, int]]:
    """Scans with the output of their batch and their number in it.

    The scans of a batch that fails are tried one by one; the output of one that fails is None, and
    its line is added to `failures`.
    """
    for detector, batch in _batches(usable, models):
        size = detector.batch_size
        try:
            output = detector.detect([scan.case for scan in batch])
        except Exception as error:  # out of memory, perhaps, which one scan at a time may not be
            single = None if size == 1 else detector.with_batch(1)  # needs less memory
            for scan in batch:
                yield scan, _output_of_one(scan, single, error, failures), 0
            continue
        for number, scan in enumerate(batch):
            yield scan, output, number


def _batches(usable: Iterator[Scan], models: Models) -> Iterator[tuple[Detector, list[Scan]]]:
    """Batches of scans for one model, as soon as each is full; at the end the rest."""
    waiting: dict[int, tuple[Detector, list[Scan]]] = {}
    for scan in usable:
        detector = models.for_contrast(scan.contrast).detector
        batch = waiting.setdefault(id(detector), (detector, []))[1]
        batch.append(scan)
        if len(batch) == detector.batch_size:
            yield waiting.pop(id(detector))
    yield from waiting.values()


def _output_of_one(
    scan: Scan, detector: Detector | None, error: Exception, failures: list[str]
) -> Output | None:
    """The output of a scan on its own; with no detector for that, it failed with `error`."""
    if detector is not None:
        try:
            return detector.detect([scan.case])
        except Exception as own:
            error = own
    failures.append(failure_line(scan.file.path, error))
    return None


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
    predicted = predicted_on_scan(
        scan.case,
        output,
        number,
        source.threshold,
        scan.volume,
        scan.background,
        source.counterpart,
    )
    summary, path = write_prediction(out, scan, predicted, source), shown(scan.file.path)
    for warning in scan.warnings:
        tqdm.write(f'{path}: {warning}', file=sys.stderr)
    regions = f'{summary["regions"]} region{"s" * (summary["regions"] != 1)}'
    marked = f'{summary["marked_ml"]:.1f} ml marked in {regions}'
    tqdm.write(f'{path}: {marked}; {shown(out / summary["page"])}', file=sys.stderr)
