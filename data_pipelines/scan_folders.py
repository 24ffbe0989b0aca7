"""The T1w scans in a user's folder, their lesion masks, and why each other file is not used.

Names decide what a file contains (`file_names`), except where they say nothing: then it is a scan,
unless a file of the same subject is called T1w, or the folder has BIDS names. Results of fluidjax
are never input; `derivatives` and `sourcedata` are, if there is no scan elsewhere (ATLAS v2.0), and
lesion masks are always looked for in them.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipelines import folder_walk
from data_pipelines.file_names import (
    Kind,
    contrast_named,
    is_bids_name,
    is_mask_folder,
    kind_of,
    result_name,
    subject_words,
    without_bytes,
)
from data_pipelines.folder_walk import DERIVED, OWN, SOURCE, FoundFile
from data_pipelines.image_files import parts_of
from data_pipelines.owners import match_masks, persons
from data_pipelines.volume_io import strip_ending
from fluidjax.base.errors import UserError
from fluidjax.base.names import shown

T1W = 't1w'
NAMED = 10  # files of one reason that a message names
_RESULTS_ONLY = (
    '{}: {} holds only results of fluidjax, which are never input; give the folder of the scans'
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A scan of a folder.

    Attributes:
      name: unique in the folder.
      scan: its file.
      masks: files of its lesion mask; several are joined.
      person: whose scan it is; all scans of a person go to one split.
    """

    name: str
    scan: Path
    masks: tuple[Path, ...] = ()
    person: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Listing:
    """What was found in a folder; each of its image files is used or left out.

    Attributes:
      folder: the folder.
      cases: its scans with their lesion masks, sorted by path.
      left_out: (file, reason) of every other image file, sorted by path.
    """

    folder: Path
    cases: tuple[Case, ...]
    left_out: tuple[tuple[Path, str], ...]

    @property
    def used(self) -> list[Path]:
        """The files that are used: scans and masks."""
        return sorted({file for c in self.cases for file in (c.scan, *c.masks)})


def counted(used: int, left_out: Sequence[tuple[Path, str]], failed: int = 0) -> list[str]:
    """`N of M image files are used`, and for each reason the files that are not, for the user.

    Args:
      used: number of files.
      left_out: (file, reason).
      failed: number of files that are named elsewhere.
    """
    lines = [f'{used} of {used + len(left_out) + failed} image files are used']
    by_reason = collections.defaultdict(list)
    for path, reason in left_out:
        by_reason[reason].append(path)
    for reason, paths in by_reason.items():
        names = ', '.join(shown(path) for path in paths[:NAMED])
        more = f' and {len(paths) - NAMED} more' if len(paths) > NAMED else ''
        lines.append(f'not used ({reason}): {names}{more}')
    return lines


def _relative(path: Path, folder: Path) -> str:
    return os.fspath(path.relative_to(folder) if path.is_relative_to(folder) else path)


def nifti_files(folder: str | os.PathLike[str], purpose: str) -> list[Path]:
    """The files of `split_files` that can be read."""
    return split_files(folder, purpose)[0]


