"""A trained run as a detector: scans in, anomaly maps out.

scan -> method.reconstruct -> healthy counterpart -> `detect.recipe` -> anomaly map
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from fluidjax.base.errors import UserError
from fluidjax.base.settings import check, settings_from
from fluidjax.base.subject import Subject
from fluidjax.detect import recipe as recipes
from fluidjax.detect.anomaly_map import MapSettings
from fluidjax.detect.recipe import Evidence, Recipe, Spread
from fluidjax.runs.cohort import derived_seed
from fluidjax.runs.load import Run

# What a counterpart is compared with. 'both' is the geometric mean of the two maps: the scan has
# the detail, and its reconstruction is as blurred by the autoencoder as the counterpart is.
REFERENCES = ('scan', 'autoencoder', 'both')
HEADS = ('none', 'product', 'only')


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


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a row's maps are made: a recipe, and the residual in healthy scans if that needs it."""

    recipe: Recipe
    spreads: Mapping[str, Spread] = dataclasses.field(default_factory=dict)


def configured(config: ConfigDict, method: Any) -> Recipe:
    """The recipe that a configuration names for its last method, used where none was chosen.

    Raises:
        UserError: a setting in `config.detect` that does not fit.
    """
    detect = config.detect
    settings = settings_from(MapSettings, detect.map, 'detect.map')
    has_head = getattr(method, 'probability', None) is not None
    head = detect.get('head', 'auto')  # older runs do not have the field
    if head == 'auto':
        head = 'product' if has_head else 'none'
    for name, value, choices in (
        ('reference', detect.reference, REFERENCES),
        ('head', head, ('auto', *HEADS)),
    ):
        check(value in choices, f'detect.{name}', value, f'is not one of {", ".join(choices)}')
    advice = 'needs a head, and none is trained (config.head.training.steps); set it to none'
    check(head == 'none' or has_head, 'detect.head', head, advice)
    if detect.reference != 'scan' and method.autoencoder is None:
        raise UserError(
            f"config.detect.reference: {config.method} has no autoencoder; set it to 'scan'"
        )
    # Older runs do not have the field `mirror`.
    mirror, smoothing = bool(detect.get('mirror', False)), float(settings.smoothing_mm)
    return Recipe(detect.reference, mirror, settings.sign, smoothing, head=head)


