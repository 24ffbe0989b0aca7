"""Rows of the table to scores: recipe and thresholds on validation cases, then the test cases.

Cases are taken in batches of `detect.batch_size`. All rows see a batch before the next one is read
or simulated, and of its volumes only scores and counts remain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from fluidjax.base.subject import Subject
from fluidjax.detect import curves, evaluate, lesions, pooled
from fluidjax.detect.calibrate import marked_ml
from fluidjax.detect.pooled import Pooled
from fluidjax.detect.recipe import first_few
from fluidjax.detect.reliability import calibration_error, diagram, region_confidence
from fluidjax.runs.cases import Split, batches
from fluidjax.runs.detector import Choice, Detector, Output, number_of
from fluidjax.runs.laws import MIXTURE
from fluidjax.runs.rows import Row, choose, output
from fluidjax.runs.thresholds import Certainty, Rules

# Cases that a search compares recipes on, at least: one of each law.
FEWEST_SEARCHED = len(MIXTURE)


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What a row chose on validation cases.

    Attributes:
        choice: its recipe.
        thresholds: by rule.
        validation: its scores there, by which runs are compared.
        certainty: what its map means; the confidence of regions only for the run's own row.
    """

    choice: Choice
    thresholds: dict[str, float]
    validation: dict[str, float]
    certainty: Certainty = Certainty()


def calibrated(
    rows: Mapping[str, Row],
    split: Split,
    training: Iterable[Subject],
    detector: Detector,
    search: bool,
) -> dict[str, Calibrated]:
    """Choose each row's recipe on the first validation cases, then its thresholds on all.

    Args:
        rows: of the table.
        split: the validation cases.
        training: healthy training scans, which say what is usual.
        detector: for the spacing and the settings of the map.
        search: False keeps the recipes that the rows start from.
    """
    left = iter(split.validation)
    few = first_few(left, FEWEST_SEARCHED if search else 1)
    choices, rules = {}, {name: Rules() for name in rows}
    own = Pooled()  # the maps of the run itself wait until its threshold is known
    for name, row in tqdm(rows.items(), desc='recipes', unit='row', leave=False):
        choices[name], known = choose(row, few, training, detector, search)
        maps = detector.maps(known, few, choices[name]).mean(axis=0)
        rules[name].add(maps, few)
        if name == detector.run.name:
            own.add(maps, few)
        del known, maps  # before the next row's
    for batch, outputs in outputs_of(rows, choices, left, detector, 'thresholds'):
        for name, made in outputs.items():
            rules[name].add(made.maps, batch)
            if name == detector.run.name:
                own.add(made.maps, batch)
    for batch, outputs in outputs_of(rows, choices, split.healthy, detector, 'healthy scans'):
        for name, made in outputs.items():
            rules[name].add_healthy(made.maps, batch)
    found = {}
    with own:
        for name, rule in rules.items():
            thresholds, confidence = rule.thresholds(), None
            if name == detector.run.name:
                confidence = region_confidence(own, thresholds['dice'])
            certainty = Certainty(rule.probability(), confidence)
            found[name] = Calibrated(choices[name], thresholds, rule.scores(), certainty)
    return found


def outputs_of(
    rows: Mapping[str, Row],
    choices: Mapping[str, Choice],
    cases: Iterable[Subject],
    detector: Detector,
    title: str,
) -> Iterator[tuple[list[Subject], dict[str, Output]]]:
    """The results of all rows, one batch of cases after another.

    Args:
        rows: of the table.
        choices: the recipe of each row.
        cases: are taken one batch at a time.
        detector: for the size of a batch, the spacing and the settings of the map.
        title: of the progress bar.
    """
    with tqdm(desc=title, unit='scan', mininterval=5.0, leave=False) as bar:
        for batch in batches(cases, detector.batch_size):
            yield batch, {name: output(rows[name], choices[name], batch, detector) for name in rows}
            bar.update(len(batch))


