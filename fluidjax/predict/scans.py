"""Which scans a command is given, and what their results are called."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.scan_folders import distinct_names, find_scans
from data_pipelines.volume_io import strip_ending
from fluidjax.base.errors import UserError

MOST_NAMED = 20  # labels in a message
_BIDS = re.compile(r'(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?:_|$)')


@dataclasses.dataclass(frozen=True)
class ScanFile:
    """A scan and its place among the results.

    Attributes:
        path: the file.
        name: what the names of its results begin with.
        folder: where its results go within the output folder: `sub-XX[/ses-YY]/anat` for a BIDS
            name, else `name`.
    """

    path: Path
    name: str
    folder: Path


def scan_files(
    given: Sequence[str | Path],
    out: Path,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
) -> list[ScanFile]:
    """Every scan of the files and folders given, each once, with names that differ.

    Scans of one name (`a/T1.nii`, `b/T1.nii`) are distinguished by as many of their parent folders
    as necessary: `a_T1`, `b_T1`.

    Args:
        given: image files, which need not exist, and folders, searched by
            `scan_folders.find_scans`.
        out: the output folder, whose files are not scans.
        participants: keep scans of these BIDS labels only, with or without `sub-`; all if empty.
        sessions: the same for sessions, with or without `ses-`.

    Raises:
        UserError: a folder without scans, a label that no scan has, or two files that differ only
            in their ending.
    """
    paths = [path for one in given for path in _scans_of(Path(one).expanduser(), out)]
    paths = list({path.absolute(): path for path in paths}.values())
    paths = _with_labels(paths, '--participant-label', 'sub-', participants)
    paths = _with_labels(paths, '--session-label', 'ses-', sessions)
    return [
        ScanFile(path, name, _folder_of(path, name))
        for path, name in zip(paths, _distinct_names(paths))
    ]


def name_of(path: str | Path) -> str:
    """A file's name without its ending, the suffix `_T1w` and the entity `desc`.

    `sub-01_ses-2_desc-preproc_T1w.nii.gz` is `sub-01_ses-2`.
    """
    stem = strip_ending(path)
    return re.sub(r'_desc-[A-Za-z0-9]+', '', stem.removesuffix('_T1w')) or stem


def _scans_of(path: Path, out: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    results = out.resolve()
    scans = [scan for scan in find_scans(path, 'SCAN') if results not in scan.resolve().parents]
    if not scans:
        raise UserError(f'SCAN: {path} holds only the results in {out}; give another folder')
    return scans


def _with_labels(paths: list[Path], flag: str, prefix: str, labels: Sequence[str]) -> list[Path]:
    """The files whose BIDS label (`sub-01` in `sub-01_T1w.nii`) is one of some labels.

    Raises:
        UserError: a label that no file has.
    """
    if not labels:
        return paths
    wanted = {label.removeprefix(prefix) for label in labels}
    labelled = {path: _label_of(path, prefix) for path in paths}
    known = sorted({label for label in labelled.values() if label})
    for label in sorted(wanted.difference(known)):
        there = ', '.join(known[:MOST_NAMED]) + (', ...' if len(known) > MOST_NAMED else '')
        advice = f'there are {there}' if known else f'no scan has {prefix}LABEL in its name'
        raise UserError(f"{flag}: no scan of '{label}'; {advice}")
    return [path for path in paths if labelled[path] in wanted]


def _label_of(path: Path, prefix: str) -> str | None:
    match = re.search(rf'(?:^|_){prefix}([A-Za-z0-9+]+)(?=[_.])', path.name)
    return match[1] if match else None


def _distinct_names(paths: list[Path]) -> list[str]:
    names = distinct_names(paths, name_of)
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(
                f"{paths[i]}: would be called '{name}' like "
                f'{paths[names.index(name)]} and overwrite its results; rename one, '
                'or predict them one by one'
            )
    return names


def _folder_of(path: Path, name: str) -> Path:
    bids = _BIDS.match(name)
    if bids is None or not strip_ending(path).endswith('_T1w'):
        return Path(name)
    return Path(*filter(None, bids.groups()), 'anat')
