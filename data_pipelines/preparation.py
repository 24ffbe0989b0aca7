"""Preparing a folder of scans for training: in parallel, and each scan only once.

    DATA -> cases and splits -> records in STORE/records -> STORE/prepared/<hash>.json, summary.html

A cohort of the same folders that is opened with this store (`as_prepared`) uses its records, its
splits and its list of files that cannot be used. After an interruption the same command continues.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import joblib
import tqdm
from joblib.externals.loky.process_executor import BrokenProcessPool

from data_pipelines import nifti_source, records, scan_folders, subject_splits
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.scan_folders import Case
from fluidjax.base.disk import is_of_disk
from fluidjax.base.errors import UserError
from fluidjax.base.failures import failure_line
from fluidjax.base.files import read_json, write_text

RECORDS, PREPARED = 'records', 'prepared'
NAMED_FAILURES = 5
PREPARE_AGAIN = 'prepare the folder again (fluidjax prepare)'


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result for one scan, or for one mask of the lesion bank.

    Attributes:
      item: the scan with its mask, or the mask.
      split: of the item; 'lesions' for the bank.
      purpose: the setting that names its folder.
      record: key of its record in the cache; '' if there is none.
      error: why there is no record, or ''.
    """

    item: Case | Path
    split: str
    purpose: str
    record: str = ''
    error: str = ''


def prepare(
    source: NiftiSource,
    store: Path,
    choice: subject_splits.Choice,
    workers: int = 1,
    skip_failures: bool = False,
) -> tuple[NiftiSource, list[Outcome]]:
    """Preprocess all scans of a source that are not in the store yet.

    Args:
      source: folders and settings.
      store: folder to write to; `config.cohort.store` of the runs that use it.
      choice: the splits of the user, or none for the random division by the source's seed.
      workers: number of processes.
      skip_failures: leave out files that cannot be used, instead of stopping.

    Returns:
      The source as prepared, and an outcome for each file. If a file failed and failures are not
      skipped, the source is as it was, and the store contains only the records.

    Raises:
      UserError: folders, splits or lists that cannot be used.
    """
    source = dataclasses.replace(source, records=os.fspath(store / RECORDS))
    broken = _broken_masks(source)
    whole = _leave_out(source, broken)
    whole = dataclasses.replace(whole, assigned=subject_splits.assign(whole, choice))
    outcomes = broken + _make_records(_waiting(whole), whole, workers)
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed and not skip_failures:
        return source, outcomes
    ready = _leave_out(whole, failed)
    nifti_source.assign_splits(ready)  # enough must be left
    _describe(source, ready, store, failed)
    return ready, outcomes


def report(ready: NiftiSource, outcomes: Sequence[Outcome]) -> tuple[int, list[tuple[Path, str]]]:
    """The number of files that are used, and (file, reason) of every other image file."""
    reasons = {key: o.error for o in outcomes if o.error for key in _keys_of(o, ready)}
    return nifti_source.unused_files(ready, reasons)


def failures_text(outcomes: Sequence[Outcome]) -> str:
    """The number of files that failed, and the errors, in one line; '' if there are none."""
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if not errors:
        return ''
    more = f'; and {len(errors) - NAMED_FAILURES} more' if len(errors) > NAMED_FAILURES else ''
    return (
        f'{len(errors)} of {len(outcomes)} files cannot be used: '
        + '; '.join(errors[:NAMED_FAILURES])
        + more
    )


def as_prepared(source: NiftiSource, store: Path) -> NiftiSource:
    """A source as it was prepared in a store; the source itself if it was not.

    Raises:
      UserError: the store contains the same folder prepared from other files or with other
        settings.
    """
    path = _description_of(source, store)
    if path.is_file():
        description = _read(path)
        assigned = description['assigned']
        return dataclasses.replace(
            source,
            records=os.fspath(store / RECORDS),
            assigned=None if assigned is None else tuple(map(tuple, assigned)),
            left_out=tuple(key for key, _ in description['left_out']),
        )
    for other in sorted((store / PREPARED).glob('*.json')):
        description = _read(other)
        if description['data_dir'] == os.fspath(Path(source.data_dir).resolve()):
            raise UserError(
                f'{store}: holds {source.data_dir} prepared from other files or with other settings'
                f' ({description["settings"]}); wanted is {_settings(source)}; prepare the folder '
                'again with these (fluidjax prepare, for the grid --size=SIZE), or name another '
                'store'
            )
    return source


def _description_of(source: NiftiSource, store: Path) -> Path:
    return store / PREPARED / f'{source.inputs()}.json'


