"""The memory that an evaluation takes, with simulated scans and a method that knows nothing.

The recipe of one row is chosen, its thresholds are chosen on as many validation cases as there are
test cases, and these are scored, as `fluidjax eval` does it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from configs.ldm import get_config
from fluidjax.base.subject import Subject
from fluidjax.bench.timer import Table, peak_gb
from fluidjax.fluid.grid import Grid
from fluidjax.runs.cases import Cases, Split
from fluidjax.runs.detector import Detector
from fluidjax.runs.load import Run
from fluidjax.runs.rows import Row
from fluidjax.runs.scoring import calibrated, scored, scores_of

TABLE = Table(10, ('peak GB', 'peak_gb', '9.2f'))
BRAIN = 0.43  # semi-axes of the ellipsoid, of the side: a third of the voxels, as of a brain


@dataclasses.dataclass(frozen=True)
class Darker:
    """A method whose counterpart of every scan is the scan, a little darker."""

    needs_mask = False
    num_counterparts = 1
    autoencoder = None

    def reconstruct(self, params: Any, volumes: Any, key: Any) -> Any:
        """Counterparts of the shape of the volumes."""
        return 0.9 * volumes


def scans(count: int, shape: tuple[int, int, int], with_lesions: bool = True) -> Cases:
    """Ellipsoids of noise, each with a dark ball in it where there are lesions."""
    places = np.indices(shape, np.float32).T / np.array(shape, np.float32) - 0.5
    brain = ((places / BRAIN) ** 2).sum(axis=-1).T < 1
    # Of a quarter of the brain's size, so that it is inside wherever it is.
    centres = np.random.default_rng(0).uniform(-0.15, 0.15, (count, 3)).astype(np.float32)

    def one(number: int) -> Subject:
        rng = np.random.default_rng(number)
        image = np.where(brain, 0.5 + 0.1 * rng.random(shape, np.float32), np.float32(0))
        lesion = np.zeros(shape, bool)
        if with_lesions:
            lesion = ((places - centres[number]) ** 2).sum(axis=-1).T < (BRAIN / 4) ** 2
        image[lesion] += 0.2
        return Subject(f'{number}', image, brain, lesion, None, np.eye(4))

    def each() -> Iterator[Subject]:
        return map(one, range(count))

    return Cases(each)


def peak_memory(count: int, shape: tuple[int, int, int] = (160, 160, 160)) -> float:
    """The peak memory of this process, in GB, when that many scans have been evaluated.

    Args:
        count: of validation cases, and of test cases.
        shape: of the scans.
    """
    config = get_config('smoke')
    config.detect.update({'batch_size': 1, 'reference': 'scan'})
    config.detect.map.smoothing_mm = 0.0
    detector = Detector(Run(config, Grid(shape, (1.0, 1.0, 1.0)), Darker(), {}, 0))
    rows = {'darker': Row(detector.evidence, {'unit': ('intensity',)}, has_counterparts=False)}
    split = Split(scans(count, shape), scans(10, shape, False), None, None)
    chosen = calibrated(rows, split, (), detector, search=False)
    with scores_of(chosen) as scores:
        for _ in scored(rows, chosen, scans(count, shape), detector, scores):
            pass
        found = scores['darker'].summary()
    if found['dice_validated']['n'] != count:
        raise RuntimeError(f'{found["dice_validated"]["n"]} of {count} scans were scored')
    return peak_gb()


def measure(counts: Sequence[int], shape: tuple[int, int, int]) -> dict[str, float]:
    """`peak_memory` for several numbers of scans, ascending, as a process's peak never falls."""
    TABLE.print_head('scans')
    peaks = {}
    for count in sorted(counts):
        peaks[str(count)] = peak_memory(count, shape)
        TABLE.print_row(str(count), {'peak_gb': peaks[str(count)]})
    return peaks
