"""What a cohort of the user's own scans is made of: files, settings, who goes to which split.

Splits: `train` and `validation` hold the healthy scans of `data_dir`; `test` its scans with a
lesion mask and everything in `test_dir`; `lesions` the masks of `lesion_dir`. A preparation can say
otherwise, subject by subject (`preparation`).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import tqdm

from data_pipelines import grids, preprocess, records, scan_folders
from data_pipelines.volume_io import load_volume
from fluidjax.base.errors import UserError

# Raise it when preprocessing changes: cohorts built before are then built anew.
PREPROCESSING_VERSION = 3
VALIDATION_FRACTION = 0.2
MIN_HEALTHY_SUBJECTS = 2
PURPOSES = ('data_dir', 'test_dir', 'lesion_dir')
SPLITS = ('train', 'validation', 'test')
# Below: said on the terminal, for a person to look at. Above: surely no lesion.
LOW_OVERLAP = 0.85
MAX_LESION_FRACTION = 0.6


@dataclasses.dataclass(frozen=True)
class NiftiSource:
    """What a cohort is made of.

    Attributes:
      grid: the model grid.
      data_dir: folder of scans, BIDS or plain; those with a non-empty lesion mask go to the test
      split. test_dir: folder of scans for the test split, with or without masks; '' for none.
      lesion_dir: folder of lesion masks in MNI152 space, each with its own affine; '' for none.
      registration: 'affine', or 'none' when the scans are in MNI152 space already. seed: of the
      division into train and validation.
      assigned: (key of a scan of data_dir, split), instead of that division; a scan that is not
      among them is left out. None for the division. left_out: keys of files that are not used.
      records: folder of records made before (`record_cache`), or ''.
    """

    grid: grids.ModelGrid
    data_dir: str
    test_dir: str = ''
    lesion_dir: str = ''
    registration: str = 'affine'
    seed: int = 0
    assigned: tuple[tuple[str, str], ...] | None = None
    left_out: tuple[str, ...] = ()
    records: str = ''

    def key(self, path: Path, purpose: str = 'data_dir') -> str:
        """A file of one of the folders, by its place in it: it stays where the folder is moved."""
        return f'{purpose}/{path.relative_to(getattr(self, purpose)).as_posix()}'

    def fingerprint(self) -> str:
        """Ten hexadecimal digits of the files (path, size, time of change) and the settings."""
        described = [PREPROCESSING_VERSION, self.registration, self.seed, repr(self.grid)]
        described += self._files()
        if self.assigned is not None or self.left_out:
            described += [self.assigned, self.left_out]
        return scan_folders.digest(described)

    def inputs(self) -> str:
        """As `fingerprint`, of what preprocessing depends on alone: not of the division."""
        return scan_folders.digest(
            [PREPROCESSING_VERSION, self.registration, repr(self.grid), *self._files()]
        )

    def _files(self) -> list[tuple]:
        folders = [(getattr(self, purpose), purpose) for purpose in PURPOSES]
        return [
            one
            for folder, purpose in folders
            if folder
            for one in scan_folders.described(folder, purpose)
        ]

    def is_used(self, path: Path, purpose: str) -> bool:
        """Whether a file is not among those left out."""
        return not self.left_out or self.key(path, purpose) not in self.left_out


def all_items(source: NiftiSource) -> dict[str, list]:
    """The cases of every split, and the files of the lesion bank under 'lesions'."""
    items: dict[str, list] = dict(assign_splits(source))
    if source.lesion_dir:
        items['lesions'] = [
            path
            for path in scan_folders.nifti_files(source.lesion_dir, 'lesion_dir')
            if source.is_used(path, 'lesion_dir')
        ]
    return {split: chosen for split, chosen in items.items() if chosen}


def assign_splits(source: NiftiSource) -> dict[str, list[scan_folders.Case]]:
    """Which case goes to which split; a split with nothing in it is left out.

    Healthy subjects are shuffled by the seed: a fifth, at least one, validates. All scans of one
    subject go to one split; a subject with a lesion in any of them does not train.

    Raises:
      UserError: from the folders, or fewer than two healthy subjects.
    """
    _refuse_nested_folders(source)
    cases = [
        case
        for case in scan_folders.find_cases(source.data_dir, 'data_dir')
        if source.is_used(case.scan, 'data_dir')
    ]
    # test_dir is another data set: its sub-01 is another person.
    others = []
    if source.test_dir:
        others = [
            case
            for case in scan_folders.find_cases(source.test_dir, 'test_dir')
            if source.is_used(case.scan, 'test_dir')
        ]
    splits = (
        _as_assigned(cases, source)
        if source.assigned is not None
        else _divided(cases, source, len(others))
    )
    splits['test'] = _with_unique_names(splits['test'] + others)
    return {split: chosen for split, chosen in splits.items() if chosen}


def _divided(
    cases: list[scan_folders.Case], source: NiftiSource, num_others: int
) -> dict[str, list[scan_folders.Case]]:
    """The division by the seed."""
    diseased = [case for case in cases if has_lesion(case)]
    patients = {scan_folders.person(case.scan) for case in diseased}
    healthy: dict[tuple[str, ...], list[scan_folders.Case]] = {}
    for case in cases:
        key = scan_folders.person(case.scan)
        if key not in patients:
            healthy.setdefault(key, []).append(dataclasses.replace(case, mask=None))
    if len(healthy) < MIN_HEALTHY_SUBJECTS:
        raise UserError(
            f'data_dir: {source.data_dir} holds {len(healthy)} healthy scan(s) and '
            f'{len(diseased) + num_others} with a lesion mask or in test_dir; training needs at '
            f'least {MIN_HEALTHY_SUBJECTS} healthy scans of different subjects'
        )
    order = np.random.default_rng(source.seed).permutation(len(healthy))
    num_validation = max(1, round(VALIDATION_FRACTION * len(healthy)))
    subjects = list(healthy.values())
    pick = lambda indices: [case for i in sorted(indices) for case in subjects[i]]
    return {
        'train': pick(order[num_validation:]),
        'validation': pick(order[:num_validation]),
        'test': diseased,
    }


def _as_assigned(
    cases: list[scan_folders.Case], source: NiftiSource
) -> dict[str, list[scan_folders.Case]]:
    """Each case in the split that the preparation gave it."""
    chosen = dict(source.assigned or ())
    splits: dict[str, list[scan_folders.Case]] = {split: [] for split in SPLITS}
    for case in cases:
        split = chosen.get(source.key(case.scan))
        if split is None:
            continue
        if split != 'test' and has_lesion(case):
            raise UserError(
                f'{case.mask}: holds a lesion, and its subject is given to {split}, '
                'which is for healthy scans; give it to test, or leave it out'
            )
        splits[split].append(case if split == 'test' else dataclasses.replace(case, mask=None))
    for split in ('train', 'validation'):
        if not splits[split]:
            raise UserError(
                f'data_dir: no scan of {source.data_dir} is given to {split}; name at '
                'least one subject for train and one for validation'
            )
    return splits


def _refuse_nested_folders(source: NiftiSource) -> None:
    """Patients or lesion masks inside data_dir would be taken for healthy training scans."""
    data = Path(source.data_dir).resolve()
    for purpose in ('test_dir', 'lesion_dir'):
        folder = getattr(source, purpose)
        if folder and (data == Path(folder).resolve() or data in Path(folder).resolve().parents):
            raise UserError(
                f'{purpose}: {folder} lies inside data_dir {source.data_dir}, whose scans are '
                'taken for healthy; move it out'
            )


def has_lesion(case: scan_folders.Case) -> bool:
    """Whether a case has a lesion mask that is not empty. UserError for one not readable."""
    return case.mask is not None and bool(load_volume(case.mask, allow_empty=True).data.any())


def _with_unique_names(cases: list[scan_folders.Case]) -> list[scan_folders.Case]:
    """Cases of two folders may share a name: the later one gets a number."""
    seen: dict[str, int] = {}
    renamed = []
    for case in cases:
        seen[case.name] = seen.get(case.name, 0) + 1
        number = seen[case.name]
        name = case.name if number == 1 else f'{case.name}_{number}'
        renamed.append(dataclasses.replace(case, name=name))
    return renamed


def make_record(case: scan_folders.Case, source: NiftiSource) -> dict:
    """Read and preprocess one case. An empty mask counts as none. UserError names the file."""
    scan = load_volume(case.scan)
    mask = load_volume(case.mask, allow_empty=True) if case.mask else None
    if mask is not None and not mask.data.any():
        mask = None
    result = preprocess.preprocess(scan, source.grid, mask, source.registration)
    if not result.brain.any():
        raise UserError(
            f'{case.scan}: no brain on the model grid; with registration none a scan must be in '
            "MNI152 space: set registration to 'affine'"
        )
    if mask is not None and result.lesion.sum() > MAX_LESION_FRACTION * result.brain.sum():
        raise UserError(
            f'{case.mask}: covers most of the brain; it looks like a brain mask: '
            'rename it or move it away'
        )
    if result.overlap < LOW_OVERLAP:
        note = f'overlap with the MNI152 brain is only {result.overlap:.2f}; look at the result'
        tqdm.tqdm.write(f'{case.scan}: {note}', file=sys.stderr)
    return records.record(
        case.name, result.image, result.brain, result.affine, lesion=result.lesion
    )


def record_name(item: scan_folders.Case | Path, source: NiftiSource) -> str:
    """What a record is called: the case's name, or the mask's place in lesion_dir."""
    return os.fspath(item.relative_to(source.lesion_dir)) if isinstance(item, Path) else item.name
