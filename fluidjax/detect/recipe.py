"""How a row of the table makes its maps: a recipe, chosen for every row by the same search.

    Evidence of some cases + Recipe -> anomaly maps

`Evidence` is all that a row knows of scans: volumes to compare, and counterparts to compare them
with. A `Recipe` says what is compared and how. Every row, learned or trivial, is searched over what
it has, by the mean of two scores of validation cases: Dice at one threshold for all of them, and
average precision (`calibrate.best_common`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.detect.anomaly_map import (
    MapSettings,
    Spacing,
    closest_shift,
    residual_map,
    smooth_inside,
)
from fluidjax.detect.calibrate import best_common

Space = Mapping[str, tuple]
# What the search tries, one axis after another, where a row has it.
SIGNS = ('darker', 'brighter', 'absolute')
SMOOTHING_MM = (0.0, 5.0, 10.0, 15.0)
UNITS = ('intensity', 'spread')
ROUNDS = 2  # of the search through all axes
MOST_VOXELS = 8e6  # of the cases that recipes are compared on
SPREAD_FWHM_MM = 10.0  # the spread of a few healthy scans is noisy, so it is smoothed
LEAST_SPREAD = 0.5  # of the spread's median in the brain


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is compared with what, and how a map is made of it.

    Attributes:
      reference: what the counterpart is compared with: 'scan', 'autoencoder' (the scan encoded and
        decoded, as blurred as the counterpart), or 'both', the geometric mean of the two maps.
      mirror: average over the scan and its mirror image.
      sign: as in `MapSettings`.
      smoothing_mm: as in `MapSettings`.
      unit: 'intensity', or 'spread': the residual, less its mean in healthy scans, in units of its
        standard deviation in healthy scans, both at the same place.
      head: 'none', 'product' (the map times the probability of a lesion that the method's head
        gives), or 'only' (that probability).
    """

    reference: str = 'scan'
    mirror: bool = False
    sign: str = 'absolute'
    smoothing_mm: float = 0.0
    unit: str = 'intensity'
    head: str = 'none'

    def in_words(self) -> str:
        """The recipe in a table: 'darker, 10 mm, both references, mirrored'."""
        words = [self.sign, f'{self.smoothing_mm:g} mm', self.reference]
        words += ['mirrored'] if self.mirror else []
        words += ['per healthy spread'] if self.unit == 'spread' else []
        words += {'none': [], 'product': ['times head'], 'only': ['head only']}[self.head]
        return ', '.join(words)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a row knows of n scans.

    Attributes:
      references: volumes (n, x, y, z) by the name of the reference.
      counterparts: (samples, n, x, y, z).
      mirrored: counterparts of the mirrored scans, mirrored back, shaped alike, or None.
      probabilities: of a lesion, by the head: (1, n, x, y, z), or (2, n, x, y, z) with those of the
        mirrored scans; None without a head.
    """

    references: Mapping[str, np.ndarray]
    counterparts: np.ndarray
    mirrored: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def samples(self, mirror: bool) -> np.ndarray:
        """The counterparts that a recipe uses `(samples, n, x, y, z)`."""
        if mirror and self.mirrored is not None:
            return np.concatenate([self.counterparts, self.mirrored])
        return self.counterparts


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (x, y, z) of a residual in healthy scans."""

    mean: np.ndarray
    deviation: np.ndarray


def space_of(
    evidence: Evidence, with_spread: bool, configured: Recipe = Recipe()
) -> dict[str, tuple]:
    """The axes of the search, with the values that a row's evidence allows.

    Args:
      evidence: of the row.
      with_spread: whether the spread of residuals in healthy scans is known.
      configured: the recipe of the configuration; its smoothing is tried by every row, and its head
        where there is one.
    """
    references = tuple(evidence.references)
    heads = ('none',)
    if evidence.probabilities is not None:
        heads = tuple(dict.fromkeys(('none', 'product', configured.head)))
    return {
        'sign': SIGNS,
        'smoothing_mm': tuple(sorted({*SMOOTHING_MM, configured.smoothing_mm})),
        'reference': references + (('both',) if len(references) == 2 else ()),
        'mirror': (False, True) if evidence.mirrored is not None else (False,),
        'unit': UNITS if with_spread else UNITS[:1],
        'head': heads,
    }


