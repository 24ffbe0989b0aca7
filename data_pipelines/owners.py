"""Whose scan a file is, and to which scans a lesion mask belongs."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.file_names import FREESURFER_SCANS, label_of, subject_words
from data_pipelines.folder_walk import FoundFile
from data_pipelines.volume_io import strip_ending
from fluidjax.base.errors import UserError

# A folder with at most so many scans can be the folder of one subject.
_FEW_SCANS = 4
# A person has at most so many visits, unless there are as many people.
_FEW_VISITS = 6
_SESSION = re.compile(r'(ses|session|visit|tp|time|timepoint|scan|run|day|week|month|year)[0-9]+')
# Numbers visits (p01_M12) or people (3T_M012).
_VISIT_OR_PERSON = re.compile(r'(m|v|mr)[0-9]+')


def persons(scans: Sequence[Path], folder: Path) -> dict[Path, tuple[str, ...]]:
    """Whose scan each file is.

    A person is a BIDS subject (of the name or a folder); else the words of a name in a folder,
    without those on content. The scans of one folder are of one person if their names begin with
    the folder's, or if there are few of them and other folders hold scans of the same names.
    Words such as M12 number visits, unless one person would have very many of them.
    """
    folders_of = collections.defaultdict(set)
    scans_in = collections.Counter(scan.parent for scan in scans)
    for scan in scans:
        folders_of[strip_ending(scan)].add(scan.parent)
    shared = {
        scan.parent
        for scan in scans
        if len(folders_of[strip_ending(scan)]) > 1 and scans_in[scan.parent] <= _FEW_SCANS
    }
    numbers = _numbers_of_people(scans, folder)
    return {
        scan: _person(scan, folder, scan.parent in shared, numbers.get(scan, frozenset()))
        for scan in scans
    }


def _numbers_of_people(scans: Sequence[Path], folder: Path) -> dict[Path, frozenset[str]]:
    """scan -> the words like V02 in its name that are too many to be visits of one person.

    In a folder with 3T_M001 ... 3T_M030 they number people; of a few (p01_M00, p01_M12) visits.
    A person may have more than a few visits where there are as many other people with visits.
    """
    found = []  # (scan, word, its letters, folder and words that remain)
    for scan in scans:
        words = subject_words(scan)
        rest = _without_visits(scan.parent, folder), _without_visit_words(words)
        ambiguous = [match for word in words[1:] if (match := _VISIT_OR_PERSON.fullmatch(word))]
        found += [(scan, match[0], match[1], rest) for match in ambiguous]
    words_of, people = collections.defaultdict(set), collections.defaultdict(set)
    for _, word, letters, rest in found:
        words_of[letters, rest].add(word)
        people[letters].add(rest)
    numbers: dict[Path, frozenset[str]] = {}
    for scan, word, letters, rest in found:
        if len(words_of[letters, rest]) > max(_FEW_VISITS, len(people[letters])):
            numbers[scan] = numbers.get(scan, frozenset()) | {word}
    return numbers


def bids_subject(scan: Path, folder: Path) -> str:
    """The BIDS subject of a file in a folder, `sub-01`, by its name or its folders'; '' if none."""
    parts = scan.relative_to(folder).parts
    labelled = [part for part in (parts[-1], *parts[:-1]) if part.startswith('sub-')]
    return re.split(r'[_.]', labelled[0])[0] if labelled else ''


# Words that a person's own folder cannot have (m01 and scan1 may be people).
_VISIT_FOLDER = re.compile(
    r'(ses|session|visit|tp|timepoint)[-_ ]?\d+|baseline|follow[-_ ]?up[-_ ]?\d*'
)


def _person(
    scan: Path, folder: Path, in_folder_of_its_own: bool, numbers: frozenset[str]
) -> tuple[str, ...]:
    """Whose scan a file is; `numbers` are words of its name that are of people, not of visits."""
    if subject := bids_subject(scan, folder):
        return (subject,)
    home, words = _without_visits(scan.parent, folder), subject_words(scan)
    here = os.fspath(scan.parent if home == folder else home)
    if scan.parent.name == 'mri' and scan.name in FREESURFER_SCANS:
        return (os.fspath(scan.parent.parent),)
    of_folder = subject_words(Path(scan.parent.name)) if scan.parent != folder else ()
    rest = words[len(of_folder) :]
    tells_apart = any(word in numbers or _is_identity(word) for word in rest)
    if of_folder and words[: len(of_folder)] == of_folder and not tells_apart:
        return (here,)
    # A folder of one visit of everybody (baseline/p01.nii) is nobody's.
    of_everybody = words and home == folder != scan.parent
    if in_folder_of_its_own and not of_everybody:
        return (here,)
    # A visit is another scan of the same person, unless nothing else tells people apart.
    others = _without_visit_words(words, numbers)
    told_apart = others if any(re.search(r'\d', word) for word in others) else words
    return (os.fspath(home), *told_apart)


