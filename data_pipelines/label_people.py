"""Which label maps are of the same person, by the volumes of their structures.

Published folders hold people twice: of the 20 label maps that came with SynthSeg first and the 20
that replaced them, five pairs differ by 3.0 to 3.9 % and all others by 7.6 % or more.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tqdm

from data_pipelines.scan_folders import Case
from data_pipelines.volume_io import load_volume

# Of FreeSurfer's numbers, left and right together, as some maps do not tell sides apart.
_STRUCTURES = (
    (2, 41), (3, 42), (4, 43), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52), (14,),
    (15,), (16,), (17, 53), (18, 54), (26, 58), (28, 60),
)  # fmt: skip
_CORTEX = (slice(1000, 3000), slice(11100, 12176))  # parcels, which count as cortex
_FEWEST = 10  # structures that two maps must have in common
_APART = 0.055  # mean difference of the logarithms of the volumes, from which people are others


def one_person_each(cases: Sequence[Case]) -> list[Case]:
    """Cases of label maps, those of the same person with the same `person`; what was found is told.

    Args:
      cases: of files with FreeSurfer's numbers.

    Raises:
      UserError: a file that cannot be read.
    """
    known: list[tuple[Case, np.ndarray]] = []
    result = []
    for case in tqdm.tqdm(cases, desc='people of the label maps', file=sys.stderr):
        status = case.scan.stat()
        volumes = _log_volumes(case.scan, status.st_size, status.st_mtime_ns)
        nearest = min(known, key=lambda one: _difference(one[1], volumes), default=None)
        told = any(case.person == other.person for other, _ in known)
        if nearest and not told and (apart := _difference(nearest[1], volumes)) < _APART:
            tqdm.tqdm.write(
                f'{case.scan.name} and {nearest[0].scan.name} are of one person, their structures '
                f'differ by {100 * apart:.1f} % in volume: both go to the same split',
                file=sys.stderr,
            )
            case = dataclasses.replace(case, person=nearest[0].person)
        known.append((case, volumes))
        result.append(case)
    return result


@functools.lru_cache(maxsize=4096)
def _log_volumes(path: Path, size: int, changed: int) -> np.ndarray:
    """Logarithms of the volumes of `_STRUCTURES`, ml; nan for one that is missing."""
    del size, changed  # of the file, for the cache
    image = load_volume(path)
    labels = np.maximum(np.round(image.data), 0).astype(np.int64)
    counts = np.bincount(labels.ravel(), minlength=_CORTEX[-1].stop)
    counts[3] += sum(counts[parcels].sum() for parcels in _CORTEX)
    ml = counts * abs(np.linalg.det(image.affine[:3, :3])) / 1000.0
    volumes = np.array([ml[list(numbers)].sum() for numbers in _STRUCTURES])
    return np.log(np.where(volumes > 0, volumes, np.nan))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of the structures that both have; infinite for too few of them."""
    apart = np.abs(a - b)
    common = np.isfinite(apart)
    return float(apart[common].mean()) if common.sum() >= _FEWEST else np.inf