def maps_of(
    evidence: Evidence,
    recipe: Recipe,
    brains: Sequence[np.ndarray],
    spacing: Spacing,
    settings: MapSettings,
    spreads: Mapping[str, Spread] | None = None,
) -> np.ndarray:
    """Anomaly maps (samples, n, x, y, z) of every counterpart.

    Args:
      evidence: of the cases.
      recipe: see `Recipe`.
      brains: a mask (x, y, z) per case.
      spacing: voxel size, mm.
      settings: the rest of the map's settings; the recipe's sign and smoothing replace its own.
      spreads: of the residual to each reference, for the unit 'spread'.
    """
    samples = evidence.samples(recipe.mirror)
    changed = dataclasses.replace(settings, sign=recipe.sign, smoothing_mm=recipe.smoothing_mm)
    weights = _weights(evidence, recipe, len(samples))
    if recipe.head == 'only':
        return weights * np.stack(list(brains))
    used = tuple(evidence.references) if recipe.reference == 'both' else (recipe.reference,)
    made = []
    for name in used:
        scaled = spreads[name] if recipe.unit == 'spread' else None
        made.append(
            [
                _residuals(evidence.references[name], one, brains, spacing, changed, scaled)
                for one in samples
            ]
        )
    maps = np.asarray(made[0]) if len(made) == 1 else np.sqrt(np.multiply(*map(np.asarray, made)))
    return maps if weights is None else maps * weights


def _weights(evidence: Evidence, recipe: Recipe, count: int) -> np.ndarray | None:
    """What each sample's map is multiplied with: the head's mean probability, or nothing."""
    if recipe.head == 'none':
        return None
    given = evidence.probabilities if recipe.mirror else evidence.probabilities[:1]
    return np.broadcast_to(given.mean(axis=0), (count, *given.shape[1:]))


def _residuals(
    references: np.ndarray,
    counterparts: np.ndarray,
    brains: Sequence[np.ndarray],
    spacing: Spacing,
    settings: MapSettings,
    spread: Spread | None,
) -> np.ndarray:
    # One by one, so that any number of cases compiles once; a batch is not faster on a CPU.
    maps, last = [], settings
    if spread is not None:
        last = dataclasses.replace(settings, max_shift_voxels=0)
    for reference, counterpart, brain in zip(references, counterparts, brains):
        if spread is not None:
            reference = reference - spread.mean
            # Before the division, after which a neighbour's deviation could explain a lesion.
            counterpart = _closest_shift(reference, counterpart, settings.max_shift_voxels)
            reference, counterpart = (v / spread.deviation for v in (reference, counterpart))
        maps.append(np.asarray(_residual_map(reference, counterpart, brain, spacing, last)))
    return np.stack(maps)


_closest_shift = jax.jit(closest_shift, static_argnums=2)
_residual_map = jax.jit(residual_map, static_argnames=('spacing', 'settings'))


