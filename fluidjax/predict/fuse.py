"""Several contrasts of one session, fused: the mean of their probabilities on one scan's voxels.

It works on the files that `predict` has written, so each scan also has its own results.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.file_names import subject_words
from data_pipelines.registration import register_rigidly
from data_pipelines.resampling import to_scan
from data_pipelines.volume_io import Volume, load_volume, save_like
from fluidjax.base.disk import is_of_disk
from fluidjax.base.errors import UserError
from fluidjax.base.failures import failure_line
from fluidjax.base.files import write_json
from fluidjax.base.names import shown
from fluidjax.detect.evaluate import voxel_ml
from fluidjax.predict.files import BRAIN_MASK, FUSED, FUSED_MASK, PROBABILITY, TABLE, short_names
from fluidjax.predict.scans import ScanFile

_SESSION = re.compile(r'(sub-[A-Za-z0-9+]+)(?:_(ses-[A-Za-z0-9+]+))?(?:_|\.)')
# Share of the smaller brain that lies in the other one after the registration, at least.
_LEAST_OVERLAP = 0.8
_LEAST_SHARE = 0.25  # of a voxel in a brain, by which its probability is divided


@dataclasses.dataclass(frozen=True)
class Member:
    """A predicted scan of a session.

    Attributes:
        path: its file.
        scan: its voxels.
        probability, brain: on them.
        threshold: the probability at which its own mask begins.
        start: path of its results without their last part.
    """

    path: Path
    scan: Volume
    probability: np.ndarray
    brain: np.ndarray
    threshold: float
    start: Path


def session_of(path: Path) -> tuple[str, ...]:
    """Whose scan a file is, and of which session: by its BIDS name, else by words and folder.

    The first part is the folder of the data set, as `sub-01` of another one is another person.
    """
    path = path.absolute()
    bids = _SESSION.match(path.name)
    if not bids:
        return (str(path.parent), *subject_words(path))
    of_subject = [folder for folder in path.parents if folder.name == bids[1]]
    data_set = of_subject[-1].parent if of_subject else path.parent
    return (str(data_set), *filter(None, bids.groups()))


def fuse_sessions(out: Path, files: Sequence[ScanFile]) -> Iterator[tuple[bool, str]]:
    """Fuse the results of the scans of each session that has several.

    Writes `desc-fused_probseg` and `desc-fused_mask` beside the results of the session's first T1w
    scan, or of its first one. A voxel is marked where the mean of the probabilities is at least the
    mean of those at which the own masks begin of the scans that see it.

    Args:
        out: the folder of the results.
        files: the scans that were predicted.

    Yields:
        For each session with several scans whether it was fused, and a line for the user: what was
        marked, or why it was not fused.

    Raises:
        DiskError, OSError: nothing more can be written.
    """
    sessions: dict[tuple[str, ...], list[ScanFile]] = {}
    for file in files:
        sessions.setdefault(session_of(file.path), []).append(file)
    return (_tried(out, members) for members in sessions.values() if len(members) > 1)


def _tried(out: Path, files: Sequence[ScanFile]) -> tuple[bool, str]:
    """Whether a session was fused, and its line; a failure must not hide the other sessions."""
    try:
        return True, _fused(out, files)
    except Exception as error:
        if is_of_disk(error):
            raise
        return False, f'not fused: {failure_line(files[0].path, error)}'


def _fused(out: Path, files: Sequence[ScanFile]) -> str:
    """Fuse a session; what was marked. UserError: it cannot be fused."""
    summaries = [_summary(out, file) for file in files]
    names = ', '.join(shown(file.path) for file in files)
    unknown = [s['name'] for s in summaries if s.get('threshold_probability') is None]
    if unknown:
        raise UserError(
            f'{names}: the model of {unknown[0]} knows no probabilities; evaluate it again'
        )
    members = [_member(out, file, s) for file, s in zip(files, summaries, strict=True)]
    first = next((i for i, s in enumerate(summaries) if s['contrast'] == 't1w'), 0)
    target = members[first]
    placed = [_on_voxels_of(target, member) for member in members]
    weight = sum(brain.astype(np.float32) for _, brain in placed)
    total = sum(probability * brain for probability, brain in placed)
    fused = np.where(target.brain, total / np.maximum(weight, 1.0), 0.0).astype(np.float32)
    least = sum(m.threshold * brain for m, (_, brain) in zip(members, placed, strict=True))
    mask = target.brain & (fused >= (least / np.maximum(weight, 1.0)).astype(np.float32))
    level = float(np.mean([member.threshold for member in members]))
    about = {
        'Sources': [shown(member.path) for member in members],
        'SpatialReference': 'orig',
        'Description': 'Mean of the probabilities of a lesion by several contrasts of a session, '
        'brought together by a rigid registration. Zero outside the brain',
    }
    save_like(Path(f'{target.start}_{FUSED}.nii.gz'), fused, target.scan)
    write_json(Path(f'{target.start}_{FUSED}.json'), about)
    limit = f'{level:.6g}, or the mean of the thresholds of those scans that see the voxel'
    marked = {**about, 'Type': 'Lesion', 'Description': f'Where {FUSED} is at least {limit}'}
    save_like(Path(f'{target.start}_{FUSED_MASK}.nii.gz'), mask, target.scan)
    write_json(Path(f'{target.start}_{FUSED_MASK}.json'), marked)
    ml = voxel_ml(target.scan.affine) * int(mask.sum())
    return f'{names}: fused, {ml:.1f} ml marked; {shown(Path(f"{target.start}_{FUSED}.nii.gz"))}'


def _start(out: Path, file: ScanFile) -> Path:
    short = short_names(file)
    return out / short.folder / short.name


def _summary(out: Path, file: ScanFile) -> dict[str, Any]:
    return json.loads(Path(f'{_start(out, file)}_{TABLE}.json').read_text('utf-8'))['Summary']


def _member(out: Path, file: ScanFile, summary: dict[str, Any]) -> Member:
    start = _start(out, file)
    load = lambda kind: load_volume(f'{start}_{kind}.nii.gz', allow_empty=True).data
    return Member(
        file.path,
        load_volume(file.path),
        load(PROBABILITY),
        load(BRAIN_MASK) > 0,
        float(summary['threshold_probability']),
        start,
    )


def _on_voxels_of(target: Member, member: Member) -> tuple[np.ndarray, np.ndarray]:
    """The probability of a member on the voxels of another, and where it has a brain there.

    Raises:
        UserError: the brains lie apart.
    """
    if member is target:
        return target.probability, target.brain
    fixed, moving = target.scan, member.scan
    matrix = register_rigidly(
        np.where(target.brain, fixed.data, 0.0),
        target.brain,
        fixed.affine,
        np.where(member.brain, moving.data, 0.0),
        member.brain,
        moving.affine,
    )
    affine = np.linalg.inv(matrix) @ moving.affine  # of its voxels in the world of the other
    share = to_scan(member.brain.astype(np.float32), affine, fixed)
    brain = share >= 0.5
    smaller = max(min(int(brain.sum()), int(target.brain.sum())), 1)
    if np.sum(brain & target.brain) < _LEAST_OVERLAP * smaller:
        raise UserError(
            f'{shown(member.path)}: after a rigid registration its brain lies beside that of '
            f'{shown(target.path)}; are they of one person?'
        )
    # Divided, as the zeros around a brain would darken its rim.
    probability = to_scan(member.probability, affine, fixed) / np.maximum(share, _LEAST_SHARE)
    return np.minimum(probability, 1.0), brain
