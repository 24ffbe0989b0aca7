"""From a folder of scans to a store that runs train on: `python -m fluidjax.prepare`, in order."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path

from data_pipelines import preparation, preparation_page, preprocess
from data_pipelines.grids import GRIDS
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.subject_splits import Choice
from fluidjax.errors import UserError
from fluidjax.files import write_text


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
      data_dir, test_dir, lesion_dir, registration, seed: as of `NiftiSource`.
      store: folder to write to. size: names the grid. choice: who goes to which split.
      workers: processes. skip_failures: leave out what cannot be used.
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
    """Preprocess, keep, picture, and write the cohort's files.

    Returns:
      What was made and what to do next.

    Raises:
      UserError: settings or folders that cannot be used, or (unless they are skipped) files, all of
        which are named on the page and the first of them in the message.
    """
    source = _source(request)
    page = request.store / 'summary.html'
    ready, outcomes = preparation.prepare(
        source, request.store, request.choice, request.workers, request.skip_failures)
    write_text(page, preparation_page.page(ready, outcomes))
    failures = preparation.failures_text(outcomes)
    if failures and not request.skip_failures:
        raise UserError(f'{failures}; see {page}. Mend them and start again, the others are kept; '
                        'or leave them out with --skip-failures')
    from data_pipelines import input_pipeline  # imports TensorFlow, which workers do not need

    cohort = input_pipeline.nifti_cohort(
        source.grid, request.store, source.data_dir, source.test_dir, source.lesion_dir,
        source.registration, source.seed)
    sizes = ', '.join(f'{n} {split}' for split, n in cohort.sizes.items())
    return (f'{sizes}; {_left_out(outcomes)}look at {page.absolute()}\n'
            f'next: python -m fluidjax.main {_flags(request, source)} --workdir=runs/mine')


def _source(request: Request) -> NiftiSource:
    if request.size not in GRIDS:
        raise UserError(f"--size: '{request.size}' is not one of {', '.join(GRIDS)}")
    if request.registration not in preprocess.REGISTRATIONS:
        raise UserError(f"--registration: '{request.registration}' is not one of "
                        f'{", ".join(preprocess.REGISTRATIONS)}')
    # As `experiment.open_cohort` writes them: the store is found again by the same words.
    folders = [str(Path(folder).expanduser()) if folder else ''
               for folder in (request.data_dir, request.test_dir, request.lesion_dir)]
    return NiftiSource(GRIDS[request.size], *folders, request.registration, request.seed)


def _left_out(outcomes: list[preparation.Outcome]) -> str:
    counts = Counter(bool(outcome.error) for outcome in outcomes)
    return f'{counts[True]} of {len(outcomes)} files left out; ' if counts[True] else ''


def _flags(request: Request, source: NiftiSource) -> str:
    given = {'data_dir': source.data_dir, 'test_dir': source.test_dir,
             'lesion_dir': source.lesion_dir, 'store': os.fspath(request.store)}
    if request.registration != 'affine':
        given['registration'] = request.registration
    words = [f'--config=configs/ldm.py:{request.size},cohort=nifti']
    words += [f'--config.seed={request.seed}'] if request.seed else []
    words += [f'--config.cohort.{name}={value}' for name, value in given.items() if value]
    return ' '.join(words)
