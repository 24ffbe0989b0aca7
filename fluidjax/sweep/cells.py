"""The cells of a benchmark: each is trained, calibrated and scored on every test set.

    WORKDIR/runs/NAME/seedN/          a run as `fluidjax train` writes it
    WORKDIR/scores/NAME/seedN.json    scores of every test case, and the time of the training
    WORKDIR/scores/NAME/seedN.npz     slices of some cases, for the figures

The cells of a seed share the stages that they have in common, which the first of them trains: all
have the same autoencoder, a method with a head starts from the same method without, and a
regression beside another method is that of the cell of regression.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.methods import config_of
from data_pipelines import scan_folders
from fluidjax.base import cli
from fluidjax.base.disk import check_output
from fluidjax.base.errors import UserError
from fluidjax.base.files import read_json, write_bytes, write_text
from fluidjax.base.partial import new_folder
from fluidjax.base.settings import load_config
from fluidjax.base.subject import Subject
from fluidjax.detect import evaluate
from fluidjax.detect.scores import COHORT_SCORES
from fluidjax.methods.regression import Regression
from fluidjax.runs.cases import Cases, scans_of, split_validation, with_simulated_lesions
from fluidjax.runs.cohort import model_grid, open_cohort
from fluidjax.runs.detector import Detector, Output
from fluidjax.runs.length import resolved
from fluidjax.runs.load import load_run
from fluidjax.runs.rows import own_row, trivial_rows
from fluidjax.runs.scoring import as_healthy, calibrated, scored, scores_of
from fluidjax.runs.stages import build_stages
from fluidjax.runs.train import train
from fluidjax.training.loop import is_done

# Seed of the simulated test lesions. No run has it, and all cells are tested on the same lesions.
# It was drawn anew, with brains that no cohort contains, after settings had been chosen on others.
TEST_SEED = 20270101
# Of the test sets; scores of different versions cannot be compared. 1: files without a version.
VERSION = 2
FIRST_BRAIN = 1000  # the number of the first test subject of the embedded cohort
# Lesions per brain of the embedded cohort, and per scan of the user's: with one in each of 14 scans
# another draw moves a row's Dice by 0.2.
DRAWS, DRAWS_IN_PEOPLE = 2, 4
PICTURED = 4  # cases of each test set
# The cell whose detector also scores the trivial baselines, which learn nothing.
TRIVIAL_FROM = 'conddiff'
# The method that has a head by default; the heads of others are trained for as long.
WITH_HEAD = 'fluidjax'
Cells = Mapping[str, Mapping[str, Any]]
# Lesions on which recipes and thresholds are chosen: of several laws, or of that of training.
VALIDATIONS = ('mixture', 'training')


@dataclasses.dataclass(frozen=True)
class Folders:
    """Folders of the user, each '' where not given.

    Attributes:
        healthy: healthy scans to test on; as every folder here, '~' is the user's own.
        patients: scans with lesion masks to test on.
        lesions: lesion masks in MNI152 space, for the cells that train on them.
    """

    healthy: str = ''
    patients: str = ''
    lesions: str = ''

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if given:
                object.__setattr__(self, field.name, str(Path(given).expanduser()))

    def scans(self) -> dict[str, str]:
        """What identifies the scans that are tested on: a hash of their names and sizes."""
        given = {'healthy': self.healthy, 'patients': self.patients}
        files = {name: scan_folders.described(path, name) for name, path in given.items() if path}
        return {
            name: scan_folders.digest([file[1:3] for file in found])
            for name, found in files.items()
        }


def run(
    cells: Cells,
    scale: str,
    seeds: Sequence[int],
    workdir: Path,
    folders: Folders,
    validation: str = 'mixture',
) -> None:
    """Train and score the cells that have no scores yet; see the docstring of this module.

    Args:
        cells: of `configs.benchmark`, by name.
        scale: size of the configurations.
        seeds: of the runs.
        workdir: folder of the benchmark.
        folders: of the user.
        validation: one of `VALIDATIONS`, the lesions that recipes and thresholds are chosen on.
    """
    check_output(workdir, '--workdir')
    scans = folders.scans()
    paths = [scores_path(workdir, name, seed, validation) for seed in seeds for name in cells]
    scored = {path for path in paths if path.is_file() and _is_scored(path, scans)}
    for seed in seeds:
        for number, (name, cell) in enumerate(cells.items(), 1):
            path = scores_path(workdir, name, seed, validation)
            if path in scored:
                continue
            cli.tell(f'seed {seed}, cell {number} of {len(cells)}: {name}')
            if cell.get('bank') and not folders.lesions:
                cli.tell('left out: it trains on real lesion masks; give their folder, --lesions')
                continue
            config = resolved(cell_config(cell, scale, seed, folders.lesions))
            folder = workdir / 'runs' / slug(trained_name(name, cell)) / f'seed{seed}'
            _take_shared_stages(config, folder, workdir / 'runs')
            train(config, folder)
            scores = score_cell(
                name, cell, folder, judged_by(scale, seed), folders, validation == 'mixture'
            )
            write_bytes(path.with_suffix('.npz'), scores.pop('pictures'))
            seconds = training_seconds(folder)
            about = {'cell': name, 'seed': seed, 'version': VERSION, 'scans': scans}
            content = {**about, 'training_seconds': seconds, **scores}
            write_text(path, json.dumps(evaluate.json_safe(content)) + '\n')


def scores_path(workdir: Path, name: str, seed: int, validation: str = 'mixture') -> Path:
    """The file of a cell's scores."""
    folder = 'scores' if validation == 'mixture' else f'scores-{validation}'
    return workdir / folder / slug(name) / f'seed{seed}.json'


