"""Scans read and preprocessed, several at once in processes of their own.

The results do not depend on the number of processes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from joblib.externals import loky
from joblib.externals.loky.process_executor import BrokenProcessPool

from data_pipelines.grids import ModelGrid
from data_pipelines.quality_picture import quality_figure
from data_pipelines.volume_io import Volume, load_volume
from fluidjax.base.failures import failure_line
from fluidjax.base.names import shown
from fluidjax.base.subject import Subject
from fluidjax.predict.on_scan import Steps, on_model_grid, subject_of
from fluidjax.predict.scans import ScanFile

if TYPE_CHECKING:
    from fluidjax.runs.load import Run

AHEAD = 2  # scans per process that are read before they are needed
IDLE_SECONDS = 600  # until a process without work ends; the model may take long for a batch


@dataclasses.dataclass(frozen=True)
class Options:
    """How scans are read.

    Attributes:
        steps: of preprocessing.
        brain: file of a brain mask on the voxels of the one scan, or ''.
        quality: also draw how the scan was brought onto the model's grid.
        contrasts: that there is a model for.
    """

    steps: Steps = Steps()
    brain: str = ''
    quality: bool = True
    contrasts: tuple[str, ...] = ('t1w',)

    def of_run(self, run: Run, contrasts: tuple[str, ...]) -> Options:
        """These options with the steps that a run was trained with; see `Steps`."""
        return dataclasses.replace(self, steps=self.steps.of_run(run), contrasts=contrasts)


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan that was read.

    Attributes:
        file: where it is, and what its results are called.
        volume: its own voxels.
        case: the scan on the model's grid.
        mni_from_world: the scan's world -> MNI152, mm: (4, 4).
        overlap: Dice of its brain with the atlas.
        warnings: about the scan, for a person.
        extraction: how its brain was found.
        quality: PNG of how it was brought onto the model's grid, or None.
        contrast: that it is taken for.
        background: its intensity of no signal.
    """

    file: ScanFile
    volume: Volume
    case: Subject
    mni_from_world: np.ndarray
    overlap: float
    warnings: tuple[str, ...]
    extraction: str
    quality: bytes | None
    contrast: str = 't1w'
    background: float = 0.0


def read_scans(
    files: Sequence[ScanFile], grid: ModelGrid, options: Options, jobs: int = 1
) -> Iterator[Scan | str]:
    """Scans on a model's grid, in the order of their files.

    Args:
        files: of the scans.
        grid: the model's.
        options: how they are read.
        jobs: number of processes; with 1 everything is done in this one.

    Yields:
        A scan, or, for a scan that cannot be used, a line that says why.
    """
    if jobs == 1:
        yield from (_scan_or_failure(file, grid, options) for file in files)
        return
    try:
        yield from _in_processes(files, grid, options, jobs)
    finally:
        _processes(jobs).shutdown(kill_workers=True)


def _in_processes(
    files: Sequence[ScanFile], grid: ModelGrid, options: Options, jobs: int
) -> Iterator[Scan | str]:
    waiting = collections.deque()
    for file in files:
        future = _processes(jobs).submit(_scan_or_failure, file, grid, options)
        waiting.append((file, future))
        if len(waiting) >= AHEAD * jobs:
            yield _result_of(*waiting.popleft(), grid, options)
    while waiting:
        yield _result_of(*waiting.popleft(), grid, options)


def _processes(jobs: int) -> loky.ProcessPoolExecutor:
    """The pool of processes; a new one if one of its processes was killed."""
    return loky.get_reusable_executor(max_workers=jobs, timeout=IDLE_SECONDS)


def read_scan(file: ScanFile, grid: ModelGrid, options: Options) -> Scan:
    """A scan, read and brought onto a model's grid.

    Raises:
        UserError: the file cannot be used; the message says why.
    """
    volume = load_volume(file.path)
    brain = load_volume(Path(options.brain).expanduser()) if options.brain else None
    preprocessed = on_model_grid(volume, grid, options.steps, options.contrasts, brain)
    return Scan(
        file,
        volume,
        subject_of(file.name, preprocessed),
        grid.affine @ np.linalg.inv(preprocessed.affine),
        preprocessed.overlap,
        preprocessed.warnings,
        preprocessed.extraction,
        quality_figure(preprocessed, grid, volume) if options.quality else None,
        preprocessed.contrast,
        preprocessed.background,
    )


def _scan_or_failure(file: ScanFile, grid: ModelGrid, options: Options) -> Scan | str:
    try:
        return read_scan(file, grid, options)
    except Exception as error:  # one strange file among a thousand must not stop the others
        return failure_line(file.path, error)


def _result_of(
    file: ScanFile, future: loky.Future, grid: ModelGrid, options: Options
) -> Scan | str:
    """The result of a process; a scan whose process was killed is read once more on its own."""
    try:
        return future.result()
    except BrokenProcessPool:  # killed by this scan or by another one that was read beside it
        pass
    except Exception as error:  # what the process read could not be sent here
        return failure_line(file.path, error)
    with loky.ProcessPoolExecutor(max_workers=1) as executor:
        try:
            return executor.submit(_scan_or_failure, file, grid, options).result()
        except BrokenProcessPool:
            return (
                f'{shown(file.path)}: the process that read it was killed, perhaps for want of '
                'memory; try it on its own'
            )