def first_few(cases: Iterable[Subject], least: int = 1) -> list[Subject]:
    """The first cases, as many as recipes are compared on: `MOST_VOXELS`, or more.

    Args:
      cases: of one shape; of an iterator no more cases are taken.
      least: number of cases, however large they are.
    """
    cases = iter(cases)
    few = list(itertools.islice(cases, 1))
    fitting = int(MOST_VOXELS // few[0].image.size) if few else 0
    return few + list(itertools.islice(cases, max(0, fitting - 1, least - 1)))


def choose(
    evidence: Evidence,
    cases: Sequence[Subject],
    space: Space,
    start: Recipe,
    spacing: Spacing,
    settings: MapSettings,
    spreads: Mapping[str, Spread] | None = None,
) -> Recipe:
    """The recipe with the best mean of Dice, at one threshold for all cases, and average precision.

    Dice alone would also choose maps that rank voxels badly on either side of their threshold.
    Coordinate search: each axis in turn takes its best value, the others kept, twice through all.

    Args:
      evidence: of the cases.
      cases: validation cases with lesions (`first_few`).
      space: {field of `Recipe`: the values tried}; fields that it lacks stay as in `start`.
      start: the recipe that the search starts from.
      spacing, settings, spreads: as in `maps_of`.
    """
    brains = [case.brain for case in cases]
    known: dict[Recipe, float] = {}

    def score(recipe: Recipe) -> float:
        if recipe not in known:
            maps = maps_of(evidence, recipe, brains, spacing, settings, spreads).mean(axis=0)
            reached = best_common(list(maps), cases)
            known[recipe] = np.nan_to_num(0.5 * (reached.dice + reached.ap), nan=-1.0)
        return known[recipe]

    best = dataclasses.replace(
        start, **{name: values[0] for name, values in space.items() if _other(start, name, values)}
    )
    for _ in range(ROUNDS):
        for name, values in space.items():
            tried = [dataclasses.replace(best, **{name: value}) for value in values]
            best = max([best, *tried], key=score)  # the first of equals: no change for nothing
    return best


def _other(recipe: Recipe, name: str, values: tuple) -> bool:
    """Whether a recipe's value of a field is none of some values."""
    return getattr(recipe, name) not in values


class SpreadSums:
    """Sums of the residuals in healthy scans, of any number of scans (`spreads`)."""

    def __init__(self) -> None:
        self.count = 0  # scans
        self._samples = 0
        self._inside: np.ndarray | float = 0.0
        self._sums: dict[str, tuple[np.ndarray | float, np.ndarray | float]] = {}

    def add(self, evidence: Evidence, brains: Sequence[np.ndarray]) -> None:
        """Add scans.

        Args:
          evidence: of healthy scans.
          brains: a mask (x, y, z) per scan.
        """
        self.count += len(brains)
        self._inside += np.sum(list(brains), axis=0)
        samples = evidence.samples(mirror=True)
        self._samples += samples.shape[0] * samples.shape[1]
        for name, volumes in evidence.references.items():
            total, squares = self._sums.get(name, (0.0, 0.0))
            for counterparts in samples:
                residuals = np.subtract(volumes, counterparts, dtype=np.float64)
                total = total + residuals.sum(axis=0)
                squares = squares + (residuals**2).sum(axis=0)
            self._sums[name] = total, squares

    def spreads(self, spacing: Spacing) -> dict[str, Spread]:
        """The residual's mean and standard deviation for each reference.

        Over all scans and counterparts; both are smoothed by `SPREAD_FWHM_MM` within the brains,
        and the deviation is at least half its median in the brain.
        """
        inside = self._inside >= 0.5 * self.count
        spreads = {}
        for name, (total, squares) in self._sums.items():
            usual, square = total / self._samples, squares / self._samples
            mean = _smoothed(usual, inside, spacing)
            about = np.maximum(square - 2.0 * usual * mean + mean.astype(np.float64) ** 2, 0.0)
            deviation = np.sqrt(_smoothed(about, inside, spacing))
            middle = float(np.median(deviation[inside])) if inside.any() else 1.0
            deviation = np.where(inside, np.maximum(deviation, LEAST_SPREAD * middle), middle)
            spreads[name] = Spread(_rounded(mean), _rounded(deviation))
        return spreads


def _smoothed(volume: np.ndarray, inside: np.ndarray, spacing: Spacing) -> np.ndarray:
    volume = np.asarray(volume, np.float32)
    return np.asarray(smooth_inside(volume, inside, spacing, SPREAD_FWHM_MM))


def _rounded(volume: np.ndarray) -> np.ndarray:
    """In half precision, as it is stored beside the run: so maps are the same when it is loaded."""
    return np.asarray(volume, np.float16).astype(np.float32)
