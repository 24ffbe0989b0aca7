"""Splits given by the user: in a column of participants.tsv, or as lists of subjects."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from data_pipelines import scan_folders
from data_pipelines.nifti_source import SPLITS, NiftiSource
from data_pipelines.scan_folders import Case
from fluidjax.base.errors import UserError

# Words for the splits in a column. A subject with an empty cell is left out; others are errors.
_WORDS = {
    'train': 'train',
    'training': 'train',
    'validation': 'validation',
    'val': 'validation',
    'valid': 'validation',
    'dev': 'validation',
    'test': 'test',
    'testing': 'test',
}
_NONE = {'', 'n/a', 'na', 'none'}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The splits of the user; empty for the random division.

    Attributes:
      column: of participants.tsv, with train, validation or test for each subject.
      lists: split -> a text file with one subject per line.
    """

    column: str = ''
    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)


def subject_id(case: Case) -> str:
    """The subject of a scan, as in lists: 01 for sub-01, else the name of the scan."""
    name = case.scan.name
    return name.split('_')[0].split('.')[0][4:] if name.startswith('sub-') else case.name


def assign(source: NiftiSource, choice: Choice) -> tuple[tuple[str, str], ...] | None:
    """(key of a scan, split) for the scans of data_dir that have a split; None without a choice.

    Raises:
      UserError: a column or a list that cannot be used, or a subject without a scan.
    """
    if choice.column and choice.lists:
        raise UserError('--split-column and the lists of subjects both define the splits; give one')
    if choice.column:
        wanted, where = _by_column(Path(source.data_dir), choice.column), 'participants.tsv'
    elif choice.lists:
        wanted, where = _by_lists(choice.lists), 'the lists'
    else:
        return None
    cases = scan_folders.find_cases(source.data_dir, 'data_dir')
    known = {subject_id(case) for case in cases}
    # participants.tsv often contains subjects without a scan in this copy; a list should not.
    missing = sorted(set(wanted) - known)
    if missing and choice.lists:
        raise UserError(
            f"{where}: subject '{missing[0]}' has no scan in {source.data_dir}; it "
            f'holds {", ".join(sorted(known)[:5])}, ...'
        )
    return tuple(
        (source.key(case.scan), wanted[subject_id(case)])
        for case in cases
        if subject_id(case) in wanted and source.is_used(case.scan, 'data_dir')
    )


def participants(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of participants.tsv by subject (01 for sub-01); empty if there is no such file.

    Raises:
      UserError: a file without a column participant_id.
    """
    path = folder / 'participants.tsv'
    if not path.is_file():
        return {}
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            rows = list(csv.DictReader(file, delimiter='\t'))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f'{path}: is not tab-separated text ({error}); save it again as UTF-8'
        ) from error
    if rows and 'participant_id' not in rows[0]:
        raise UserError(f'{path}: has no column participant_id; name the subjects in it')
    return {_bare(row['participant_id'] or ''): row for row in rows}


def _bare(subject: str) -> str:
    return subject.strip().removeprefix('sub-')


def _by_column(folder: Path, column: str) -> dict[str, str]:
    path, rows = folder / 'participants.tsv', participants(folder)
    if not rows:
        raise UserError(f'--split-column: {path} is missing or empty; write one, or give lists')
    columns = next(iter(rows.values()))
    if column not in columns:
        raise UserError(
            f"--split-column: {path} has no column '{column}'; it has "
            f'{", ".join(name for name in columns if name)}'
        )
    wanted = {}
    for subject, row in rows.items():
        word = (row[column] or '').strip().lower()
        if word not in _NONE | set(_WORDS):
            raise UserError(
                f"{path}: column '{column}' of {subject} is '{word}'; it must be "
                f'{", ".join(SPLITS)}, or n/a to leave the subject out'
            )
        if word not in _NONE:
            wanted[subject] = _WORDS[word]
    return wanted


def _by_lists(lists: Mapping[str, str]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for split, name in lists.items():
        try:
            lines = Path(name).expanduser().read_text(encoding='utf-8-sig').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f'{name}: cannot be read ({error}); give a text file with one subject per line'
            ) from error
        for subject in filter(None, map(_bare, lines)):
            if wanted.get(subject, split) != split:
                raise UserError(
                    f"{name}: subject '{subject}' is in the list of {wanted[subject]} "
                    'too; give it one split'
                )
            wanted[subject] = split
    return wanted
