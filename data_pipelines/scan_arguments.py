"""The scans that a user names on a command line: image files, and folders of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.file_names import Kind
from data_pipelines.folder_walk import holds_predictions
from data_pipelines.scan_folders import T1W, list_scans
from fluidjax.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Given:
    """What the arguments of a command name.

    Attributes:
      scans: the files, which need not exist, each once.
      left_out: (file, reason) of the image files in folders that are not scans.
      failures: a line for each argument in which there is no scan.
    """

    scans: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...] = ()
    failures: tuple[str, ...] = ()


def given_scans(
    arguments: Sequence[str | Path],
    out: Path,
    contrasts: Sequence[str] = (T1W,),
    every: bool = False,
) -> Given:
    """The scans of files and folders; a folder is searched by `scan_folders.list_scans`.

    Args:
      arguments: image files, which are taken whatever they are called, and folders.
      out: the output folder, whose files are not scans.
      contrasts: that can be used; where T1w is one of them, the others only of a folder without
        T1w scans, or with `every` of all.

    Raises:
      UserError: no argument names a scan.
    """
    scans: dict[Path, Path] = {}
    left_out: list[tuple[Path, str]] = []
    failures: list[str] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        try:
            found, others = (
                _in_folder(path, out, contrasts, every) if path.is_dir() else ([path], [])
            )
        except UserError as error:
            failures.append(str(error))
            continue
        scans |= {scan.absolute(): scan for scan in found}
        left_out += others
    if failures and not scans:
        raise UserError('; '.join(failures))
    return Given(tuple(scans.values()), tuple(left_out), tuple(failures))


def _in_folder(
    folder: Path, out: Path, contrasts: Sequence[str], every: bool
) -> tuple[list[Path], list[tuple[Path, str]]]:
    first = (T1W,) if T1W in contrasts and not every else contrasts
    try:
        listing = list_scans(folder, 'SCAN', with_masks=False, contrasts=first)
    except UserError:
        if tuple(contrasts) == tuple(first):
            raise
        listing = list_scans(folder, 'SCAN', with_masks=False, contrasts=contrasts)
    results = out.resolve()
    scans = [case.scan for case in listing.cases]
    inside = [scan for scan in scans if results in scan.resolve().parents]
    if len(inside) == len(scans):
        raise UserError(_nothing_outside(folder, out))
    left_out = [*listing.left_out, *((scan, Kind.RESULT.value) for scan in inside)]
    return [scan for scan in scans if scan not in inside], left_out


def _nothing_outside(folder: Path, out: Path) -> str:
    """What is wrong where all scans of a folder lie in the output folder."""
    results = out.resolve()
    if results in (folder.resolve(), *folder.resolve().parents) and not holds_predictions(out):
        return f'--out: {out} contains the scans in {folder}; name a folder of its own'
    return f'SCAN: {folder} holds only the results in {out}; give another folder'