def _without_visits(here: Path, folder: Path) -> Path:
    """The folder of a person above those of visits: `p01` of `p01/ses-1`; `folder` at most."""
    while here != folder and _VISIT_FOLDER.fullmatch(here.name.lower()):
        here = here.parent
    return here


def _without_visit_words(
    words: Sequence[str], numbers: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """The first word and those that are no visits, or `numbers` of people."""
    rest = (word for word in words[1:] if word in numbers or not _is_visit(word))
    return (*words[:1], *rest)


def _is_identity(word: str) -> bool:
    """Whether a word may tell subjects apart: it has a number, which is not that of a session."""
    return bool(re.search(r'\d', word)) and not _is_visit(word)


def _is_visit(word: str) -> bool:
    """Whether a word numbers the sessions or scans of a person."""
    return bool(_SESSION.fullmatch(word) or _VISIT_OR_PERSON.fullmatch(word))


def match_masks(
    scans: Sequence[Path], masks: Sequence[FoundFile], reasons: dict[Path, str]
) -> dict[Path, tuple[Path, ...]]:
    """scan -> its masks. Masks of no scan are refused, unless they lie in derivatives.

    A mask belongs to a scan of the same subject and visit in its folder, or to the only scan of
    the folder; where there is none in the folder, to the scans of its subject and visit anywhere.
    Several masks of a scan in one folder and one space are parts of its lesions.
    """
    in_folder, by_subject = collections.defaultdict(list), collections.defaultdict(list)
    for scan in scans:
        in_folder[scan.parent].append(scan)
        by_subject[subject_words(scan)].append(scan)
    owners: dict[Path, tuple[Path, ...]] = {}
    # A mask with a lesion in its name is preferred to one that is only called a mask.
    for file in sorted(masks, key=lambda f: (not _names_lesion(f.path), f.path)):
        mask = file.path
        here, words = in_folder[mask.parent], subject_words(mask)
        if len(here) == 1 and not _of_others(here[0], mask):
            here = _of_visit(here, mask)
        else:
            here = [scan for scan in here if words and subject_words(scan) == words]
            here = _of_visit(here, mask)
        here = here or (_of_visit(by_subject[words], mask) if words else [])
        if not here and file.part:
            reasons[mask] = 'a lesion mask of no scan here'
        elif not here:
            raise UserError(
                f'{mask}: a lesion mask that belongs to no scan in its folder; name it like its '
                'scan (p01.nii.gz, p01_lesion.nii.gz) or move it away'
            )
        for scan in here:
            known = owners.get(scan, ())
            if known and not _of_one_kind(known[0], mask):
                reasons[mask] = 'its scan has another lesion mask, which is used'
            else:
                owners[scan] = (*known, mask)
    return owners


def _names_lesion(mask: Path) -> bool:
    return 'lesion' in mask.name.lower()


def _of_one_kind(one: Path, other: Path) -> bool:
    """Whether two masks of a scan are parts of its lesions, and not two versions of one mask."""
    alike = (lambda mask: mask.parent, _names_lesion, lambda mask: label_of(mask, 'space'))
    return all(of(one) == of(other) for of in alike)


def _of_visit(scans: Sequence[Path], mask: Path) -> list[Path]:
    """The scans whose names have no other session or run than a mask's."""

    def may_be_of(scan: Path) -> bool:
        labels = ((label_of(scan, entity), label_of(mask, entity)) for entity in ('ses', 'run'))
        return all(one == other or None in (one, other) for one, other in labels)

    return [scan for scan in scans if may_be_of(scan)]


def _of_others(scan: Path, mask: Path) -> bool:
    """Whether the names of a scan and a mask are of different subjects or visits, by numbers."""
    subjects = label_of(scan, 'sub'), label_of(mask, 'sub')
    if None not in subjects:
        return subjects[0] != subjects[1]
    ours, theirs = (
        {int(n) for word in subject_words(path) if _is_identity(word) for n in _numbers(word)}
        for path in (scan, mask)
    )
    return bool(ours and theirs and not ours & theirs) or _of_other_visit(scan, mask)


def _of_other_visit(scan: Path, mask: Path) -> bool:
    """Whether two names number their visits in one way (V1, v02) and differently."""
    ours, theirs = (
        {
            word.rstrip('0123456789'): int(_numbers(word)[-1])
            for word in subject_words(path)
            if _is_visit(word)
        }
        for path in (scan, mask)
    )
    return any(ours[letters] != theirs[letters] for letters in ours.keys() & theirs.keys())


def _numbers(word: str) -> list[str]:
    return re.findall(r'[0-9]+', word)
