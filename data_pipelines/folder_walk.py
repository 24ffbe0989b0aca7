"""The image files below a folder, and the parts of it that hold no input.

Linked folders are searched too, each folder once; hidden files and folders are not there.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipelines import file_names
from data_pipelines.image_files import ENDINGS
from fluidjax.base.errors import UserError

# Images in formats that are not read; they are named, so that nobody misses them.
FOREIGN_ENDINGS = (
    *('.nrrd', '.nhdr', '.mha', '.mhd', '.mnc', '.dcm', '.ima', '.par', '.v'),
    *('.nii.bz2', '.nii.xz', '.nii.zst', '.nii.zip', '.img.gz', '.hdr.gz'),
)
DERIVED, SOURCE, OWN = 'derivatives', 'sourcedata', 'results of fluidjax'
# Files that lie together at the top of what commands write.
_TOPS = (('draws.json',), ('config.json', 'checkpoints'), ('metrics.json', 'report.html'))
_DICOM_LOOKED_AT = 5  # files of a folder without images


@dataclasses.dataclass(frozen=True)
class FoundFile:
    """An image file of a folder.

    Attributes:
      path: the file; of a pair its header.
      part: '' or DERIVED, SOURCE or OWN: the part of the folder in which it lies.
      unreadable: why it cannot be read, or ''.
    """

    path: Path
    part: str = ''
    unreadable: str = ''


def walk(folder: Path) -> list[FoundFile]:
    """All image files below a folder, sorted by path."""
    found = []
    for here, names in _folders(folder):
        part = _part_of(here, folder)
        present = set(names)
        for name in names:
            path, unreadable = here / name, _why_unreadable(name, present)
            if unreadable is not None:
                found.append(FoundFile(path, part, unreadable))
    return sorted(found, key=lambda file: file.path)


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with the names of its files; a folder that links lead to again comes once."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        yield Path(here), sorted(name for name in names if not name.startswith('.'))


def _why_unreadable(name: str, present: set[str]) -> str | None:
    """'' for a file that can be read, None for one that is no image or is the rest of a pair."""
    lower = name.lower()
    if lower.endswith(ENDINGS):
        return ''
    if lower.endswith('.hdr'):
        return ''
    if lower.endswith('.img'):
        header = name[:-4] + ('.HDR' if name.endswith('.IMG') else '.hdr')
        return None if header in present else 'its header, .hdr, is missing'
    if lower.endswith(FOREIGN_ENDINGS):
        dicom = lower.endswith(('.dcm', '.ima'))
        tool = 'dcm2niix' if dicom else 'SimpleITK or another tool'
        return f'{"DICOM" if dicom else "its format"} is not read; convert it with {tool}'
    return None


def _part_of(here: Path, folder: Path) -> str:
    """The part of a folder in which one of its folders lies; what is inside `folder` decides.

    Only results of fluidjax count at the top too: other derivatives may be given as such. A run may
    be trained in the folder of its scans.
    """
    parts = here.relative_to(folder).parts
    inside = [folder.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    if holds_predictions(folder) or holds_pairs(folder) or any(map(_is_own, inside)):
        return OWN
    if SOURCE in parts:
        return SOURCE
    if DERIVED in parts or any(map(_is_derivative, inside)):
        return DERIVED
    return ''


def description_of(folder: Path) -> dict:
    """`dataset_description.json` of a folder; empty if there is none that can be read."""
    try:
        content = json.loads((folder / 'dataset_description.json').read_text('utf-8-sig'))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_derivative(folder: Path) -> bool:
    return str(description_of(folder).get('DatasetType', '')).lower() == 'derivative'


def holds_predictions(folder: Path) -> bool:
    """Whether a folder is described as a data set that `fluidjax predict` wrote."""
    made_by = description_of(folder).get('GeneratedBy')
    return isinstance(made_by, list) and any(
        isinstance(one, dict) and one.get('Name') == 'fluidjax' for one in made_by
    )


def holds_pairs(folder: Path) -> bool:
    """Whether `fluidjax randomize` wrote a folder."""
    return all((folder / name).exists() for name in _TOPS[0])


def _is_own(folder: Path) -> bool:
    """Whether a command of fluidjax wrote a folder: predict, randomize, train or eval."""
    return holds_predictions(folder) or any(
        all((folder / name).exists() for name in marks) for marks in _TOPS
    )


def freesurfer_scans(files: list[FoundFile]) -> dict[Path, Path]:
    """The folder of each FreeSurfer subject, and the one of its images that is its scan.

    It is the skull-stripped one with even intensities where there is one (`norm.mgz`).
    """
    found: dict[Path, Path] = {}
    present = {file.path for file in files}
    for path in present:
        if path.parent.name != 'mri' or path.name not in file_names.FREESURFER_SCANS:
            continue
        if {path.parent / name for name in ('orig.mgz', 'aseg.mgz', 'wm.mgz')} & present:
            here = (path.parent / name for name in file_names.FREESURFER_SCANS)
            found[path.parent.parent] = next(one for one in here if one in present)
    return found


def looks_like_dicom(folder: Path) -> bool:
    """Whether the first files of a folder without images are DICOM files."""
    looked_at = 0
    for here, names in _folders(folder):
        for name in names:
            if looked_at == _DICOM_LOOKED_AT:
                return False
            if Path(name).suffix.lower() in ('.txt', '.json', '.tsv', '.csv', '.md', '.pdf'):
                continue
            looked_at += 1
            try:
                with open(here / name, 'rb') as file:
                    if name == 'DICOMDIR' or file.read(132)[128:] == b'DICM':
                        return True
            except OSError:
                continue
    return False


def check_folder(folder: Path, purpose: str) -> None:
    """Raise a UserError unless a path is a folder."""
    if not folder.is_dir():
        raise UserError(f'{purpose}: {folder} is not a folder; give one that holds NIfTI files')
