"""The files, settings and splits of a cohort of the user's own scans.

Splits: `train` and `validation` contain the healthy scans of `data_dir`; `test` its scans with a
lesion mask and everything in `test_dir`; `lesions` the masks of `lesion_dir`. A preparation can
assign subjects to other splits (`preparation`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines import grids, label_people, owners, scan_folders, tissue
from data_pipelines.scan_folders import Case
from data_pipelines.volume_io import load_volume, strip_ending
from fluidjax.base.errors import UserError

# Increase it when preprocessing changes, so that existing cohorts are built again.
PREPROCESSING_VERSION = 3
# Of the intensity scale of other contrasts than T1w.
SCALING_VERSION = 2
VALIDATION_FRACTION = 0.2
MIN_HEALTHY_SUBJECTS = 2
PURPOSES = ('data_dir', 'test_dir', 'lesion_dir')
SPLITS = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class NiftiSource:
    """The files and settings of a cohort.

    Attributes:
      grid: the model grid.
      data_dir: folder of scans, BIDS or plain; scans with a non-empty lesion mask go to the test
        split.
      test_dir: folder of scans for the test split, with or without masks; '' for none.
      lesion_dir: folder of lesion masks in MNI152 space, each with its own affine; '' for none.
      registration: 'affine', or 'none' if the scans are in MNI152 space already.
      seed: of the random division into train and validation.
      assigned: (key of a scan of data_dir, split) instead of that division; scans that are not
        listed are left out. None for the random division.
      left_out: keys of files that are not used.
      records: folder of records that were made before (`records`), or ''.
      labels: '' for scans; 'freesurfer' or a JSON file (`tissue.table_of`) if the files of
        `data_dir` are label maps.
      test_contrasts: of the scans of `test_dir` that are used, by their names; without T1w no scan
        of `data_dir` is a test scan.
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
    labels: str = ''
    test_contrasts: tuple[str, ...] = (scan_folders.T1W,)

    def key(self, path: Path, purpose: str = 'data_dir') -> str:
        """A file by its place in one of the folders; it stays the same if the folder is moved."""
        return f'{purpose}/{path.relative_to(getattr(self, purpose)).as_posix()}'

    def fingerprint(self) -> str:
        """Hash of the files (path, size, time of change) and the settings, ten digits."""
        described = [PREPROCESSING_VERSION, self.registration, self.seed, repr(self.grid)]
        described += self._files()
        if self.assigned is not None or self.left_out:
            described += [self.assigned, self.left_out]
        if self.test_contrasts != (scan_folders.T1W,):
            described += [self.test_contrasts, SCALING_VERSION]
        return scan_folders.digest(described + self._described_labels())

    def inputs(self) -> str:
        """Hash as `fingerprint`, only of what preprocessing depends on: not of the splits."""
        return scan_folders.digest(
            [PREPROCESSING_VERSION, self.registration, repr(self.grid), *self._files()]
            + self._described_labels()
        )

    def _described_labels(self) -> list:
        return [sorted(tissue.table_of(self.labels).items())] if self.labels else []

    def _files(self) -> list[tuple]:
        folders = [(getattr(self, purpose), purpose) for purpose in PURPOSES]
        return [
            one
            for folder, purpose in folders
            if folder
            for one in scan_folders.described(folder, purpose)
        ]

    def wanted(self, purpose: str) -> tuple[str, ...]:
        """The contrasts that are used of a folder."""
        return self.test_contrasts if purpose == 'test_dir' else (scan_folders.T1W,)

    def is_used(self, path: Path, purpose: str) -> bool:
        """Whether a file is not left out."""
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


def unused_files(
    source: NiftiSource, reasons: Mapping[str, str] | None = None
) -> tuple[int, list[tuple[Path, str]]]:
    """The number of image files that a cohort uses, and (file, reason) of every other one.

    Args:
      source: as prepared.
      reasons: why files that are left out cannot be used, by key.
    """
    reasons = reasons or {}
    in_splits = {item.scan for item in sum(assign_splits(source).values(), [])}
    used, unused = 0, []
    for purpose in filter(lambda purpose: getattr(source, purpose), PURPOSES):
        folder = getattr(source, purpose)
        if purpose == 'lesion_dir' or (source.labels and purpose == 'data_dir'):
            files, others = scan_folders.split_files(folder, purpose)
            kept = [path for path in files if source.is_used(path, purpose)]
        else:
            listing = scan_folders.list_scans(folder, purpose, contrasts=source.wanted(purpose))
            cases = [case for case in listing.cases if case.scan in in_splits]
            files, kept = listing.used, [f for case in cases for f in (case.scan, *case.masks)]
            others = list(listing.left_out)
        for path in set(files) - set(kept):
            reason = reasons.get(source.key(path, purpose))
            left_out = not source.is_used(path, purpose)
            reason = reason and reason.removeprefix(f'{path}: ')
            others.append((path, reason or ('cannot be used' if left_out else 'in no split')))
        used += len(set(kept))
        unused += sorted(others)
    return used, unused


