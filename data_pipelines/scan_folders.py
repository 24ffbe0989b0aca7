"""Which files of a user's folder are scans, and which mask belongs to which scan.

A BIDS folder is one that holds `*_T1w.nii[.gz]` files: those are its scans (`derivatives` and
`sourcedata` are left out). In any other folder every NIfTI or MGH file is a scan unless its name
says it is a mask.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.image_files import ENDINGS
from data_pipelines.volume_io import strip_ending
from fluidjax.base.errors import UserError

_BIDS_LEFT_OUT = {'derivatives', 'sourcedata'}
_MASK_NAME = re.compile(r'lesion|mask(?!ed)|seg|roi|label')
# Masks of anatomy, as brain extraction and tissue segmentation leave them beside a scan.
_ANATOMY_NAME = re.compile(
    r'brain|skull|aseg|aparc|tissue|ribbon|[dm]seg|probseg|(^|_)(gm|wm|csf)(_|$)'
)
_LESION_NAME = re.compile(r'lesion|tumou?r|stroke|infarct|glioma')
# Words that say what a file holds, not whose it is.
_ROLE_WORD = re.compile(
    r'^(t1w?|brain|masked|lesions?|mask|seg|segmentation|rois?|labels?|manual|tumou?r|lesionmask)$'
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Attributes: name: unique in its folder; scan: its file; mask: its lesion mask, or None."""

    name: str
    scan: Path
    mask: Path | None


def nifti_files(folder: str | os.PathLike[str], purpose: str) -> list[Path]:
    """Every NIfTI or MGH file under a folder, sorted, hidden ones left out.

    Raises:
      UserError: no such folder, or nothing in it; `purpose` names the setting.
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
    """Purpose, path, size and time of change of every NIfTI file under a folder."""
    files = [(path, path.stat()) for path in nifti_files(folder, purpose)]
    return [
        (purpose, os.fspath(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
        for path, status in files
    ]


def digest(described: list) -> str:
    """Ten hexadecimal digits of what JSON can write."""
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:10]


def find_cases(folder: str | os.PathLike[str], purpose: str) -> list[Case]:
    """The scans of a folder with their lesion masks, sorted by path.

    Args:
      folder: BIDS or plain, searched with its subfolders.
      purpose: the setting that named the folder, for messages.

    Raises:
      UserError: no such folder, no scan in it, or a lesion mask that belongs to no scan.
    """
    folder = Path(folder)
    scans, files = _scans_and_files(folder, purpose)
    masks = [p for p in files if p not in set(scans) and is_lesion_mask(p)]
    owners = _match(scans, masks)
    return [Case(name, scan, owners.get(scan)) for name, scan in zip(_names(scans, folder), scans)]


def find_scans(folder: str | os.PathLike[str], purpose: str) -> list[Path]:
    """The scans of a folder, sorted by path, whatever masks lie beside them.

    Raises:
      UserError: no such folder, or no scan in it; `purpose` names the setting.
    """
    return _scans_and_files(Path(folder), purpose)[0]


def _scans_and_files(folder: Path, purpose: str) -> tuple[list[Path], list[Path]]:
    """A folder's scans, and all its image files that count."""
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
    """Whether a file name says lesion mask, and not mask of the brain or its tissues."""
    name = strip_ending(path).lower()
    is_mask = bool(_MASK_NAME.search(name))
    return is_mask and (bool(_LESION_NAME.search(name)) or not _ANATOMY_NAME.search(name))


def _subject_key(path: Path) -> tuple[str, ...]:
    """Whose file this is: the BIDS subject, or the words of the name that are not about content."""
    name = strip_ending(path)
    if name.startswith('sub-'):
        return (name.split('_')[0],)
    words = re.split(r'[_\-. ]+', name.lower())
    return tuple(word for word in words if word and not _ROLE_WORD.match(word))


def person(path: Path) -> tuple[str, ...]:
    """Who is in this scan: the BIDS subject, else one person a file (or a folder and name)."""
    if strip_ending(path).startswith('sub-'):
        return _subject_key(path)
    return (os.fspath(path.parent), *_subject_key(path))


def _match(scans: Iterable[Path], masks: Iterable[Path]) -> dict[Path, Path]:
    """scan -> mask: in the same folder and of the same subject, or the folder's only scan."""
    in_folder = collections.defaultdict(list)
    for scan in scans:
        in_folder[scan.parent].append(scan)
    owners: dict[Path, Path] = {}
    # A mask named for lesions goes before one that is only called a mask.
    for mask in sorted(masks, key=lambda p: (not _LESION_NAME.search(p.name.lower()), p)):
        here = in_folder[mask.parent]
        mine = (
            here if len(here) == 1 else [s for s in here if _subject_key(s) == _subject_key(mask)]
        )
        if not mine:
            raise UserError(
                f'{mask}: a lesion mask that belongs to no scan in its folder; name it like its '
                'scan (p01.nii.gz, p01_lesion.nii.gz) or move it away'
            )
        for scan in mine:
            owners.setdefault(scan, mask)
    return owners


def _names(scans: list[Path], folder: Path) -> list[str]:
    """File names without their endings; with their folders where that is not unique."""
    stem = lambda path: re.sub(r'_T1w$', '', strip_ending(path))
    names = [stem(path) for path in scans]
    if len(set(names)) == len(names):
        return names
    relative = lambda path: '_'.join((*path.relative_to(folder).parts[:-1], stem(path)))
    names = [relative(path) for path in scans]
    # x.nii beside x.nii.gz: nothing is left to tell them apart but a number.
    return [f'{name}_{i}' if names.count(name) > 1 else name for i, name in enumerate(names)]
