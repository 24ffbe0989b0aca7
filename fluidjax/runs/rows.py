"""The rows of the table of scores: the run's method, and trivial ones that know nothing of lesions.

Each row is a function from cases to `Evidence`, and the recipes that it may choose from. All rows
are searched in the same way on the same validation cases (`choose`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.detect import recipe as recipes
from fluidjax.detect.baselines import mean_and_spread
from fluidjax.detect.recipe import Evidence, Recipe, Spread
from fluidjax.runs.cases import batches
from fluidjax.runs.detector import Choice, Detector, Output, configured, images_of, output_of

# Scans whose residuals say what is usual in healthy ones.
HEALTHY_SCANS = 24


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        evidence: what the row knows of cases; the recipe, if given, says what is needed of it.
        fixed: fields of `Recipe` that the search may not change, with their values; a tuple limits
            the search to those values.
        spreads: the residual in healthy scans; None: from `healthy` scans.
        start: the recipe that the search starts from.
        unsearched: the recipe without a search; None: `start`.
        has_counterparts: whether the row's counterparts are healthy scans, to be scored as such.
    """

    evidence: Callable[[Sequence[Subject], Recipe | None], Evidence]
    fixed: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    spreads: Mapping[str, Spread] | None = None
    start: Recipe = Recipe()
    unsearched: Recipe | None = None
    has_counterparts: bool = True


def rows_of(
    detector: Detector, training: Iterable[Subject], fixed: Mapping[str, tuple] | None = None
) -> dict[str, Row]:
    """The run's own row, then the trivial ones, by their names in the table.

    Args:
        detector: of the run.
        training: the training scans, healthy; one pass is made over them.
        fixed: limits of the search for the run's own row.
    """
    own = {detector.run.name: own_row(detector, fixed or {})}
    return own | trivial_rows(detector, training)


def own_row(detector: Detector, fixed: Mapping[str, tuple] | None = None) -> Row:
    """The row of the run's method."""
    run = detector.run
    return Row(detector.evidence, fixed or {}, start=configured(run.config, run.method))


def trivial_rows(detector: Detector, training: Iterable[Subject]) -> dict[str, Row]:
    """Rows that know nothing of lesions.

    Without a search they have sign, smoothing and mirroring of the run's own row, where they can.

    autoencoder: the scan against the same, encoded and decoded (where the run has an autoencoder).
    mean_brain: the scan against the mean of the training scans.
    z_score: the same in units of their standard deviation.
    mirror_image: the scan against its own mirror image.
    intensity: a threshold on darkness or on brightness.
    """
    own = configured(detector.run.config, detector.run.method)
    plain = Recipe(sign=own.sign, smoothing_mm=own.smoothing_mm, mirror=own.mirror)
    rows = {}
    if detector.run.method.autoencoder is not None:
        rows['autoencoder'] = Row(
            lambda cases, _: detector.autoencoder_evidence(cases), unsearched=plain
        )
    mean, deviation = mean_and_spread(case.image for case in training)

    def against_mean(cases: Sequence[Subject], _: Recipe | None) -> Evidence:
        shape = (1, len(cases), *mean.shape)
        return Evidence(
            {'scan': images_of(cases)},
            np.broadcast_to(mean, shape),
            np.broadcast_to(mean[::-1], shape),
        )

    usual = {'scan': Spread(np.zeros_like(mean), deviation)}
    rows['mean_brain'] = Row(against_mean, {'unit': ('intensity',)}, unsearched=plain)
    rows['z_score'] = Row(
        against_mean,
        {'unit': ('spread',)},
        usual,
        unsearched=dataclasses.replace(plain, unit='spread'),
        has_counterparts=False,
    )
    own_mirror = dataclasses.replace(plain, mirror=False)
    rows['mirror_image'] = Row(_against_mirror_image, unsearched=own_mirror)
    rows['intensity'] = Row(
        _intensity,
        {'sign': ('absolute',), 'unit': ('intensity',), 'reference': ('darkness', 'brightness')},
        start=Recipe('darkness'),
        unsearched=Recipe('darkness', smoothing_mm=own.smoothing_mm),
        has_counterparts=False,
    )
    return rows


def _against_mirror_image(cases: Sequence[Subject], _: Recipe | None) -> Evidence:
    images = images_of(cases)
    return Evidence({'scan': images}, images[None, :, ::-1])


def _intensity(cases: Sequence[Subject], _: Recipe | None) -> Evidence:
    """Darkness is 1 - intensity and brightness the intensity, as distances from a volume of 1."""
    images = np.clip(images_of(cases), 0.0, 1.0)
    return Evidence({'darkness': images, 'brightness': images + 1.0}, np.ones_like(images)[None])


def choose(
    row: Row,
    validation: Sequence[Subject],
    healthy: Iterable[Subject],
    detector: Detector,
    search: bool = True,
) -> tuple[Choice, Evidence]:
    """A row's recipe, and its evidence of the validation cases.

    Args:
        row: of the table.
        validation: the few cases with lesions on which recipes are compared (`recipe.first_few`).
        healthy: scans without lesions that say what is usual; the first `HEALTHY_SCANS` are used.
        detector: for the spacing and the settings of the map.
        search: False keeps the recipe that the row has without one.
    """
    given = row.start if row.unsearched is None else row.unsearched
    known = row.evidence(validation, None if search else given)
    spreads = dict(row.spreads or {})
    fits = detector.map_settings.kind == 'residual'
    wanted = row.fixed.get('unit', recipes.UNITS if search else (given.unit,))
    if not spreads and 'spread' in wanted and fits:
        spreads = _usual(row, healthy, detector)
    if not search:
        return Choice(given, spreads if given.unit == 'spread' else {}), known
    own = configured(detector.run.config, detector.run.method)
    space = recipes.space_of(known, bool(spreads), own) | dict(row.fixed)
    recipe = recipes.choose(
        known, validation, space, row.start, detector.spacing, detector.map_settings, spreads
    )
    return Choice(recipe, spreads if recipe.unit == 'spread' else {}), known


def _usual(row: Row, healthy: Iterable[Subject], detector: Detector) -> dict[str, Spread]:
    """A row's residual in healthy scans, for each reference; empty for fewer than two scans."""
    sums = recipes.SpreadSums()
    for batch in batches(itertools.islice(healthy, HEALTHY_SCANS), detector.batch_size):
        sums.add(row.evidence(batch, None), [case.brain for case in batch])
    return sums.spreads(detector.spacing) if sums.count > 1 else {}


def output(row: Row, choice: Choice, cases: Sequence[Subject], detector: Detector) -> Output:
    """A row's maps of some cases by its chosen recipe."""
    made = output_of(lambda: row.evidence(cases, choice.recipe), cases, choice, detector)
    return made if row.has_counterparts else dataclasses.replace(made, counterparts=None)
