"""A folder of scans made ready for training: in parallel, once, and kept by content.

    DATA -> cases and splits -> records in STORE/records -> STORE/prepared/<hash>.json, summary.html

What is kept in STORE is found again by everything that opens the same folders with that store
(`as_prepared`): no scan is preprocessed twice, the division into splits is the prepared one, and
files that failed stay out. Interrupted, the same command goes on.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tqdm

from data_pipelines import nifti_source, record_cache, scan_folders, subject_splits
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.scan_folders import Case
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_text

RECORDS, PREPARED = 'records', 'prepared'
NAMED_FAILURES = 5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one scan, or of one mask of the lesion bank.

    Attributes:
      item: the scan with its mask, or the mask. split: where it goes; 'lesions' for the bank.
      purpose: the setting that names its folder. record: its name in the cache, or ''.
      error: why there is none, or ''.
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
    """Preprocess all scans of a source that the store does not hold yet.

    Args:
      source: folders and settings.
      store: folder to write to; `config.cohort.store` of the runs that use it.
      choice: who goes to which split, or nothing for the division by the source's seed.
      workers: processes.
      skip_failures: leave out what cannot be used, instead of refusing the whole.

    Returns:
      The source as prepared, and what became of each file. Where something failed and failures are
      not skipped nothing but the records is kept, and the source is as it was.

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
    _remember(source, ready, store, failed)
    return ready, outcomes


def failures_text(outcomes: Sequence[Outcome]) -> str:
    """How many files failed, and why, in one line; '' for none."""
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
    """A source with what its store knows of it; the source itself where nothing was prepared.

    Raises:
      UserError: the store holds the same folder prepared from other files or with other settings.
    """
    path = _memory_of(source, store)
    if path.is_file():
        held = _read(path)
        assigned = held['assigned']
        return dataclasses.replace(
            source,
            records=os.fspath(store / RECORDS),
            assigned=None if assigned is None else tuple(map(tuple, assigned)),
            left_out=tuple(key for key, _ in held['left_out']),
        )
    for other in sorted((store / PREPARED).glob('*.json')):
        held = _read(other)
        if held['data_dir'] == os.fspath(Path(source.data_dir).resolve()):
            raise UserError(
                f'{store}: holds {source.data_dir} prepared from other files or with other settings'
                f' ({held["settings"]}); prepare it again (fluidjax prepare), or name '
                'another store'
            )
    return source


def _memory_of(source: NiftiSource, store: Path) -> Path:
    return store / PREPARED / f'{source.inputs()}.json'


def _read(path: Path) -> dict:
    try:
        held = json.loads(path.read_text())
        if {'data_dir', 'settings', 'assigned', 'left_out'} <= set(held):
            return held
    except (ValueError, TypeError):
        pass
    raise UserError(f'{path}: is damaged; prepare the folder again (fluidjax prepare)')


def _remember(source: NiftiSource, ready: NiftiSource, store: Path, failed: list[Outcome]) -> None:
    reasons = {key: outcome.error for outcome in failed for key in _keys_of(outcome, source)}
    grid = source.grid
    held = {
        'data_dir': os.fspath(Path(source.data_dir).resolve()),
        'settings': f'grid {"x".join(map(str, grid.shape))} at {grid.spacing[0]:g} mm, registration'
        f" {source.registration}, test_dir '{source.test_dir}', lesion_dir "
        f"'{source.lesion_dir}'",
        'assigned': ready.assigned,
        'left_out': [[key, reasons.get(key, '')] for key in ready.left_out],
    }
    write_text(_memory_of(source, store), json.dumps(held, indent=1) + '\n')


def _broken_masks(source: NiftiSource) -> list[Outcome]:
    """The cases whose lesion mask cannot be read, so that their split cannot be told."""
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
    """The files that go with a failure: where a patient's scan fails, all scans of the patient,
    who would else be taken for healthy."""
    item = outcome.item
    if isinstance(item, Path):
        return [source.key(item, outcome.purpose)]
    if item.mask is None or outcome.purpose != 'data_dir':
        return [source.key(item.scan, outcome.purpose)]
    person = scan_folders.person(item.scan)
    return [
        source.key(case.scan)
        for case in scan_folders.find_cases(source.data_dir, 'data_dir')
        if scan_folders.person(case.scan) == person
    ]


def _waiting(source: NiftiSource) -> list[Outcome]:
    """Every item that a cohort of this source needs, nothing done yet."""
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
    """Make and keep the record of every item, in `workers` processes; in the order given."""
    done: dict[int, Outcome] = {}
    progress = tqdm.tqdm(total=len(waiting), desc='preprocessing', unit='file', file=sys.stderr)
    for number, outcome in _work_through(waiting, source, min(workers, len(waiting))):
        done[number] = outcome
        progress.update()
        if outcome.error:
            progress.write(f'left out: {outcome.error}', file=sys.stderr)
    progress.close()
    return [done[number] for number in range(len(waiting))]


def _work_through(
    waiting: list[Outcome], source: NiftiSource, workers: int
) -> Iterator[tuple[int, Outcome]]:
    if workers <= 1:
        yield from ((number, make_one(item, source)) for number, item in enumerate(waiting))
        return
    # Spawned, not forked: a fork of a process that runs threads can hang.
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        numbers = {
            pool.submit(make_one, item, source): number for number, item in enumerate(waiting)
        }
        try:
            for future in concurrent.futures.as_completed(numbers):
                yield numbers[future], future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                '--workers: a process was killed, perhaps for want of memory; start '
                'again with fewer, what is done is kept'
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_one(waiting: Outcome, source: NiftiSource) -> Outcome:
    """Make the record of an item unless the cache holds it; what is wrong with it is its error."""
    try:
        key = record_cache.key_of(waiting.item, source)
        if record_cache.load(source, key) is None:
            record_cache.save(source, key, record_cache.make(waiting.item, source))
    except UserError as error:
        return dataclasses.replace(waiting, error=str(error))
    return dataclasses.replace(waiting, record=key)
