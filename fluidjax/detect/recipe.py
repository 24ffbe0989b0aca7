"""How a row of the table makes its maps: a recipe, chosen for every row by the same search.

    Evidence of some cases + Recipe -> anomaly maps

`Evidence` is all that a row knows of scans: volumes to compare, and counterparts to compare them
with. A `Recipe` says what is compared and how. Every row, learned or trivial, is searched over what
it has, by the mean of two scores of validation cases: Dice at one threshold for all of them, and
average precision (`calibrate.best_common`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.detect.anomaly_map import MapSettings, Spacing, residual_map, smooth_inside
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

    def of_cases(self, count: int) -> Evidence:
        """The evidence of the first cases."""
        return Evidence(
            {name: volumes[:count] for name, volumes in self.references.items()},
            self.counterparts[:, :count],
            None if self.mirrored is None else self.mirrored[:, :count],
            None if self.probabilities is None else self.probabilities[:, :count],
        )

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


def space_of(evidence: Evidence, with_spread: bool) -> dict[str, tuple]:
    """The axes of the search, with the values that a row's evidence allows."""
    references = tuple(evidence.references)
    return {
        'sign': SIGNS,
        'smoothing_mm': SMOOTHING_MM,
        'reference': references + (('both',) if len(references) == 2 else ()),
        'mirror': (False, True) if evidence.mirrored is not None else (False,),
        'unit': UNITS if with_spread else UNITS[:1],
        'head': ('none', 'product') if evidence.probabilities is not None else ('none',),
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
    maps = []
    for reference, counterpart, brain in zip(references, counterparts, brains):
        if spread is not None:
            reference = (reference - spread.mean) / spread.deviation
            counterpart = counterpart / spread.deviation
        maps.append(np.asarray(_residual_map(reference, counterpart, brain, spacing, settings)))
    return np.stack(maps)


_residual_map = jax.jit(residual_map, static_argnames=('spacing', 'settings'))


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
      cases: validation cases with lesions; of many large ones only the first are used
        (`MOST_VOXELS`).
      space: {field of `Recipe`: the values tried}; fields that it lacks stay as in `start`.
      start: the recipe that the search starts from.
      spacing, settings, spreads: as in `maps_of`.
    """
    count = max(1, min(len(cases), int(MOST_VOXELS // cases[0].image.size)))
    few, chosen = evidence.of_cases(count), list(cases[:count])
    brains = [case.brain for case in chosen]
    known: dict[Recipe, float] = {}

    def score(recipe: Recipe) -> float:
        if recipe not in known:
            maps = maps_of(few, recipe, brains, spacing, settings, spreads).mean(axis=0)
            reached = best_common(list(maps), chosen)
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


def spreads_of(
    evidence: Evidence, brains: Sequence[np.ndarray], spacing: Spacing
) -> dict[str, Spread]:
    """The residual's mean and standard deviation in healthy scans, for each reference.

    Over all scans and counterparts; both are smoothed by `SPREAD_FWHM_MM` within the brains, and
    the deviation is at least half its median in the brain.
    """
    inside = np.stack(list(brains)).mean(axis=0) >= 0.5
    samples = evidence.samples(mirror=True)
    spreads = {}
    for name, volumes in evidence.references.items():
        residuals = (volumes[None] - samples).reshape(-1, *inside.shape)
        mean = smooth_inside(residuals.mean(axis=0), inside, spacing, SPREAD_FWHM_MM)
        square = ((residuals - np.asarray(mean)) ** 2).mean(axis=0)
        deviation = np.sqrt(np.asarray(smooth_inside(square, inside, spacing, SPREAD_FWHM_MM)))
        usual = float(np.median(deviation[inside])) if inside.any() else 1.0
        deviation = np.where(inside, np.maximum(deviation, LEAST_SPREAD * usual), usual)
        spreads[name] = Spread(_rounded(mean), _rounded(deviation))
    return spreads


def _rounded(volume: np.ndarray) -> np.ndarray:
    """In half precision, as it is stored beside the run: so maps are the same when it is loaded."""
    return np.asarray(volume, np.float16).astype(np.float32)