def _read(path: Path) -> dict:
    description = read_json(path, PREPARE_AGAIN)
    if not {'data_dir', 'settings', 'assigned', 'left_out'} <= set(description):
        raise UserError(f'{path}: is damaged; {PREPARE_AGAIN}')
    return description


def _describe(source: NiftiSource, ready: NiftiSource, store: Path, failed: list[Outcome]) -> None:
    """Write the splits, and the files that are left out, for `as_prepared`."""
    reasons = {key: outcome.error for outcome in failed for key in _keys_of(outcome, source)}
    description = {
        'data_dir': os.fspath(Path(source.data_dir).resolve()),
        'settings': _settings(source),
        'assigned': ready.assigned,
        'left_out': [[key, reasons.get(key, '')] for key in ready.left_out],
    }
    write_text(_description_of(source, store), json.dumps(description, indent=1) + '\n')


def _settings(source: NiftiSource) -> str:
    """The settings that an error shows."""
    grid = source.grid
    return (
        f'grid {"x".join(map(str, grid.shape))} at {grid.spacing[0]:g} mm, registration '
        f"{source.registration}, test_dir '{source.test_dir}', lesion_dir '{source.lesion_dir}'"
    )


def _broken_masks(source: NiftiSource) -> list[Outcome]:
    """The cases whose lesion mask cannot be read, so that their split is unknown."""
    broken = []
    for case in scan_folders.find_cases(source.data_dir, 'data_dir'):
        try:
            nifti_source.has_lesion(case)
        except UserError as error:
            broken.append(Outcome(case, 'none', 'data_dir', error=str(error)))
    return broken


def _leave_out(source: NiftiSource, failed: list[Outcome]) -> NiftiSource:
    keys = {key for outcome in failed for key in _keys_of(outcome, source)}
    return dataclasses.replace(source, left_out=tuple(sorted(keys | set(source.left_out))))


def _keys_of(outcome: Outcome, source: NiftiSource) -> list[str]:
    """The files that are left out after a failure.

    If the scan of a patient fails, these are all scans of the patient: without the mask the others
    would be used as healthy ones.
    """
    item = outcome.item
    if isinstance(item, Path):
        return [source.key(item, outcome.purpose)]
    if not item.masks or outcome.purpose != 'data_dir':
        return [source.key(item.scan, outcome.purpose)]
    return [
        source.key(case.scan)
        for case in scan_folders.find_cases(source.data_dir, 'data_dir')
        if case.person == item.person
    ]


def _waiting(source: NiftiSource) -> list[Outcome]:
    """All items of a cohort of this source, without results."""
    test_dir = Path(source.test_dir) if source.test_dir else None

    def purpose(item: Case | Path) -> str:
        if isinstance(item, Path):
            return 'lesion_dir'
        inside = test_dir is not None and test_dir in item.scan.parents
        return 'test_dir' if inside else 'data_dir'

    return [
        Outcome(item, split, purpose(item))
        for split, items in nifti_source.all_items(source).items()
        for item in items
    ]


def _make_records(waiting: list[Outcome], source: NiftiSource, workers: int) -> list[Outcome]:
    """Make and store the record of each item in `workers` processes; results in the same order."""
    done: dict[int, Outcome] = {}
    parallel = joblib.Parallel(max(1, min(workers, len(waiting))), return_as='generator_unordered')
    tasks = (joblib.delayed(_numbered)(i, item, source) for i, item in enumerate(waiting))
    with tqdm.tqdm(total=len(waiting), desc='preprocessing', unit='file', file=sys.stderr) as bar:
        try:
            for number, outcome in parallel(tasks):
                done[number] = outcome
                bar.update()
                if outcome.error:
                    bar.write(f'left out: {outcome.error}', file=sys.stderr)
        except BrokenProcessPool as error:
            raise UserError(
                '--workers: a process was killed, perhaps because memory ran out; start again '
                'with fewer, finished scans are kept'
            ) from error
    return [done[number] for number in range(len(waiting))]


def _numbered(number: int, waiting: Outcome, source: NiftiSource) -> tuple[int, Outcome]:
    return number, make_one(waiting, source)


def make_one(waiting: Outcome, source: NiftiSource) -> Outcome:
    """Make the record of an item, unless the cache has it; returns its key or its error."""
    try:
        key = records.key_of(waiting.item, source)
        made = records.load(source, key)
        if made is None:
            made = records.make(waiting.item, source)
            records.save(source, key, made)
        records.check_healthy(made, waiting.item, waiting.split)
    except Exception as error:  # one strange file among a thousand must not stop the others
        if is_of_disk(error):
            raise
        path = records.files_of(waiting.item)[0]
        line = str(error) if isinstance(error, UserError) else failure_line(path, error)
        return dataclasses.replace(waiting, error=line)
    return dataclasses.replace(waiting, record=key)