def _is_scored(path: Path, scans: Mapping[str, str]) -> bool:
    """Whether a file of scores is of this version; one of other scans is refused, not lost."""
    scores = read_json(path, 'delete it to score the cell again')
    if scores.get('version', 1) != VERSION:
        return False
    # Older files do not say which scans they are of.
    if scores.get('scans', scans) != scans:
        raise UserError(
            f'{path}: scored on other scans (--healthy, --patients) than these; give the same '
            'folders, or another --workdir, or move it away to score its cell again'
        )
    return True


def slug(name: str) -> str:
    """The folder's name of a cell: 'conddiff, T = 250' -> 'conddiff-t-250'."""
    return re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')


def trained_name(name: str, cell: Mapping[str, Any]) -> str:
    """The name of a cell's training; cells that differ only in sampling or search share it."""
    if not cell.get('sample') and not cell.get('search'):
        return name
    changed = ' '.join(f'{k.rpartition(".")[2]} {v}' for k, v in cell.get('train', {}).items())
    head = 'with head' if cell.get('head') else ''
    return ' '.join(filter(None, (cell['method'], head, changed, cell.get('law', ''))))


def cell_config(cell: Mapping[str, Any], scale: str, seed: int, lesions: str = '') -> ConfigDict:
    """The configuration that a cell is trained with.

    Args:
        cell: of `configs.benchmark`.
        scale: size of the configuration.
        seed: of the run.
        lesions: folder of masks, for a cell that trains on them.
    """
    config = config_of(cell['method'], f'{scale},law={cell.get("law", "published")}')
    config.update_from_flattened_dict({**cell.get('train', {}), 'seed': seed})
    ours = config_of(WITH_HEAD, scale)
    if cell.get('head'):
        config.head.training.steps = ours.head.training.steps
    # Sign and smoothing are searched for; what is not must be the same for every row.
    searched = ('sign', 'smoothing_mm')
    config.detect.map.update({k: v for k, v in ours.detect.map.items() if k not in searched})
    if cell.get('bank'):
        config.cohort.lesion_dir = lesions
    return config