class Detector:
    """A run's method as a function of scans.

    Args:
        run: the trained run.
        choice: the recipe of its maps; by default the one that its configuration names.

    Raises:
        UserError: a setting in `config.detect` that does not fit.
    """

    def __init__(self, run: Run, choice: Choice | None = None) -> None:
        detect, method = run.config.detect, run.method
        self.run = run
        self.choice = Choice(configured(run.config, run.method)) if choice is None else choice
        self.map_settings = settings_from(MapSettings, detect.map, 'detect.map')
        self.spacing = tuple(float(h) for h in run.grid.spacing)
        self.batch_size = int(detect.batch_size)
        check(self.batch_size >= 1, 'detect.batch_size', self.batch_size, 'must be 1 or more')
        self._key = jax.random.key(derived_seed(run.config.seed, 'sampling'))
        self._several = method.num_counterparts > 1
        self._reconstruct = _one_by_one(
            method.counterparts if self._several else method.reconstruct, self._several
        )
        coder = method.autoencoder
        self._autoencode = None if coder is None else _one_by_one(coder.reconstruct)
        head = getattr(method, 'probability', None)
        self._probability = None
        if head is not None:
            self._probability = _one_by_one(
                lambda p, volumes, _, *others: head(p, volumes, jnp.stack(others))
            )

    def with_batch(self, size: int) -> Detector:
        """The detector with another number of scans per batch."""
        config = self.run.config.copy_and_resolve_references()
        config.detect.batch_size = size
        return Detector(dataclasses.replace(self.run, config=config), self.choice)

    def reconstruct(self, cases: Sequence[Subject]) -> np.ndarray:
        """Healthy counterparts `(samples, n, x, y, z)`, zero outside the brain."""
        masks = [masks_of(cases)] if self.run.method.needs_mask else []
        counterparts = self._batched(self._reconstruct, cases, self.run.name, *masks)
        return counterparts if self._several else counterparts[None]

    def autoencode(self, cases: Sequence[Subject]) -> np.ndarray:
        """The cases encoded and decoded by the autoencoder `(n, x, y, z)`."""
        return self._batched(self._autoencode, cases, 'autoencoder')

    def evidence(self, cases: Sequence[Subject], recipe: Recipe | None = None) -> Evidence:
        """All that the method knows of some cases, or only what a recipe needs."""
        wanted = Recipe('both', mirror=True, head='product') if recipe is None else recipe
        references = {}
        if wanted.reference != 'autoencoder' or self._autoencode is None:
            references['scan'] = images_of(cases)
        if wanted.reference != 'scan' and self._autoencode is not None:
            references['autoencoder'] = self.autoencode(cases)
        counterparts, mirrored = self.reconstruct(cases), None
        flipped = [mirrored_case(case) for case in cases] if wanted.mirror else []
        if flipped:
            mirrored = self.reconstruct(flipped)
        probabilities = None
        if self._probability is not None and wanted.head != 'none':
            seen = [self._probabilities(cases, counterparts)]
            if flipped:
                seen.append(self._probabilities(flipped, mirrored)[:, ::-1])
            probabilities = np.stack(seen)
        back = None if mirrored is None else mirrored[:, :, ::-1]
        return Evidence(references, counterparts, back, probabilities)

    def _probabilities(self, cases: Sequence[Subject], counterparts: np.ndarray) -> np.ndarray:
        """The head's probability of a lesion `(n, x, y, z)`.

        Here counterparts are 0 outside the brain. In its training a head also sees the blur that
        the decoder leaves there; to give it that here as well does not help (docs/results.md).
        """
        return self._batched(self._probability, cases, 'head', *counterparts.astype(np.float32))

    def autoencoder_evidence(self, cases: Sequence[Subject]) -> Evidence:
        """The evidence of a row whose counterpart is the scan encoded and decoded."""
        flipped = [mirrored_case(case) for case in cases]
        own, mirrored = self.autoencode(cases), self.autoencode(flipped)[:, ::-1]
        return Evidence({'scan': images_of(cases)}, own[None], mirrored[None])

    def detect(self, cases: Sequence[Subject]) -> Output:
        """The run's own maps, from the scans to the maps, by the chosen recipe."""
        recipe = self.choice.recipe
        return output_of(lambda: self.evidence(cases, recipe), cases, self.choice, self)

    def maps(self, evidence: Evidence, cases: Sequence[Subject], choice: Choice) -> np.ndarray:
        """Anomaly maps `(samples, n, x, y, z)` of some evidence."""
        brains = [case.brain for case in cases]
        return recipes.maps_of(
            evidence, choice.recipe, brains, self.spacing, self.map_settings, choice.spreads
        )

    def _batched(
        self, function: Callable, cases: Sequence[Subject], name: str, *others: np.ndarray
    ) -> np.ndarray:
        """Volumes `(..., n, x, y, z)`, computed in batches of one size, so that it compiles once.

        Args:
            function: its result is `(..., batch, x, y, z)`.
            cases: the scans.
            name: for the progress bar.
            others: further volumes `(n, x, y, z)` that the function takes after the key.
        """
        inputs = [volumes[..., None] for volumes in (images_of(cases), *others)]
        size, results = self.batch_size, []
        starts = range(0, len(cases), size)
        bar = {'desc': name, 'unit': 'batch', 'mininterval': 5.0, 'leave': False}
        for start in tqdm(starts, **bar, disable=len(starts) == 1):
            images, *rest = (_padded(volumes[start : start + size], size) for volumes in inputs)
            numbers = np.array([number_of(image) for image in images], np.uint32)
            result = np.asarray(function(self.run.params, images, self._key, numbers, *rest))
            results.append(result[..., : len(cases) - start, :, :, :])
        return np.concatenate(results, axis=-4) * np.stack([case.brain for case in cases])


def _one_by_one(function: Callable, several: bool = False) -> Callable:
    """A method's function of a batch, as one whose random numbers belong to each scan.

    So the results for a scan do not depend on its place in the list.

    Args:
        function: `(params, volumes (batch, x, y, z, 1), key, *others) -> volumes`, with an axis of
            samples before them where there are several.
        several: whether it has that axis.

    Returns:
        `(params, volumes, key, numbers (batch,), *others) -> (..., batch, x, y, z)`.
    """

    def one(params, image, key, number, *others):
        own = jax.random.fold_in(key, number)
        result = function(params, image[None], own, *(other[None] for other in others))
        return result[:, 0, ..., 0] if several else result[0, ..., 0]

    def batch(params, images, key, numbers, *others):
        axes = (None, 0, None, 0, *(0 for _ in others))
        return jax.vmap(one, axes, 1 if several else 0)(params, images, key, numbers, *others)

    return jax.jit(batch)


def output_of(
    evidence: Callable[[], Evidence], cases: Sequence[Subject], choice: Choice, detector: Detector
) -> Output:
    """A row's results by a recipe, and the time they took.

    Args:
        evidence: makes the evidence of the cases; its time counts.
        cases: the cases.
        choice: the recipe.
        detector: for the spacing and the settings of the map.
    """
    began = time.perf_counter()
    known = evidence()
    maps = detector.maps(known, cases, choice)
    seconds = (time.perf_counter() - began) / len(cases)
    counterparts = known.samples(choice.recipe.mirror).mean(axis=0)
    return Output(
        maps.mean(axis=0), counterparts, seconds, maps.std(axis=0) if len(maps) > 1 else None
    )


def number_of(image: np.ndarray) -> int:
    """A number that belongs to a scan, from its voxels."""
    return zlib.crc32(np.ascontiguousarray(image, np.float32).tobytes())


def mirrored_case(case: Subject) -> Subject:
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
