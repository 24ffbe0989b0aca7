"""The scans in a user's folder, their lesion masks, and names for them.

A BIDS folder contains `*_T1w.nii[.gz]` files, which are its scans (`derivatives` and `sourcedata`
are left out). In any other folder every NIfTI or MGH file is a scan, unless its name is that of a
mask.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_pipelines.image_files import ENDINGS
from data_pipelines.volume_io import strip_ending
from fluidjax.base.errors import UserError

_BIDS_LEFT_OUT = {'derivatives', 'sourcedata'}
_MASK_NAME = re.compile(r'lesion|mask(?!ed)|seg|roi|label')
# Masks of anatomy, which brain extraction and tissue segmentation write beside a scan.
_ANATOMY_NAME = re.compile(
    r'brain|skull|aseg|aparc|tissue|ribbon|[dm]seg|probseg|(^|_)(gm|wm|csf)(_|$)'
)
_LESION_NAME = re.compile(r'lesion|tumou?r|stroke|infarct|glioma')
# Words in a name that describe the content of a file, not the subject.
_ROLE_WORD = re.compile(
    r'^(t1w?|brain|masked|lesions?|mask|seg|segmentation|rois?|labels?|manual|tumou?r|lesionmask)$'
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A scan of a folder.

    Attributes:
      name: unique in the folder.
      scan: its file.
      mask: file of its lesion mask, or None.
    """

    name: str
    scan: Path
    mask: Path | None


def nifti_files(folder: str | os.PathLike[str], purpose: str) -> list[Path]:
    """All NIfTI and MGH files in a folder and its subfolders, sorted, without hidden ones.

    Args:
      folder: to search.
      purpose: the setting that names the folder, for messages.

    Raises:
      UserError: no such folder, or no such file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{purpose}: {folder} is not a folder; give one that holds NIfTI files')
    files = [
        path
        for path in sorted(folder.rglob('*'))
        if path.name.lower().endswith(ENDINGS)
        and not any(part.startswith('.') for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(
            f'{purpose}: found no scans in {folder}; looked for *_T1w.nii[.gz] (BIDS), '
            'then for *.nii, *.nii.gz, *.mgz and *.mgh, in all subfolders'
        )
    return files


def described(folder: str | os.PathLike[str], purpose: str) -> list[tuple[str, str, int, int]]:
    """Purpose, path, size and time of change of each file of `nifti_files`."""
    files = [(path, path.stat()) for path in nifti_files(folder, purpose)]
    return [
        (purpose, os.fspath(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
        for path, status in files
    ]


def digest(described: list) -> str:
    """Hash of a list that can be written as JSON, ten hexadecimal digits."""
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:10]


def find_cases(folder: str | os.PathLike[str], purpose: str) -> list[Case]:
    """The scans of a folder with their lesion masks, sorted by path.

    Args:
      folder: BIDS or plain, searched with its subfolders.
      purpose: the setting that names the folder, for messages.

    Raises:
      UserError: no such folder, no scan in it, or a lesion mask that belongs to no scan.
    """
    folder = Path(folder)
    scans, files = _scans_and_files(folder, purpose)
    masks = [p for p in files if p not in set(scans) and is_lesion_mask(p)]
    owners = _match(scans, masks)
    # x.nii and x.nii.gz in one folder can only be told apart by a number.
    names = numbered(distinct_names(scans, lambda path: re.sub(r'_T1w$', '', strip_ending(path))))
    return [Case(name, scan, owners.get(scan)) for name, scan in zip(names, scans)]


def find_scans(folder: str | os.PathLike[str], purpose: str) -> list[Path]:
    """The scans of a folder, sorted by path; see `find_cases`. Their masks are ignored."""
    return _scans_and_files(Path(folder), purpose)[0]


def _scans_and_files(folder: Path, purpose: str) -> tuple[list[Path], list[Path]]:
    """The scans of a folder, and all its image files that are not left out."""
    files = nifti_files(folder, purpose)
    for left_out in (_BIDS_LEFT_OUT, _BIDS_LEFT_OUT - {'derivatives'}):
        inside = [p for p in files if not left_out & set(p.relative_to(folder).parts)]
        scans = [p for p in inside if strip_ending(p).endswith('_T1w')]
        if scans:
            files = inside
            break
    else:
        scans = [p for p in files if not _MASK_NAME.search(strip_ending(p).lower())]
    if not scans:
        raise UserError(
            f'{purpose}: found only masks in {folder}; looked for *_T1w.nii[.gz] (BIDS), then for '
            'NIfTI files whose names hold none of lesion, mask, seg, roi, label'
        )
    return scans, files


def is_lesion_mask(path: Path) -> bool:
    """Whether a file is a lesion mask, and not a mask of the brain or its tissues, by its name."""
    name = strip_ending(path).lower()
    is_mask = bool(_MASK_NAME.search(name))
    return is_mask and (bool(_LESION_NAME.search(name)) or not _ANATOMY_NAME.search(name))


def _subject_key(path: Path) -> tuple[str, ...]:
    """The subject of a file: its BIDS label, or the words of its name that are not on content."""
    name = strip_ending(path)
    if name.startswith('sub-'):
        return (name.split('_')[0],)
    words = re.split(r'[_\-. ]+', name.lower())
    return tuple(word for word in words if word and not _ROLE_WORD.match(word))


def person(path: Path) -> tuple[str, ...]:
    """The person in a scan: the BIDS subject, else a person for each folder and file name."""
    if strip_ending(path).startswith('sub-'):
        return _subject_key(path)
    return (os.fspath(path.parent), *_subject_key(path))


def _match(scans: Iterable[Path], masks: Iterable[Path]) -> dict[Path, Path]:
    """scan -> mask: in the same folder and of the same subject, or the only scan of the folder."""
    in_folder = collections.defaultdict(list)
    for scan in scans:
        in_folder[scan.parent].append(scan)
    owners: dict[Path, Path] = {}
    # A mask with a lesion in its name is preferred to one that is only called a mask.
    for mask in sorted(masks, key=lambda p: (not _LESION_NAME.search(p.name.lower()), p)):
        here = in_folder[mask.parent]
        if len(here) != 1:
            here = [scan for scan in here if _subject_key(scan) == _subject_key(mask)]
        if not here:
            raise UserError(
                f'{mask}: a lesion mask that belongs to no scan in its folder; name it like its '
                'scan (p01.nii.gz, p01_lesion.nii.gz) or move it away'
            )
        for scan in here:
            owners.setdefault(scan, mask)
    return owners


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
    folders = [path.absolute().parent.parts[1:] for path in paths]
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
