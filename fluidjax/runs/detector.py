"""A trained run as a detector: scans in, anomaly maps out, beside the trivial baselines.

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
from fluidjax.base.settings import check, settings_from
from fluidjax.base.subject import Subject
from fluidjax.detect import baselines
from fluidjax.detect.anomaly_map import MapSettings, residual_maps
from fluidjax.runs.cohort import derived_seed
from fluidjax.runs.load import Run

# What a counterpart is compared with. 'both' is the geometric mean of the two maps: the scan has
# the detail, and its reconstruction is as blurred by the autoencoder as the counterpart is.
REFERENCES = ('scan', 'autoencoder', 'both')


@dataclasses.dataclass(frozen=True)
class Output:
    """The results of a row of the table for some cases.

    Attributes:
        maps: anomaly maps `(n, x, y, z)`.
        counterparts: healthy counterparts `(n, x, y, z)`, or None for a row without.
        seconds: per scan.
        uncertainty: standard deviation of the maps over seeds, noise levels and the mirrored scan
            `(n, x, y, z)`, or None where there is one counterpart per scan.
    """

    maps: np.ndarray
    counterparts: np.ndarray | None
    seconds: float
    uncertainty: np.ndarray | None = None


class Detector:
    """A run's method as a function of scans, and the trivial baselines.

    Args:
        run: the trained run.
        training_brains: mean and standard deviation of the training scans `(x, y, z)`, or None to
            leave their rows out.

    Raises:
        UserError: a setting in `config.detect` that does not fit.
    """

    def __init__(
        self, run: Run, training_brains: tuple[np.ndarray, np.ndarray] | None = None
    ) -> None:
        detect = run.config.detect
        known = detect.reference in REFERENCES
        check(known, 'detect.reference', detect.reference, f'is not one of {", ".join(REFERENCES)}')
        self.run = run
        self.map_settings = settings_from(MapSettings, detect.map, 'detect.map')
        self._training_brains = training_brains
        self._batch = int(detect.batch_size)
        check(self._batch >= 1, 'detect.batch_size', self._batch, 'must be 1 or more')
        self._seed = derived_seed(run.config.seed, 'sampling')
        self._several = run.method.num_counterparts > 1
        self._reconstruct = jax.jit(
            run.method.counterparts if self._several else run.method.reconstruct
        )
        autoencoder = run.method.autoencoder
        if detect.reference != 'scan' and autoencoder is None:
            raise UserError(
                f"config.detect.reference: {run.config.method} has no autoencoder; set it to 'scan'"
            )
        self._autoencode = None if autoencoder is None else jax.jit(autoencoder.reconstruct)

    def reconstruct(self, cases: Sequence[Subject]) -> np.ndarray:
        """Healthy counterparts `(samples, n, x, y, z)`, zero outside the brain."""
        masks = [masks_of(cases)] if self.run.method.needs_mask else []
        counterparts = self._batched(self._reconstruct, cases, self.run.name, *masks)
        return counterparts if self._several else counterparts[None]

    def _both_ways(self, cases: Sequence[Subject]) -> np.ndarray:
        """Counterparts as `reconstruct`; with `detect.mirror` those of the mirrored scans too."""
        counterparts = self.reconstruct(cases)
        if not self.run.config.detect.get('mirror', False):  # older runs do not have the field
            return counterparts
        mirrored = self.reconstruct([_mirrored(case) for case in cases])
        return np.concatenate([counterparts, mirrored[:, :, ::-1]])

    def autoencode(self, cases: Sequence[Subject]) -> np.ndarray:
        """The cases encoded and decoded by the autoencoder `(n, x, y, z)`."""
        return self._batched(self._autoencode, cases, 'autoencoder')

    def maps(
        self, scans: np.ndarray, counterparts: np.ndarray, cases: Sequence[Subject]
    ) -> np.ndarray:
        """Anomaly maps `(n, x, y, z)` of scans and their counterparts."""
        spacing = tuple(float(h) for h in self.run.grid.spacing)
        # One by one, so that any number of cases compiles once; a batch is not faster on a CPU.
        maps = [
            residual_maps(scan[None], other[None], case.brain[None], spacing, self.map_settings)
            for scan, other, case in zip(scans, counterparts, cases)
        ]
        return np.concatenate([np.asarray(one) for one in maps])

    def warm_up(self, case: Subject) -> None:
        """Compile for this run's shapes, so that the seconds reported do not include it."""
        self.rows([case], darker=True)

    def detect(self, cases: Sequence[Subject]) -> Output:
        """The run's own maps, from the scans to the maps."""

        def from_scans() -> tuple[np.ndarray, np.ndarray]:
            samples, references = self._both_ways(cases), self._references(cases)
            by_reference = np.stack(
                [[self.maps(reference, one, cases) for one in samples] for reference in references]
            )
            if len(references) == 1:
                return by_reference[0], samples
            return np.sqrt(by_reference[0] * by_reference[1]), samples

        (maps, samples), seconds = _timed(from_scans)
        spread = maps.std(axis=0) if len(maps) > 1 else None
        return Output(maps.mean(axis=0), samples.mean(axis=0), seconds / len(cases), spread)

    def _references(self, cases: Sequence[Subject]) -> list[np.ndarray]:
        """The volumes `(n, x, y, z)` that counterparts are compared with."""
        reference = self.run.config.detect.reference
        return [
            *([] if reference == 'autoencoder' else [images_of(cases)]),
            *([] if reference == 'scan' else [self.autoencode(cases)]),
        ]

    def rows(self, cases: Sequence[Subject], darker: bool) -> dict[str, Output]:
        """Every row of the table: the method, then the trivial ones."""
        return {self.run.name: self.detect(cases), **self.trivial_rows(cases, darker)}

    def trivial_rows(self, cases: Sequence[Subject], darker: bool) -> dict[str, Output]:
        """The rows of the baselines, which know nothing of lesions.

        Args:
            cases: the scans.
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
        self, function: Callable, cases: Sequence[Subject], name: str, *others: np.ndarray
    ) -> np.ndarray:
        """Volumes `(..., n, x, y, z)`, computed in batches of one size, so that it compiles once.

        Args:
            function: its result is `(..., batch, x, y, z, 1)`.
            cases: the scans.
            name: for the progress bar.
            others: further volumes `(n, x, y, z)` that the function takes after the key.
        """
        inputs = [volumes[..., None] for volumes in (images_of(cases), *others)]
        size, results = self._batch, []
        starts = range(0, len(cases), size)
        for start in tqdm(starts, desc=name, unit='batch', mininterval=5.0, leave=False):
            images, *rest = (_padded(volumes[start : start + size], size) for volumes in inputs)
            key = jax.random.fold_in(jax.random.key(self._seed), start)
            result = np.asarray(function(self.run.params, images, key, *rest))
            results.append(result[..., : len(cases) - start, :, :, :, 0])
        return np.concatenate(results, axis=-4) * np.stack([case.brain for case in cases])


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
    """Volumes with blank ones at the end, so that there are `size` of them."""
    blank = np.zeros((size - len(volumes), *volumes.shape[1:]), volumes.dtype)
    return np.concatenate([volumes, blank])


def masks_of(cases: Sequence[Subject]) -> np.ndarray:
    """Lesion masks `(n, x, y, z)`, empty where none is known."""
    return np.stack(
        [np.zeros(case.image.shape) if case.lesion is None else case.lesion for case in cases]
    ).astype(np.float32)


def images_of(cases: Sequence[Subject]) -> np.ndarray:
    """The scans `(n, x, y, z)`."""
    return np.stack([case.image for case in cases]).astype(np.float32)
