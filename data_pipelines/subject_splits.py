"""Splits given by the user: in a column of participants.tsv, or as lists of subjects."""

from __future__ import annotations

import csv
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from data_pipelines import scan_folders
from data_pipelines.nifti_source import SPLITS, NiftiSource
from data_pipelines.scan_folders import Case
from fluidjax.base.errors import UserError

Row = TypeVar('Row')
NAMED = 5  # subjects in a message
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
    subject = next(iter(case.person), '')
    return subject[4:] if subject.startswith('sub-') else case.name


def assign(source: NiftiSource, choice: Choice) -> tuple[tuple[str, str], ...] | None:
    """(key of a scan, split) for the scans of data_dir that have a split; None without a choice.

    Raises:
      UserError: a column or a list that cannot be used, or a subject without a scan.
    """
    participants(Path(source.data_dir))  # refused before any work, as the page shows ages
    if choice.column and choice.lists:
        raise UserError('--split-column and the lists of subjects both define the splits; give one')
    if choice.column:
        wanted, where = _by_column(Path(source.data_dir), choice.column), 'participants.tsv'
    elif choice.lists:
        wanted, where = _by_lists(choice.lists), 'the lists'
    else:
        return None
    cases = scan_folders.find_cases(source.data_dir, 'data_dir')
    known = sorted({subject_id(case) for case in cases})
    matched, missing = match_subjects(wanted, known, where)
    # participants.tsv often contains subjects without a scan in this copy; a list should not.
    if missing and choice.lists:
        raise UserError(
            f"{where}: subject '{missing[0]}' has no scan in {source.data_dir}; it "
            f'holds {", ".join(known[:5])}, ...'
        )
    if missing:
        print(f'{where}: no scan of {_some(missing)}', file=sys.stderr)
    if choice.column and (without := sorted(set(known) - set(matched))):
        print(f'{where}: {_some(without)} have no split and are left out', file=sys.stderr)
    wanted = matched
    return tuple(
        (source.key(case.scan), wanted[subject_id(case)])
        for case in cases
        if subject_id(case) in wanted and source.is_used(case.scan, 'data_dir')
    )


def _some(names: Sequence[str]) -> str:
    more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
    return ', '.join(names[:NAMED]) + more


def match_subjects(
    given: Mapping[str, Row], known: Sequence[str], where: str
) -> tuple[dict[str, Row], list[str]]:
    """What is given for subjects, by the labels that scans have, and the labels of no scan.

    A label that no scan has stands for the only one that differs from it in capitals or in leading
    zeros: 1 for 01.

    Args:
      given: label -> anything.
      known: the labels of the scans.
      where: the labels come from, for messages.

    Raises:
      UserError: two labels stand for the same scans.
    """
    alike: dict[str, list[str]] = {}
    for label in known:
        alike.setdefault(_plain(label), []).append(label)
    matched, source_of, missing = {}, {}, []
    for label, row in given.items():
        same = [label] if label in known else alike.get(_plain(label), [])
        if len(same) != 1:
            missing.append(label)
            continue
        if same[0] in matched:
            raise UserError(
                f"{where}: '{source_of[same[0]]}' and '{label}' are the same subject "
                f"'{same[0]}'; keep one of them"
            )
        matched[same[0]], source_of[same[0]] = row, label
    return matched, missing


def _plain(label: str) -> str:
    """A label without what people vary: capitals and leading zeros."""
    return re.sub(r'(?<!\d)0+(?=\d)', '', label.lower())


def participants(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of participants.tsv by subject (01 for sub-01); empty if there is no such file.

    Spaces around the names of columns and in cells are ignored.

    Raises:
      UserError: a file without a column participant_id, or with two rows for one subject.
    """
    path = folder / 'participants.tsv'
    if not path.is_file():
        return {}
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            # BIDS has no quotes: one in a cell must not swallow the rows after it.
            rows = list(csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f'{path}: is not tab-separated text ({error}); save it again as UTF-8'
        ) from error
    rows = [_stripped(row) for row in rows]
    if rows and 'participant_id' not in rows[0]:
        raise UserError(f'{path}: has no column participant_id; name the subjects in it')
    by_subject: dict[str, dict[str, str]] = {}
    for row in rows:
        subject = _bare(row['participant_id'])
        if subject in by_subject:
            raise UserError(f"{path}: has two rows for '{subject}'; keep one of them")
        if subject:
            by_subject[subject] = row
    return by_subject


def _stripped(row: dict) -> dict[str, str]:
    """A row without spaces and quotes, nor cells beyond the header's; missing cells are empty."""
    plain = lambda text: (text or '').strip().strip('"').strip()
    return {plain(name): plain(cell) for name, cell in row.items() if name is not None}


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
        word = row[column].lower()
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
