"""Which scans a command is given, and what their results are called."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.file_names import label_of, result_name
from data_pipelines.scan_arguments import given_scans
from data_pipelines.scan_folders import distinct_names
from data_pipelines.volume_io import strip_ending
from fluidjax.base.errors import UserError

MOST_NAMED = 20  # labels in a message
_BIDS = re.compile(r'(sub-[A-Za-z0-9+]+)(?:_(ses-[A-Za-z0-9+]+))?(?:_|$)')


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


@dataclasses.dataclass(frozen=True)
class Selection:
    """The scans to predict, and what is not predicted.

    Attributes:
        files: the scans, each once, with names that differ.
        left_out: (file, reason) of every other image file in the folders given.
        failures: a line for each argument in which there is no scan.
    """

    files: tuple[ScanFile, ...]
    left_out: tuple[tuple[Path, str], ...] = ()
    failures: tuple[str, ...] = ()


def select(
    given: Sequence[str | Path],
    out: Path,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    contrasts: Sequence[str] = ('t1w',),
    every: bool = False,
) -> Selection:
    """Every scan of the files and folders given.

    Scans of one name (`a/T1.nii`, `b/T1.nii`) are distinguished by as many of their parent folders
    as necessary: `a_T1`, `b_T1`.

    Args:
        given: image files and folders, see `data_pipelines.scan_arguments`.
        out: the output folder, whose files are not scans.
        participants: keep scans of these BIDS labels only, with or without `sub-`; all if empty.
        sessions: the same for sessions, with or without `ses-`.
        contrasts, every: that there is a model for, see `scan_arguments.given_scans`.

    Raises:
        UserError: no scan at all, a label that no scan has, or two files that differ only in their
            ending.
    """
    found = given_scans(given, out, contrasts, every)
    paths = _with_labels(list(found.scans), '--participant-label', 'sub', participants)
    paths = _with_labels(paths, '--session-label', 'ses', sessions)
    chosen = set(paths)
    others = [(path, 'not asked for by its label') for path in found.scans if path not in chosen]
    files = [
        ScanFile(path, name, _folder_of(path, name))
        for path, name in zip(paths, _distinct_names(paths))
    ]
    return Selection(tuple(files), (*found.left_out, *others), found.failures)


def name_of(path: str | Path) -> str:
    """A file's name without its ending, the suffix `_T1w` and the entity `desc`.

    `sub-01_ses-2_desc-preproc_T1w.nii.gz` is `sub-01_ses-2`. Another suffix becomes an entity, as
    results have suffixes of their own: `sub-01_FLAIR.nii.gz` is `sub-01_acq-FLAIR`, and
    `sub-01_acq-3D_FLAIR.nii.gz` is `sub-01_acq-3DFLAIR`.
    """
    name = result_name(Path(path))
    name = re.sub(r'_desc-[A-Za-z0-9+]+', '', name) or name
    if '_acq-' in name:
        return re.sub(r'(_acq-[A-Za-z0-9+]+)(.*)_(T2w|FLAIR)$', r'\1\3\2', name)
    return re.sub(
        r'^(sub-[A-Za-z0-9+]+(?:_ses-[A-Za-z0-9+]+)?)(.*)_(T2w|FLAIR)$', r'\1_acq-\3\2', name
    )


def _with_labels(paths: list[Path], flag: str, entity: str, labels: Sequence[str]) -> list[Path]:
    """The files whose BIDS label (`sub-01` in `sub-01_T1w.nii`) is one of some labels.

    Raises:
        UserError: a label that no file has.
    """
    if not labels:
        return paths
    wanted = {label.removeprefix(f'{entity}-') for label in labels}
    labelled = {path: label_of(path, entity) for path in paths}
    known = sorted({label for label in labelled.values() if label})
    for label in sorted(wanted.difference(known)):
        there = ', '.join(known[:MOST_NAMED]) + (', ...' if len(known) > MOST_NAMED else '')
        advice = f'there are {there}' if known else f'no scan has {entity}-LABEL in its name'
        raise UserError(f"{flag}: no scan of '{label}'; {advice}")
    return [path for path in paths if labelled[path] in wanted]


def _distinct_names(paths: list[Path]) -> list[str]:
    names = distinct_names(paths, name_of)
    first: dict[str, Path] = {}
    for path, name in zip(paths, names, strict=True):
        if first.setdefault(name, path) is not path:
            raise UserError(
                f"{path}: would be called '{name}' like {first[name]} and overwrite its results; "
                'rename one, or predict them one by one'
            )
    return names


def _folder_of(path: Path, name: str) -> Path:
    bids = _BIDS.match(name)
    if bids is None or not re.search(r'_(T1w|T2w|FLAIR)$', strip_ending(path)):
        return Path(name)
    return Path(*filter(None, bids.groups()), 'anat')
