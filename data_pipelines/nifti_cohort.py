"""TFDS builder over the user's own scans: a BIDS or plain folder, test scans, a lesion bank.

Splits: `train` and `validation` hold the healthy scans of `data_dir`; `test` its scans with a
lesion mask and everything in `test_dir`; `lesions` the masks of `lesion_dir`. The config's name
carries a hash of the inputs, so a changed file or setting is another cohort and an unchanged one
is used again.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from data_pipelines import grids, lesion_masks, preprocess, scan_folders
from data_pipelines.subject_record import record, record_features
from data_pipelines.volume_io import load_volume
from fluidjax.errors import UserError

# Raise it when preprocessing changes: cohorts built before are then built anew.
PREPROCESSING_VERSION = 2
VALIDATION_FRACTION = 0.2
MIN_HEALTHY_SUBJECTS = 2
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
    """

    grid: grids.ModelGrid
    data_dir: str
    test_dir: str = ''
    lesion_dir: str = ''
    registration: str = 'affine'
    seed: int = 0

    def fingerprint(self) -> str:
        """Ten hexadecimal digits of the files (path, size, time of change) and the settings."""
        described = [PREPROCESSING_VERSION, self.registration, self.seed, repr(self.grid)]
        for purpose in ('data_dir', 'test_dir', 'lesion_dir'):
            folder = getattr(self, purpose)
            described += scan_folders.described(folder, purpose) if folder else ()
        return scan_folders.digest(described)


@dataclasses.dataclass(kw_only=True)
class NiftiConfig(tfds.core.BuilderConfig):
    """Attributes: source: what the cohort is made of."""

    source: NiftiSource


def config_for(source: NiftiSource) -> NiftiConfig:
    """The TFDS config of a source: named by its grid and its fingerprint."""
    x, y, z = source.grid.shape
    name = f'{x}x{y}x{z}_{source.grid.spacing[0]:g}mm_{source.fingerprint()}'.replace('.', 'p')
    return NiftiConfig(name=name, source=source)


def assign_splits(source: NiftiSource) -> dict[str, list[scan_folders.Case]]:
    """Which case goes to which split; a split with nothing in it is left out.

    Healthy subjects are shuffled by the seed: a fifth, at least one, validates. All scans of one
    subject go to one split; a subject with a lesion in any of them does not train.

    Raises:
      UserError: from the folders, or fewer than two healthy subjects.
    """
    _refuse_nested_folders(source)
    cases = scan_folders.find_cases(source.data_dir, 'data_dir')
    diseased = [case for case in cases if _has_lesion(case)]
    patients = {scan_folders.person(case.scan) for case in diseased}
    # test_dir is another data set: its sub-01 is another person.
    if source.test_dir:
        diseased += scan_folders.find_cases(source.test_dir, 'test_dir')
    healthy: dict[tuple[str, ...], list[scan_folders.Case]] = {}
    for case in cases:
        key = scan_folders.person(case.scan)
        if key not in patients:
            healthy.setdefault(key, []).append(dataclasses.replace(case, mask=None))
    if len(healthy) < MIN_HEALTHY_SUBJECTS:
        raise UserError(
            f'data_dir: {source.data_dir} holds {len(healthy)} healthy scan(s) and '
            f'{len(diseased)} with a lesion mask or in test_dir; training needs at least '
            f'{MIN_HEALTHY_SUBJECTS} healthy scans of different subjects'
        )
    order = np.random.default_rng(source.seed).permutation(len(healthy))
    num_validation = max(1, round(VALIDATION_FRACTION * len(healthy)))
    subjects = list(healthy.values())
    pick = lambda indices: [case for i in sorted(indices) for case in subjects[i]]
    splits = {
        'train': pick(order[num_validation:]),
        'validation': pick(order[:num_validation]),
        'test': _with_unique_names(diseased),
    }
    return {split: chosen for split, chosen in splits.items() if chosen}


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


def _has_lesion(case: scan_folders.Case) -> bool:
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
    return record(
        case.name, result.image, result.brain, result.affine, lesion=result.lesion
    )


class NiftiCohort(tfds.core.GeneratorBasedBuilder):
    """The user's scans on the model grid. Give it a `config_for(source)`."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Scans from NIfTI files, on the model grid.',
            features=record_features(self.builder_config.source.grid.shape),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # Nothing to download.
        source = self.builder_config.source
        splits = {s: self._generate_examples(s, c) for s, c in assign_splits(source).items()}
        if source.lesion_dir:
            splits['lesions'] = lesion_masks.records(source.lesion_dir, source.grid)
        return splits

    def _generate_examples(self, split: str, items: list) -> Iterator[tuple[int, dict]]:
        progress = tqdm.tqdm(items, desc=f'preprocessing {split}', file=sys.stderr)
        for number, item in enumerate(progress):
            yield number, make_record(item, self.builder_config.source)