class RowScores:
    """The scores of a row, from its results for the test cases, which are not kept.

    Args:
        chosen: what the row chose.
        folder: for a temporary file, see `Pooled`.
    """

    def __init__(self, chosen: Calibrated, folder: Path | None = None) -> None:
        self._rules = chosen.thresholds
        self._probability = chosen.certainty.probability
        self._lines: list[evaluate.Row] = []
        self._seconds = 0.0
        self._pooled = Pooled(folder)
        self._sized = lesions.SizedLesions()
        self._marked: dict[str, list[float]] = {'dice': [], 'healthy_1ml': []}

    def __enter__(self) -> RowScores:
        return self

    def __exit__(self, *_: object) -> None:
        self._pooled.__exit__()

    def add(self, made: Output, cases: Sequence[Subject]) -> None:
        """Add the row's results for some test cases."""
        maps, threshold = list(made.maps), self._rules['dice']
        counterparts = None if made.counterparts is None else list(made.counterparts)
        self._lines += evaluate.score_method(maps, counterparts, cases, threshold)
        self._seconds += made.seconds * len(cases)
        self._pooled.add(maps, cases)
        for one, truth, region, case in evaluate.scorable(maps, cases):
            if np.isfinite(threshold):
                marked, spacing = (one >= threshold) & region, voxel_sizes(case.affine)
                ml = evaluate.voxel_ml(case.affine)
                self._sized.add(marked, truth, spacing, ml, evaluate.MIN_LESION_ML)

    def add_healthy(self, made: Output, healthy: Sequence[Subject]) -> None:
        """Add the row's results for some healthy test scans (`healthy_of`)."""
        for rule, marked in self._marked.items():
            threshold = self._rules.get(rule, np.nan)
            marked += [
                marked_ml(one, case, threshold)
                for one, case in zip(made.maps, healthy, strict=True)
            ]

    def lines(self) -> list[evaluate.Row]:
        """A line per case; each has the mean time."""
        seconds = self._seconds / max(1, len(self._lines))
        return [{**line, 'seconds': seconds} for line in self._lines]

    def summary(self) -> dict[str, Any]:
        """The scores over all cases."""
        bins = self.reliability()
        of_cohort = {
            'dice_global': pooled.global_dice(self._pooled),
            'sensitivity_1fp': pooled.sensitivity_at_fp(self._pooled),
            **self._transfer(),
            **self._false_alarms(),
            **{name: _number(*score) for name, score in self._sized.scores().items()},
            'calibration_error': _number(calibration_error(bins), len(bins)),
        }
        return evaluate.summarise(self.lines(), of_cohort)

    def curve(self) -> curves.Curve:
        """See `curves.curve_of`."""
        return curves.curve_of(self._pooled.tally)

    def reliability(self) -> list[dict[str, float]]:
        """The reliability diagram of the map's probability on these cases; empty without one."""
        if self._probability is None:
            return []
        return diagram(self._pooled.tally, self._probability)

    def _transfer(self) -> dict[str, evaluate.Entry]:
        """The best mean Dice with one threshold, and what the validated threshold loses to it."""
        best = self._pooled.tally.best_mean().dice
        dice = [line['dice_validated'] for line in self._lines]
        known = [value for value in dice if value is not None]
        loss = best - float(np.mean(known)) if known else np.nan
        return {'dice_best': _number(best, len(known)), 'threshold_loss': _number(loss, len(known))}

    def _false_alarms(self) -> dict[str, evaluate.Entry]:
        """Millilitres marked in healthy scans: median and 90th percentile, at two thresholds."""
        entries = {}
        for rule, score in (('dice', 'healthy_ml'), ('healthy_1ml', 'strict_ml')):
            marked = [ml for ml in self._marked[rule] if math.isfinite(ml)]
            if marked:
                entries[score] = _number(float(np.median(marked)), len(marked))
                entries[f'{score}_90'] = _number(float(np.percentile(marked, 90.0)), len(marked))
        return entries


@contextlib.contextmanager
def scores_of(
    chosen: Mapping[str, Calibrated], folder: Path | None = None
) -> Iterator[dict[str, RowScores]]:
    """`RowScores` of all rows, without their temporary files at the end."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(RowScores(one, folder)) for name, one in chosen.items()}


def scored(
    rows: Mapping[str, Row],
    chosen: Mapping[str, Calibrated],
    cases: Iterable[Subject],
    detector: Detector,
    scores: Mapping[str, RowScores],
) -> Iterator[tuple[list[Subject], dict[str, Output]]]:
    """Score all rows on the test cases; a batch and the rows' results for it, after each batch.

    Args:
        rows: of the table.
        chosen: recipe and thresholds of each row.
        cases: the test cases.
        detector: for the size of a batch, the spacing and the settings of the map.
        scores: of each row; they are added to.
    """
    choices, known = {name: one.choice for name, one in chosen.items()}, set()
    for batch, outputs in outputs_of(rows, choices, cases, detector, 'test cases'):
        # Each scan once: it may be in several cases, with a lesion each.
        healthy = {number_of(case.image): case for case in healthy_of(batch)}
        healthy = [case for number, case in healthy.items() if number not in known]
        known |= {number_of(case.image) for case in healthy}
        for name, made in outputs.items():
            scores[name].add(made, batch)
            if healthy:
                on_healthy = output(rows[name], choices[name], healthy, detector)
                scores[name].add_healthy(on_healthy, healthy)
        yield batch, outputs


def _number(value: float, count: int) -> evaluate.Entry:
    """A score of all cases together, without an interval."""
    finite = bool(np.isfinite(value)) and count > 0
    return {'mean': float(value) if finite else None, 'ci_low': None, 'ci_high': None, 'n': count}


def healthy_of(cases: Sequence[Subject]) -> list[Subject]:
    """The healthy scans among test cases: controls, whose mask is empty, and cases without their
    lesion where the healthy scan is known."""
    healthy = [as_healthy(case) for case in cases if case.healthy is not None]
    controls = [
        case
        for case in cases
        if case.healthy is None and case.lesion is not None and not np.any(case.lesion)
    ]
    return healthy + controls


def as_healthy(case: Subject) -> Subject:
    """A test case without its lesion."""
    return dataclasses.replace(case, image=case.healthy, lesion=np.zeros(case.brain.shape, bool))