def judged_by(scale: str, seed: int) -> ConfigDict:
    """The configuration of the lesions that validate and test all cells of a seed."""
    config = config_of(TRIVIAL_FROM, scale)
    config.seed = seed
    return config


def _take_shared_stages(config: ConfigDict, folder: Path, runs: Path) -> None:
    """Start a new run with those of its stages that other runs of its seed have finished."""
    if any((folder / 'checkpoints').glob('*')):
        return
    sources: dict[str, Path] = {}
    for path in sorted(runs.glob(f'*/seed{config.seed}/config.json')):
        for stage in _shared_stages(config, path.parent):
            sources.setdefault(stage, path.parent)
    if not sources:
        return
    kept = [line for stage, source in sources.items() for line in _metrics_of(source, stage)]
    write_text(folder / 'metrics.jsonl', ''.join(kept))
    with new_folder(folder / 'checkpoints') as beside:  # all of them or none
        for stage, source in sources.items():
            shutil.copytree(source / 'checkpoints' / stage, beside / stage)


def _shared_stages(config: ConfigDict, other: Path) -> list[str]:
    """The stages that are the same in a configuration and a run, and finished there.

    A stage stands on all that come before it, except for a regression, which stands on none.
    """
    theirs = load_config(other / 'config.json')
    if theirs.cohort != config.cohort or theirs.get('start', '') != config.get('start', ''):
        return []
    grid = model_grid(config)
    done, names, all_before = build_stages(theirs, grid), [], True
    for stage in build_stages(config, grid):
        name = stage.method.stage
        same = stage in done and is_done(other / 'checkpoints' / name, stage.training)
        if same and (all_before or name == Regression.stage):
            names.append(name)
        all_before = all_before and same
    return names


def _metrics_of(run: Path, stage: str) -> list[str]:
    """The lines of a stage in a run's metrics."""
    return [json.dumps(logged) + '\n' for logged in _logged(run) if logged['stage'] == stage]


def _logged(run: Path) -> list[dict[str, Any]]:
    """What a run has logged, without a last line that it was killed while writing."""
    logged = []
    for line in (run / 'metrics.jsonl').read_text('utf-8').splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            logged.append(json.loads(line))
    return logged


def training_seconds(folder: Path) -> float:
    """The time of a run's training without its interruptions, shared stages included."""
    seconds, last = 0.0, {}
    for logged in _logged(folder):
        if 'seconds_per_step' not in logged:  # a validation loss
            continue
        done = logged['step'] - last.get(logged['stage'], 0)
        seconds += max(done, 0) * logged['seconds_per_step']
        last[logged['stage']] = logged['step']
    return seconds


def score_cell(
    name: str,
    cell: Mapping[str, Any],
    folder: Path,
    judge: ConfigDict,
    folders: Folders,
    mixture: bool = True,
) -> dict[str, Any]:
    """Calibrate a trained cell, and score it on every test set.

    Args:
        name: of the cell.
        cell: of `configs.benchmark`.
        folder: of its run.
        judge: see `judged_by`.
        folders: of the user.
        mixture: choose recipes and thresholds on the lesions of `laws.MIXTURE`; False: on those of
            the training's law alone.

    Returns:
        'rows': scores for every test set, method and case; 'curves': {test set: {method: curve}};
        'calibration': thresholds by method; 'recipes': in words, by method; 'validation': scores on
        the validation cases; 'pictures': bytes of an .npz file with slices.
    """
    run = load_run(folder, cell.get('sample'))
    cohort = open_cohort(judge)
    training, detector = scans_of(cohort, 'train'), Detector(run)
    table = {name: own_row(detector, cell.get('search'))}
    table |= trivial_rows(detector, training) if name == TRIVIAL_FROM else {}
    split = split_validation(judge, cohort, keep_half=False, mixture=mixture)
    chosen = calibrated(table, split, training, detector, True)
    rows, pictures, curves = [], {}, {}
    for test_set, cases in test_sets(judge, cohort, split.bank, folders).items():
        shown = {row: _Slices(one.thresholds['dice']) for row, one in chosen.items()}
        with scores_of(chosen, folder) as scores:
            for batch, outputs in scored(table, chosen, cases, detector, scores):
                for row, made in outputs.items():
                    shown[row].add(made, batch)
            for row, one in scores.items():
                summary = one.summary()
                of_all = {score: summary[score]['mean'] for score in COHORT_SCORES}
                rows += [
                    {**line, **of_all, 'cohort': test_set, 'method': row, 'scan': scan_of(line)}
                    for line in one.lines()
                ]
                curves.setdefault(test_set, {})[row] = one.curve()
        for row, some in shown.items():
            pictures |= some.named(f'{test_set}|{row}')
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **pictures)
    return {
        'rows': rows,
        'curves': curves,
        'calibration': {row: one.thresholds for row, one in chosen.items()},
        'recipes': {row: one.choice.recipe.in_words() for row, one in chosen.items()},
        'validation': {row: one.validation for row, one in chosen.items()},
        'pictures': buffer.getvalue(),
    }