def split_files(
    folder: str | os.PathLike[str], purpose: str
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The image files in a folder and its subfolders, sorted: those that can be read and are no
    results of fluidjax, and (file, reason) of every other one.

    Args:
      folder: to search.
      purpose: the setting that names the folder, for messages.

    Raises:
      UserError: no such folder, or no file in it that can be read.
    """
    folder = Path(folder)
    folder_walk.check_folder(folder, purpose)
    files = folder_walk.walk(folder)
    reasons = {f.path: Kind.RESULT.value if _is_result(f) else f.unreadable for f in files}
    usable = [path for path, reason in reasons.items() if not reason]
    if not usable:
        raise UserError(_nothing_found(folder, purpose, files))
    return usable, [(path, reason) for path, reason in reasons.items() if reason]


def _is_result(file: FoundFile) -> bool:
    """Whether fluidjax wrote a file, by its folder or its name."""
    return file.part == OWN or kind_of(file.path)[0] == Kind.RESULT


def _nothing_found(folder: Path, purpose: str, files: Sequence[FoundFile]) -> str:
    """Why a folder has no image file that can be used, and what to do."""
    if any(map(_is_result, files)):
        return _RESULTS_ONLY.format(purpose, folder)
    if files:
        return f'{purpose}: {files[0].path}: {files[0].unreadable}'
    if folder_walk.looks_like_dicom(folder):
        return f'{purpose}: {folder} holds DICOM files; convert them to NIfTI with dcm2niix'
    return (
        f'{purpose}: found no scans in {folder}; looked for *_T1w.nii[.gz] (BIDS), '
        'then for *.nii, *.nii.gz, *.mgz, *.mgh and *.hdr, in all subfolders'
    )


def described(folder: str | os.PathLike[str], purpose: str) -> list[tuple[str, str, int, int]]:
    """Purpose, path, size and time of change of each file of `nifti_files`."""
    return [
        (purpose, os.fspath(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
        for file in nifti_files(folder, purpose)
        for path in parts_of(file)
        for status in (path.stat() if path.exists() else path.lstat(),)
    ]


def digest(described: list) -> str:
    """Hash of a list that can be written as JSON, ten hexadecimal digits."""
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:10]


def list_scans(
    folder: str | os.PathLike[str],
    purpose: str,
    with_masks: bool = True,
    contrasts: Sequence[str] = (T1W,),
) -> Listing:
    """The scans of a folder with their lesion masks, and the files that are not used.

    Args:
      folder: BIDS or plain, searched with its subfolders.
      purpose: the setting that names the folder, for messages.
      with_masks: look for lesion masks; without, all of them are left out.
      contrasts: those that are wanted; files that their names say to be of another are left out.

    Raises:
      UserError: no such folder, no scan in it, or a lesion mask that belongs to no scan.
    """
    folder = Path(folder)
    folder_walk.check_folder(folder, purpose)
    files = folder_walk.walk(folder)
    reasons = {file.path: why for file in files if (why := _why_not(file, folder, contrasts))}
    subjects = folder_walk.freesurfer_scans(files)
    _leave_out_rest_of_freesurfer(subjects, files, reasons)
    candidates = [file for file in files if file.path not in reasons]
    scans = _choose_scans(candidates, set(subjects.values()), reasons)
    if not scans:
        raise UserError(_no_scan(folder, purpose, files, reasons))
    owners = {}
    if with_masks:
        masks = [file for file in files if reasons.get(file.path) == Kind.LESION.value]
        owners = match_masks(scans, masks, reasons)
    for mask in itertools.chain.from_iterable(owners.values()):
        reasons.pop(mask, None)
    names = numbered(distinct_names(scans, result_name))
    people = persons(scans, folder)
    cases = tuple(
        Case(name, scan, owners.get(scan, ()), people[scan]) for name, scan in zip(names, scans)
    )
    return Listing(folder, cases, tuple(sorted(reasons.items())))


def find_cases(
    folder: str | os.PathLike[str], purpose: str, contrasts: Sequence[str] = (T1W,)
) -> list[Case]:
    """The cases of `list_scans`."""
    return list(list_scans(folder, purpose, contrasts=contrasts).cases)


def _why_not(file: FoundFile, folder: Path, contrasts: Sequence[str]) -> str:
    """Why a file cannot be a scan, whatever lies beside it; '' if it can."""
    if _is_result(file):
        return Kind.RESULT.value
    if file.unreadable:
        return file.unreadable
    kind, word = _kind_in(file.path, folder)
    named = T1W if kind == Kind.T1W else contrast_named(file.path)
    if kind == Kind.OTHER or (named and named not in contrasts):
        wanted = 'T1w' if T1W in contrasts else ', '.join(contrasts)
        if named not in contrasts:
            return f'{word} by its name, not {wanted}'
    if named or kind == Kind.UNNAMED:
        return f'in {SOURCE}' if file.part == SOURCE else ''
    return kind.value


def _kind_in(path: Path, folder: Path) -> tuple[Kind, str]:
    """What a file contains; where its name does not say, a folder `labels` or `masks` does."""
    kind, word = kind_of(path)
    if kind == Kind.UNNAMED:
        for name in path.parent.relative_to(folder).parts:
            if is_mask_folder(name):
                return Kind.LESION, name
    return kind, word


def _leave_out_rest_of_freesurfer(
    subjects: dict[Path, Path], files: Sequence[FoundFile], reasons: dict[Path, str]
) -> None:
    """Use one image of each FreeSurfer subject, whatever its name."""
    for file in files:
        for subject in subjects.keys() & set(file.path.parents):
            if file.part == OWN:
                continue
            if file.path == subjects[subject]:
                reasons.pop(file.path, None)
            else:
                reasons[file.path] = f'of FreeSurfer subjects only {subjects[subject].name} is used'


def _choose_scans(
    candidates: Sequence[FoundFile], of_freesurfer: set[Path], reasons: dict[Path, str]
) -> list[Path]:
    """The scans among the files that can be one; the others get their reasons."""
    outside = [file for file in candidates if file.part != DERIVED]
    if outside:  # otherwise the derivatives are all that there is
        for file in set(candidates) - set(outside):
            reasons[file.path] = 'in derivatives'
        candidates = outside
    paths = [file.path for file in candidates]
    named = {p for p in paths if kind_of(p)[0] != Kind.UNNAMED or p in of_freesurfer}
    named_of = {(path.parent, subject_words(path)): path for path in named}
    some_bids = any(is_bids_name(path) for path in named)
    scans = []
    for path in paths:
        called_t1w = named_of.get((path.parent, subject_words(path)))
        if path in named:
            scans.append(path)
        elif some_bids:
            reasons[path] = 'its name has no suffix _T1w, as other names here have'
        elif called_t1w is not None:
            reasons[path] = 'another file of its subject is called T1w'
        else:
            scans.append(path)
    return scans


def _no_scan(
    folder: Path, purpose: str, files: Sequence[FoundFile], reasons: dict[Path, str]
) -> str:
    """Why no file of a folder is a scan."""
    usable = [file for file in files if not _is_result(file) and not file.unreadable]
    if not usable:
        return _nothing_found(folder, purpose, files)
    masks = (Kind.LESION.value, Kind.ANATOMY.value)
    if all(reasons[file.path] in masks for file in usable):
        return (
            f'{purpose}: found only masks in {folder}; looked for *_T1w.nii[.gz] (BIDS), then for '
            'image files whose names hold none of the words lesion, mask, seg, roi, label'
        )
    some = '; '.join(f'{_relative(file.path, folder)}: {reasons[file.path]}' for file in usable[:3])
    more = f'; and {len(usable) - 3} more' if len(usable) > 3 else ''
    return (
        f'{purpose}: found no T1w scan among the {len(usable)} image files of {folder} ({some}'
        f'{more}); give a folder of T1w scans'
    )


def distinct_names(
    paths: Sequence[Path], name_of: Callable[[Path], str] = strip_ending
) -> list[str]:
    """A name for each file; equal ones get as many of their parent folders as make them differ.

    `a/T1.nii` and `b/T1.nii` become `a_T1` and `b_T1`. Names remain equal only for files of one
    folder that differ in nothing but their endings; see `numbered`.

    Args:
      paths: of different files.
      name_of: the name of a file without its folders.
    """
    stems = [name_of(path) for path in paths]
    folders = [tuple(map(without_bytes, path.absolute().parent.parts[1:])) for path in paths]
    reachable = len(set(zip(folders, stems)))
    names = list(stems)
    for depth in range(1, max(map(len, folders), default=0) + 1):
        counts = collections.Counter(names)
        if len(counts) == reachable:
            break
        names = [
            name if counts[name] == 1 else '_'.join((*parts[-depth:], stem))
            for name, parts, stem in zip(names, folders, stems)
        ]
    return names


def numbered(names: Sequence[str]) -> list[str]:
    """Names that differ: the second `x` becomes `x_2`."""
    counts: collections.Counter[str] = collections.Counter()
    result = []
    for name in names:
        counts[name] += 1
        result.append(name if counts[name] == 1 else f'{name}_{counts[name]}')
    return result