def assign_splits(source: NiftiSource) -> dict[str, list[Case]]:
    """The cases of each split that has any.

    Healthy subjects are shuffled with the seed; a fifth of them, at least one, is for validation.
    All scans of a subject go to one split; a subject with a lesion in any scan is not for training.

    Raises:
      UserError: from the folders, or fewer than two healthy subjects.
    """
    _refuse_nested_folders(source)
    cases = _used_cases(source, 'data_dir')
    # test_dir is another data set: its sub-01 is another person.
    others = _used_cases(source, 'test_dir') if source.test_dir else []
    if source.assigned is None:
        splits = _divided(cases, source, len(others))
    else:
        splits = _as_assigned(cases, source)
    if scan_folders.T1W not in source.test_contrasts:
        # Patients of data_dir are T1w; a model of other contrasts is not tested on them.
        splits['test'] = []
    splits['test'] = _with_unique_names(splits['test'] + others)
    return {split: chosen for split, chosen in splits.items() if chosen}


def _used_cases(source: NiftiSource, purpose: str) -> list[Case]:
    if source.labels and purpose == 'data_dir':
        return _label_maps(source)
    folder, contrasts = getattr(source, purpose), source.wanted(purpose)
    cases = scan_folders.find_cases(folder, purpose, contrasts)
    return [case for case in cases if source.is_used(case.scan, purpose)]


def _label_maps(source: NiftiSource) -> list[Case]:
    """Every image file of `data_dir`, whatever its name; each without a subject is a person."""
    paths = scan_folders.nifti_files(source.data_dir, 'data_dir')
    names = scan_folders.numbered([strip_ending(path.name) for path in paths])
    cases = [
        Case(name, path, (), (owners.bids_subject(path, Path(source.data_dir)) or name,))
        for name, path in zip(names, paths, strict=True)
    ]
    return [case for case in cases if source.is_used(case.scan, 'data_dir')]


def _divided(cases: list[Case], source: NiftiSource, num_others: int) -> dict[str, list[Case]]:
    """The random division by the seed."""
    if source.labels == 'freesurfer':
        cases = label_people.one_person_each(cases)
    diseased = [case for case in cases if has_lesion(case)]
    patients = {case.person for case in diseased}
    healthy: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        if case.person not in patients:
            healthy.setdefault(case.person, []).append(dataclasses.replace(case, masks=()))
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


def _as_assigned(cases: list[Case], source: NiftiSource) -> dict[str, list[Case]]:
    """The cases in the splits that they are assigned to."""
    chosen = dict(source.assigned or ())
    splits: dict[str, list[Case]] = {split: [] for split in SPLITS}
    for case in cases:
        split = chosen.get(source.key(case.scan))
        if split is None:
            continue
        if split != 'test' and has_lesion(case):
            raise UserError(
                f'{case.masks[0]}: holds a lesion, and its subject is given to {split}, '
                'which is for healthy scans; give it to test, or leave it out'
            )
        splits[split].append(case if split == 'test' else dataclasses.replace(case, masks=()))
    for split in ('train', 'validation'):
        if not splits[split]:
            raise UserError(
                f'data_dir: no scan of {source.data_dir} is given to {split}; name at '
                'least one subject for train and one for validation'
            )
    return splits


def _refuse_nested_folders(source: NiftiSource) -> None:
    """Raise a UserError for patients or masks in data_dir, which would be used as healthy scans."""
    data = Path(source.data_dir).resolve()
    for purpose in ('test_dir', 'lesion_dir'):
        folder = getattr(source, purpose)
        if not folder:
            continue
        other = Path(folder).resolve()
        if data == other or data in other.parents:
            raise UserError(
                f'{purpose}: {folder} lies inside data_dir {source.data_dir}, whose scans are '
                'taken for healthy; move it out'
            )
        if purpose == 'test_dir' and other in data.parents:
            raise UserError(
                f'test_dir: {folder} holds data_dir {source.data_dir} too, whose scans are trained '
                'on; name the folder of the test scans alone'
            )


def has_lesion(case: Case) -> bool:
    """Whether a case has a lesion mask that is not empty. UserError if it cannot be read."""
    return any(load_volume(mask, allow_empty=True).data.any() for mask in case.masks)


def _with_unique_names(cases: list[Case]) -> list[Case]:
    """Cases of two folders, which may have the same names, with different names."""
    names = scan_folders.numbered([case.name for case in cases])
    return [dataclasses.replace(case, name=name) for case, name in zip(cases, names)]
