"""Preprocess a folder of scans for training, each scan once and several in parallel.

    fluidjax prepare HEALTHY --out=store
    fluidjax prepare HEALTHY --out=store --test_dir=PATIENTS --workers=8
    fluidjax train --config=configs/ldm.py:demo,cohort=nifti,method=fluidjax \\
        --workdir=runs/mine \\
        --config.cohort.data_dir=HEALTHY --config.cohort.store=store

HEALTHY is a folder of T1w scans, best skull-stripped, BIDS or plain. The command also writes a page
with a picture of each scan, STORE/summary.html. Give `train` the same --config.cohort.test_dir and
lesion_dir, if any. After an interruption the same command continues.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections import Counter
from pathlib import Path

import joblib
from absl import flags

from data_pipelines import preparation, preparation_page, preprocess
from data_pipelines.grids import GRIDS
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.scan_folders import counted
from data_pipelines.subject_splits import Choice
from fluidjax.base import cli
from fluidjax.base.disk import check_output
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_text
from fluidjax.base.settings import SYNONYMS

FLAGS = cli.Flags()
_text = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_number = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
OUT = _text('out', None, 'Folder to write to: config.cohort.store of the runs.')
SIZE = _text('size', 'demo', "The model grid: the configuration's size.")
REGISTRATION = _text(
    'registration', 'affine', "'affine', or 'none' for scans that are in MNI152 space already."
)
TEST_DIR = _text('test_dir', '', 'Folder of scans for the test split.')
LESION_DIR = _text('lesion_dir', '', 'Folder of lesion masks in MNI152 space.')
WORKERS = _number('workers', None, 'Number of processes; by default one per CPU.', lower_bound=1)
SEED = _number('seed', 0, 'Seed of the random splits: config.seed of the run.', lower_bound=0)
SPLIT_COLUMN = _text(
    'split-column', '', 'Column of HEALTHY/participants.tsv with train, validation or test.'
)
LISTS = {
    split: _text(f'{split}-list', '', f'Text file, one subject per line, for the {split} split.')
    for split in ('train', 'validation', 'test')
}
SKIP_FAILURES = FLAGS.add_switch('skip-failures', False, 'Leave out files that cannot be used.')


@dataclasses.dataclass(frozen=True)
class Request:
    """A folder to prepare, and how.

    Attributes:
      data_dir, test_dir, lesion_dir, registration, seed: see `NiftiSource`.
      store: folder to write to.
      size: name of the grid.
      choice: the splits of the user.
      workers: number of processes.
      skip_failures: leave out files that cannot be used.
    """

    data_dir: str
    store: Path
    size: str = 'demo'
    registration: str = 'affine'
    test_dir: str = ''
    lesion_dir: str = ''
    seed: int = 0
    choice: Choice = Choice()
    workers: int = 1
    skip_failures: bool = False


def build(request: Request) -> str:
    """Preprocess all scans, and write their records, the page and the cohort.

    Returns:
      A summary and the next command, for the user.

    Raises:
      UserError: settings or folders that cannot be used, or, unless failures are skipped, files;
        the page lists all of them, the message the first ones.
    """
    source = _source(request)
    check_output(request.store, '--out')
    page = request.store / 'summary.html'
    ready, outcomes = preparation.prepare(
        source, request.store, request.choice, request.workers, request.skip_failures
    )
    failures = preparation.failures_text(outcomes)
    stopped = failures and not request.skip_failures
    used, unused = (0, []) if stopped else preparation.report(ready, outcomes)
    write_text(page, preparation_page.page(ready, outcomes, unused))
    for line in counted(used, unused) if not stopped else ():
        cli.tell(line)
    if stopped:
        raise UserError(
            f'{failures}; see {page}. Correct them and start again, the others are kept; '
            'or leave them out with --skip-failures'
        )
    from data_pipelines import input_pipeline  # imports TensorFlow, which workers do not need

    cohort = input_pipeline.nifti_cohort(
        source.grid,
        request.store,
        source.data_dir,
        source.test_dir,
        source.lesion_dir,
        source.registration,
        source.seed,
    )
    sizes = ', '.join(f'{n} {split}' for split, n in cohort.sizes.items())
    return (
        f'{sizes}; {_left_out(outcomes)}look at {page.absolute()}\n'
        f'next: fluidjax train {_flags(request, source)} --workdir=runs/mine'
    )


def _source(request: Request) -> NiftiSource:
    size = SYNONYMS.get(request.size, request.size)
    if size not in GRIDS:
        names = ', '.join([*GRIDS, *SYNONYMS])
        raise UserError(f"--size: '{request.size}' is not one of {names}")
    if request.registration not in preprocess.REGISTRATIONS:
        raise UserError(
            f"--registration: '{request.registration}' is not one of "
            f'{", ".join(preprocess.REGISTRATIONS)}'
        )
    # Written as in `runs.cohort.open_cohort`, so that the same store is found.
    folders = [
        str(Path(folder).expanduser()) if folder else ''
        for folder in (request.data_dir, request.test_dir, request.lesion_dir)
    ]
    return NiftiSource(GRIDS[size], *folders, request.registration, request.seed)


def _left_out(outcomes: list[preparation.Outcome]) -> str:
    counts = Counter(bool(outcome.error) for outcome in outcomes)
    return f'{counts[True]} of {len(outcomes)} files left out; ' if counts[True] else ''


def _flags(request: Request, source: NiftiSource) -> str:
    given = {
        'data_dir': source.data_dir,
        'test_dir': source.test_dir,
        'lesion_dir': source.lesion_dir,
        'store': os.fspath(request.store),
    }
    if request.registration != 'affine':
        given['registration'] = request.registration
    words = [f'--config=configs/ldm.py:{request.size},cohort=nifti,method=fluidjax']
    words += [f'--config.seed={request.seed}'] if request.seed else []
    words += [f'--config.cohort.{name}={value}' for name, value in given.items() if value]
    return shlex.join(words)


def main(folders: list[str]) -> None:
    """Read the flags and prepare."""
    if len(folders) != 1 or not OUT.value:
        raise UserError(
            'prepare needs one folder of scans and --out=STORE, e.g. fluidjax prepare '
            'scans --out=prepared'
        )
    lists = {split: flag.value for split, flag in LISTS.items() if flag.value}
    print(
        build(
            Request(
                data_dir=folders[0],
                store=Path(OUT.value).expanduser(),
                size=SIZE.value,
                registration=REGISTRATION.value,
                test_dir=TEST_DIR.value,
                lesion_dir=LESION_DIR.value,
                seed=SEED.value,
                choice=Choice(SPLIT_COLUMN.value, lists),
                workers=WORKERS.value or joblib.cpu_count(),
                skip_failures=SKIP_FAILURES.value,
            )
        )
    )


def command() -> None:
    """`fluidjax prepare`."""
    cli.run(main, FLAGS, takes_arguments=True, interrupted='the same command continues')
