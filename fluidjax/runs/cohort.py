"""The cohort and the grid of a configuration, and the seeds of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fluidjax.base.errors import UserError
from fluidjax.base.files import cache_home, parse_json
from fluidjax.fluid.grid import Grid
from fluidjax.runs.package import read_text

# Random numbers of a run: each purpose has a seed of its own, derived from the run's seed.
PURPOSES = ('first stage', 'second stage', 'validation lesions', 'test lesions', 'sampling')


def open_cohort(config: ConfigDict) -> Any:
    """The cohort of a configuration, built when it is not there yet (`data_pipelines`).

    Cohorts are kept in `config.cohort.store`, else in $FLUIDJAX_STORE, else in
    ~/.cache/fluidjax/cohorts, and shared by all runs.
    """
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need
    from data_pipelines.grids import GRIDS

    chosen = config.cohort
    _check_cohort(config)
    store = Path(chosen.store or os.environ.get('FLUIDJAX_STORE', cache_home() / 'cohorts'))
    folders = [
        str(Path(folder).expanduser()) if folder else ''
        for folder in (chosen.data_dir, chosen.test_dir, chosen.lesion_dir)
    ]
    if chosen.name == 'template':
        return input_pipeline.template_cohort(config.size, store, folders[-1])
    return input_pipeline.nifti_cohort(
        GRIDS[config.size],
        store,
        *folders,
        registration=chosen.registration,
        seed=config.seed,
        embedded=chosen.get('embedded', 0),
    )  # older runs know no such field


def _check_cohort(config: ConfigDict) -> None:
    chosen = config.cohort
    if config.seed < 0:
        raise UserError(f'config.seed: {config.seed} must be 0 or more')
    if chosen.name not in ('template', 'nifti'):
        raise UserError(f"config.cohort.name: '{chosen.name}' is neither template nor nifti")
    given = [name for name in ('data_dir', 'test_dir', 'embedded') if chosen.get(name)]
    if chosen.name == 'template' and given:
        raise UserError(
            f'config.cohort.{given[0]} is set, but the cohort is the embedded one; for '
            f'your own scans use --config=configs/ldm.py:{config.size},cohort=nifti'
        )
    if chosen.get('embedded', 0) < 0:
        raise UserError(f'config.cohort.embedded: {chosen.embedded} must be 0 or more')
    if chosen.name == 'nifti' and not chosen.data_dir:
        raise UserError(
            'config.cohort.data_dir is empty: name the folder of your healthy scans, '
            '--config.cohort.data_dir=DIR'
        )


def model_grid(config: ConfigDict) -> Grid:
    """The grid of a configuration's size.

    Raises:
        UserError: there is no such size.
    """
    from data_pipelines.grids import GRIDS

    if config.get('size') not in GRIDS:
        raise UserError(f"config.size: '{config.get('size')}' is not one of {', '.join(GRIDS)}")
    grid = GRIDS[config.size]
    return Grid(tuple(grid.shape), tuple(grid.spacing))


def derived_seed(seed: int, purpose: str) -> int:
    """The seed of one purpose of a run; runs with different seeds share none."""
    return len(PURPOSES) * seed + PURPOSES.index(purpose)


def identity(cohort: Any) -> dict[str, Any]:
    """What tells one cohort from another: its folder's name holds a hash of the user's files."""
    return {'cohort': '/'.join(cohort.directory.parts[-3:]), 'sizes': cohort.sizes}


def check_cohort_of(workdir: Path, cohort: Any) -> None:
    """See that a run's cohort is still the one it was trained on.

    Raises:
        UserError: scans were added, changed or removed since: the split into training and
            validation would be another one.
    """
    text, where = read_text(workdir, 'cohort.json'), str(workdir / 'cohort.json')
    if text is not None and parse_json(text, where, 'train again') != identity(cohort):
        raise UserError(
            f'{workdir / "cohort.json"}: the scans are not those this run was trained '
            'on (files added, changed or removed); restore them, or train in another '
            '--workdir'
        )
