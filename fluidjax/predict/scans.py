"""The scans that a command is given, and what each of them is called in the folder it writes to."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from fluidjax.base.errors import UserError

_BIDS = re.compile(r'(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?:_|$)')


@dataclasses.dataclass(frozen=True)
class ScanFile:
    """A scan and its place among the results.

    Attributes:
        path: the file, as it was given or found.
        name: what the names of its results begin with.
        folder: of its results, below the output folder: `sub-XX[/ses-YY]/anat` for a BIDS name,
            else `name`.
    """

    path: Path
    name: str
    folder: Path


def scan_files(given: Sequence[str | Path], out: Path) -> list[ScanFile]:
    """Every scan of the files and folders given, each once, with names that differ.

    Scans of one name (`a/T1.nii`, `b/T1.nii`) are told apart by as many of their parent folders as
    it takes: `a_T1`, `b_T1`.

    Args:
        given: image files, which need not exist, and folders, searched by
            `scan_folders.find_scans`.
        out: the output folder; what lies in it is no scan.

    Raises:
        UserError: a folder without scans, or two files that only differ in their ending.
    """
    paths = _distinct_files([found for one in given for found in _found(Path(one), out)])
    return [
        ScanFile(path, name, _folder_of(path, name))
        for path, name in zip(paths, _distinct_names(paths))
    ]


def name_of(path: str | Path) -> str:
    """A file's name without its ending, the suffix `_T1w` and the entity `desc`.

    `sub-01_ses-2_desc-preproc_T1w.nii.gz` is `sub-01_ses-2`.
    """
    from data_pipelines.volume_io import strip_ending

    stem = strip_ending(path)
    return re.sub(r'_desc-[A-Za-z0-9]+', '', stem.removesuffix('_T1w')) or stem


def _found(path: Path, out: Path) -> list[Path]:
    from data_pipelines.scan_folders import find_scans

    path = path.expanduser()
    if not path.is_dir():
        return [path]
    ours = out.resolve()
    scans = [scan for scan in find_scans(path, 'SCAN') if ours not in scan.resolve().parents]
    if not scans:
        raise UserError(f'SCAN: {path} holds no scan but the results in {out}; give another folder')
    return scans


def _distinct_files(paths: list[Path]) -> list[Path]:
    """Each file once, where a folder and a file in it were given."""
    first: dict[Path, Path] = {}
    for path in paths:
        first.setdefault(path.absolute(), path)
    return list(first.values())


def _distinct_names(paths: list[Path]) -> list[str]:
    names = [name_of(path) for path in paths]
    folders = [path.absolute().parent.parts[1:] for path in paths]
    for depth in range(1, max(map(len, folders), default=0) + 1):
        if len(set(names)) == len(names):
            break
        names = [
            name if names.count(name) == 1 else '_'.join((*parts[-depth:], name_of(path)))
            for name, parts, path in zip(names, folders, paths)
        ]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(
                f"{paths[i]}: would be called '{name}' like "
                f'{paths[names.index(name)]}, and overwrite its results; rename one, '
                'or predict them apart'
            )
    return names


def _folder_of(path: Path, name: str) -> Path:
    from data_pipelines.volume_io import strip_ending

    bids = _BIDS.match(name)
    if bids is None or not strip_ending(path).endswith('_T1w'):
        return Path(name)
    return Path(*filter(None, bids.groups()), 'anat')
