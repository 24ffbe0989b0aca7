"""A trained run as a detector: scans in, anomaly maps out, with the trivial rows beside it.

scan -> method.reconstruct -> healthy counterpart -> residual_map -> anomaly map
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fluidjax.base.errors import UserError
from fluidjax.base.settings import settings_from
from fluidjax.base.subject import Subject
from fluidjax.detect import baselines
from fluidjax.detect.anomaly_map import MapSettings, residual_maps
from fluidjax.runs.cohort import derived_seed
from fluidjax.runs.load import Run

# What a counterpart is held against. 'both' is the geometric mean of the two maps: the scan has the
# detail, and its reconstruction forgives what the autoencoder blurs.
REFERENCES = ('scan', 'autoencoder', 'both')


@dataclasses.dataclass(frozen=True)
class Output:
    """What a row of the table makes of some cases.

    Attributes:
        maps: anomaly maps `(n, x, y, z)`.
        counterparts: healthy counterparts `(n, x, y, z)`, or None for a row without.
        seconds: per scan.
        uncertainty: standard deviation of the maps over seeds, noise levels and the mirrored scan
            `(n, x, y, z)`, or None where there is one counterpart a scan.
    """

    maps: np.ndarray
    counterparts: np.ndarray | None
    seconds: float
    uncertainty: np.ndarray | None = None


class Detector:
    """A run's method as a function of scans, and the trivial rows beside it.

    Args:
        run: the trained run.
        training_brains: mean and standard deviation of the training scans `(x, y, z)`, or None to
            leave their rows out.
    """

    def __init__(
        self, run: Run, training_brains: tuple[np.ndarray, np.ndarray] | None = None
    ) -> None:
        detect = run.config.detect
        if detect.reference not in REFERENCES:
            raise UserError(
                f'config.detect.reference: {detect.reference!r} is not one of '
                f'{", ".join(REFERENCES)}'
            )
        self.run = run
        self.map_settings = settings_from(MapSettings, detect.map, 'detect.map')
        self._training_brains = training_brains
        self._batch = int(detect.batch_size)
        if self._batch < 1:
            raise UserError(f'config.detect.batch_size: {self._batch} must be 1 or more')
        self._seed = derived_seed(run.config.seed, 'sampling')
        self._several = getattr(run.method, 'num_counterparts', 1) > 1
        self._reconstruct = jax.jit(
            run.method.counterparts if self._several else run.method.reconstruct
        )
        coder = getattr(run.method, 'autoencoder', None)
        if detect.reference != 'scan' and coder is None:
            raise UserError(
                f"config.detect.reference: {run.config.method} has no autoencoder; set it to 'scan'"
            )
        self._autoencode = None if coder is None else jax.jit(coder.reconstruct)

    def reconstruct(self, cases: Sequence[Subject]) -> np.ndarray:
        """Healthy counterparts `(samples, n, x, y, z)`, zero outside the brain."""
        told = [masks_of(cases)] if self.run.method.needs_mask else []
        made = self._batched(self._reconstruct, cases, self.run.name, *told)
        return made if self._several else made[None]

    def _both_ways(self, cases: Sequence[Subject]) -> np.ndarray:
        """Counterparts as `reconstruct`; with `detect.mirror` those of the mirrored scans too."""
        made = self.reconstruct(cases)
        if not self.run.config.detect.get('mirror', False):  # older runs know no such field
            return made
        mirrored = self.reconstruct([_mirrored(case) for case in cases])
        return np.concatenate([made, mirrored[:, :, ::-1]])

    def autoencode(self, cases: Sequence[Subject]) -> np.ndarray:
        """The cases after the autoencoder alone `(n, x, y, z)`."""
        return self._batched(self._autoencode, cases, 'autoencoder')

    def maps(
        self, scans: np.ndarray, counterparts: np.ndarray, cases: Sequence[Subject]
    ) -> np.ndarray:
        """Anomaly maps `(n, x, y, z)` of scans against their counterparts."""
        brains = np.stack([case.brain for case in cases])
        spacing = tuple(float(h) for h in self.run.grid.spacing)
        made = [
            residual_maps(s[None], c[None], b[None], spacing, self.map_settings)
            for s, c, b in zip(scans, counterparts, brains)
        ]
        return np.concatenate([np.asarray(m) for m in made])

    def warm_up(self, case: Subject) -> None:
        """Compile for this run's shapes, so that the seconds reported are those of the work."""
        self.rows([case], darker=True)

    def detect(self, cases: Sequence[Subject]) -> Output:
        """The run's own maps, from the scans to the maps."""

        def from_scans() -> tuple[np.ndarray, np.ndarray]:
            samples, references = self._both_ways(cases), self._references(cases)
            made = np.stack(
                [[self.maps(reference, one, cases) for one in samples] for reference in references]
            )
            return made[0] if len(made) == 1 else np.sqrt(made[0] * made[1]), samples

        (maps, samples), seconds = _timed(from_scans)
        spread = maps.std(axis=0) if len(maps) > 1 else None
        return Output(maps.mean(axis=0), samples.mean(axis=0), seconds / len(cases), spread)

    def _references(self, cases: Sequence[Subject]) -> list[np.ndarray]:
        """The volumes `(n, x, y, z)` that counterparts are held against."""
        wanted = self.run.config.detect.reference
        return [
            *([] if wanted == 'autoencoder' else [images_of(cases)]),
            *([] if wanted == 'scan' else [self.autoencode(cases)]),
        ]

    def rows(self, cases: Sequence[Subject], darker: bool) -> dict[str, Output]:
        """Every row of the table: the method, then the trivial ones."""
        return {self.run.name: self.detect(cases), **self.trivial_rows(cases, darker)}

    def trivial_rows(self, cases: Sequence[Subject], darker: bool) -> dict[str, Output]:
        """The rows that have learnt nothing of lesions.

        Args:
            darker: whether darkness or brightness is the intensity row's score.
        """
        images, rows = images_of(cases), {}
        if self._autoencode is not None:
            autoencoded, coding = _timed(lambda: self.autoencode(cases))
            maps, seconds = _timed(lambda: self.maps(images, autoencoded, cases))
            rows['autoencoder'] = Output(maps, autoencoded, (coding + seconds) / len(cases))
        if self._training_brains is not None:
            mean, spread = self._training_brains
            means = np.broadcast_to(mean, images.shape)
            maps, seconds = _timed(lambda: self.maps(images, means, cases))
            rows['mean_brain'] = Output(maps, means, seconds / len(cases))
            maps, seconds = _timed(lambda: self.maps(images / spread, means / spread, cases))
            rows['z_score'] = Output(maps, None, seconds / len(cases))
        maps, seconds = _timed(
            lambda: np.stack([baselines.intensity_map(c.image, c.brain, darker) for c in cases])
        )
        rows['intensity'] = Output(maps, None, seconds / len(cases))
        return rows

    def _batched(
        self, function: Callable, cases: Sequence[Subject], name: str, *told: np.ndarray
    ) -> np.ndarray:
        """Volumes `(..., n, x, y, z)`, made in batches of one size, so that it compiles once.

        Args:
            function: its result is `(..., batch, x, y, z, 1)`.
            told: volumes `(n, x, y, z)` that it is given beside the scans.
        """
        images, size = images_of(cases)[..., None], self._batch
        done = []
        for start in tqdm(
            range(0, len(cases), size), desc=name, unit='batch', mininterval=5.0, leave=False
        ):
            chunk, *others = (
                _padded(v[start : start + size], size)
                for v in (images, *(v[..., None] for v in told))
            )
            key = jax.random.fold_in(jax.random.key(self._seed), start)
            made = np.asarray(function(self.run.params, chunk, key, *others))
            done.append(made[..., : len(images) - start, :, :, :, 0])
        return np.concatenate(done, axis=-4) * np.stack([case.brain for case in cases])


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the seconds it took."""
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def _mirrored(case: Subject) -> Subject:
    """The case with left and right exchanged."""
    flipped = {
        name: None if (volume := getattr(case, name)) is None else volume[::-1]
        for name in ('image', 'brain', 'lesion', 'healthy')
    }
    return dataclasses.replace(case, **flipped)


def _padded(volumes: np.ndarray, size: int) -> np.ndarray:
    """As many volumes as a batch holds, blank ones at the end."""
    blank = np.zeros((size - len(volumes), *volumes.shape[1:]), volumes.dtype)
    return np.concatenate([volumes, blank])


def masks_of(cases: Sequence[Subject]) -> np.ndarray:
    """Lesion masks `(n, x, y, z)`, empty where nobody drew one."""
    return np.stack(
        [np.zeros(case.image.shape) if case.lesion is None else case.lesion for case in cases]
    ).astype(np.float32)


def images_of(cases: Sequence[Subject]) -> np.ndarray:
    return np.stack([case.image for case in cases]).astype(np.float32)