def test_sets(
    config: ConfigDict, cohort: Any, bank: np.ndarray | None, folders: Folders
) -> dict[str, Cases]:
    """The test cases, the same for every cell, by the name of the test set in the tables."""
    own = _fresh_brains(config, cohort.sizes['test'])
    healthy = Cases(lambda: (as_healthy(case) for case in own if case.healthy is not None))
    sets = {
        'training law': with_simulated_lesions(config, healthy, TEST_SEED, bank, DRAWS),
        'other law': own,
    }
    if not folders.healthy:
        return sets
    other = ConfigDict(config.to_dict())
    other.cohort.update(
        {'name': 'nifti', 'data_dir': folders.healthy, 'test_dir': folders.patients}
    )
    other.seed = 0
    people = open_cohort(other)
    splits = [scans_of(people, split) for split in ('train', 'validation')]
    scans = Cases(lambda: itertools.chain.from_iterable(splits))
    sets['other anatomy'] = with_simulated_lesions(config, scans, TEST_SEED, bank, DRAWS_IN_PEOPLE)
    if 'test' in people.sizes:
        sets['patients'] = scans_of(people, 'test')
    return sets


def _fresh_brains(config: ConfigDict, count: int) -> Cases:
    from data_pipelines import input_pipeline  # imports TensorFlow
    from data_pipelines.grids import GRIDS

    grid = GRIDS[config.size]
    made = list(input_pipeline.embedded_subjects(grid, count, FIRST_BRAIN))
    return Cases(lambda: iter(made))


def scan_of(line: Mapping[str, Any]) -> str:
    """The scan that a case was made of; a scan may have several simulated lesions."""
    return re.sub(r'-simulated(-\d+)?$', '', line['name'])


class _Slices:
    """Axial planes with most of the lesion, of the first cases with a known lesion."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._planes: list[list[np.ndarray]] = []

    def add(self, made: Output, cases: Sequence[Subject]) -> None:
        """Take the planes of some cases, of a row with counterparts."""
        if made.counterparts is None:
            return
        for case, counterpart, residual in zip(cases, made.counterparts, made.maps, strict=True):
            if case.lesion is None or len(self._planes) == PICTURED:
                continue
            z = int(np.argmax(np.sum(case.lesion, axis=(0, 1))))
            volumes = (case.image, counterpart, residual, case.lesion)
            self._planes.append([volume[..., z].astype(np.float32) for volume in volumes])

    def named(self, name: str) -> dict[str, np.ndarray]:
        """Scan, counterpart, map, truth `(4, n, x, y)`, and the threshold; empty without planes."""
        if not self._planes:
            return {}
        return {
            name: np.asarray(self._planes).swapaxes(0, 1),
            f'{name}|threshold': np.float32(self._threshold),
        }
