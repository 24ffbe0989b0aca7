"""The cohort, the grid and the seeds of a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fluidjax.base.errors import UserError
from fluidjax.base.files import cache_home, parse_json
from fluidjax.base.settings import TRAIN_AGAIN, check
from fluidjax.fluid.grid import Grid

# Each purpose of random numbers in a run has its own seed, derived from the run's seed.
PURPOSES = ('first stage', 'second stage', 'validation lesions', 'test lesions', 'sampling')
# Purposes that came later: another entry in PURPOSES would change the seeds of all older runs.
LATER_PURPOSES = {
    'third stage': 2**30,
    'scans of train': 2**30 + 2**26,
    'scans of validation': 2**30 + 2**27,
    'scans of test': 2**30 + 2**28,
}
STAGE_PURPOSES = ('first stage', 'second stage', 'third stage')


def open_cohort(config: ConfigDict) -> Any:
    """The cohort of a configuration; it is built if it does not exist yet (`data_pipelines`).

    Cohorts are stored in `config.cohort.store`, else in $FLUIDJAX_STORE, else in
    ~/.cache/fluidjax/cohorts, and shared by all runs.

    Raises:
        UserError: naming the field that does not fit, or scans that cannot be used.
    """
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need
    from data_pipelines.grids import GRIDS

    _check_cohort(config)
    chosen = config.cohort
    given = chosen.store or os.environ.get('FLUIDJAX_STORE', cache_home() / 'cohorts')
    store = Path(given).expanduser()
    folders = [
        str(Path(folder).expanduser()) if folder else ''
        for folder in (chosen.data_dir, chosen.test_dir, chosen.lesion_dir)
    ]
    if chosen.name == 'template':
        made = 'synthesis' in config
        return input_pipeline.template_cohort(config.size, store, folders[-1], made)
    return input_pipeline.nifti_cohort(
        GRIDS[config.size],
        store,
        *folders,
        registration=chosen.registration,
        seed=config.seed,
        embedded=chosen.get('embedded', 0),  # older runs do not have these fields
        contrasts=trained_contrasts(config) if 'synthesis' in config else (),
        labels=chosen.get('labels', ''),
    )


def trained_contrasts(config: ConfigDict) -> tuple[str, ...]:
    """The contrasts that a run is made for: those that its scans are synthesised in, or T1w."""
    if 'synthesis' not in config:
        return ('t1w',)
    named = tuple(name for name in config.synthesis.contrasts if name != 'random')
    return named or ('t1w', 't2w', 'flair', 't1ce')


def _check_cohort(config: ConfigDict) -> None:
    cohort, size = config.cohort, config.size
    check(config.seed >= 0, 'seed', config.seed, 'must be 0 or more')
    known = cohort.name in ('template', 'nifti')
    check(known, 'cohort.name', cohort.name, 'is neither template nor nifti')
    if cohort.name == 'template':
        advice = (
            'must not be set for the embedded cohort; for your own scans use '
            f'--config=configs/ldm.py:{size},cohort=nifti'
        )
        for name in ('data_dir', 'test_dir', 'embedded', 'labels'):
            check(not cohort.get(name), f'cohort.{name}', cohort.get(name), advice)
        return
    labels = cohort.get('labels', '')
    advice = 'gives no scans to train on; have them made, contrast=any after the size'
    check(not labels or 'synthesis' in config, 'cohort.labels', labels, advice)
    embedded = cohort.get('embedded', 0)
    check(embedded >= 0, 'cohort.embedded', embedded, 'must be 0 or more')
    advice = 'must be the folder of your healthy scans, --config.cohort.data_dir=DIR'
    check(bool(cohort.data_dir), 'cohort.data_dir', cohort.data_dir, advice)


def model_grid(config: ConfigDict) -> Grid:
    """The grid of a configuration's size.

    Raises:
        UserError: there is no such size.
    """
    from data_pipelines.grids import GRIDS

    size = config.get('size')
    check(size in GRIDS, 'size', size, f'is not one of {", ".join(GRIDS)}')
    grid = GRIDS[size]
    return Grid(tuple(grid.shape), tuple(grid.spacing))


def derived_seed(seed: int, purpose: str) -> int:
    """The seed of one purpose of a run; runs with different seeds have no seed in common."""
    if purpose in LATER_PURPOSES:
        return LATER_PURPOSES[purpose] + seed
    return len(PURPOSES) * seed + PURPOSES.index(purpose)


def identity(cohort: Any) -> dict[str, Any]:
    """What identifies a cohort: its folder, whose name contains a hash of the user's files."""
    return {'cohort': '/'.join(cohort.directory.parts[-3:]), 'sizes': cohort.sizes}


def check_cohort_of(path: Path, text: str | None, cohort: Any) -> None:
    """Check that a cohort is the one that a run was trained on.

    Args:
        path: the run's folder or package.
        text: its `cohort.json`; None if it has none yet.
        cohort: the cohort of its configuration.

    Raises:
        UserError: scans were added, changed or removed since, so that the split into training and
            validation scans would be another one.
    """
    where = path / 'cohort.json'
    if text is not None and parse_json(text, str(where), TRAIN_AGAIN) != identity(cohort):
        raise UserError(
            f'{where}: the scans are not those that this run was trained on (files added, changed '
            'or removed); restore them, or train in another --workdir'
        )
