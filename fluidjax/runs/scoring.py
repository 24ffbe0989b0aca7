"""Rows of the table to scores: recipe and thresholds on validation cases, then the test cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluidjax.base.subject import Subject
from fluidjax.detect import evaluate
from fluidjax.detect.calibrate import best_common, marked_ml
from fluidjax.runs import thresholds
from fluidjax.runs.cases import Split
from fluidjax.runs.detector import Choice, Detector, Output
from fluidjax.runs.rows import Row, choose, output


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What a row chose on validation cases.

    Attributes:
        choice: its recipe.
        thresholds: by rule.
        validation: its scores there, by which runs are compared.
    """

    choice: Choice
    thresholds: dict[str, float]
    validation: dict[str, float]


def calibrated(
    row: Row, split: Split, training: Sequence[Subject], detector: Detector, search: bool
) -> Calibrated:
    """Choose a row's recipe, then its thresholds.

    Args:
        row: of the table.
        split: the validation cases.
        training: healthy training scans, which say what is usual.
        detector: for the spacing and the settings of the map.
        search: False keeps the recipe that the row starts from.
    """
    choice, known = choose(row, split.validation, training, detector, search)
    maps = detector.maps(known, split.validation, choice).mean(axis=0)
    on_lesions = Output(maps, None, 0.0)
    on_healthy = output(row, choice, split.healthy, detector)
    found = thresholds.thresholds_of(on_lesions, split.validation, on_healthy.maps, split.healthy)
    return Calibrated(choice, found, thresholds.scores(on_lesions, split.validation, found['dice']))


def scored(
    made: Output,
    cases: Sequence[Subject],
    on_healthy: Output | None,
    healthy: Sequence[Subject],
    rules: dict[str, float],
) -> tuple[list[evaluate.Row], dict[str, Any]]:
    """Scores of a row: a line per case, and their summary over all cases.

    Args:
        made: the row's results for the test cases.
        cases: the test cases.
        on_healthy: its results for healthy test scans, None where there are none.
        healthy: these scans.
        rules: the row's thresholds.
    """
    maps, threshold = list(made.maps), rules['dice']
    counterparts = None if made.counterparts is None else list(made.counterparts)
    lines = evaluate.score_method(maps, counterparts, cases, threshold, made.seconds)
    of_cohort = {
        'dice_global': evaluate.global_dice(maps, cases),
        'sensitivity_1fp': evaluate.sensitivity_at_fp(maps, cases),
        **_transfer(maps, cases, lines),
        **(_false_alarms(on_healthy, healthy, rules) if on_healthy is not None else {}),
    }
    return lines, evaluate.summarise(lines, of_cohort)


def _transfer(
    maps: Sequence[np.ndarray], cases: Sequence[Subject], lines: Sequence[evaluate.Row]
) -> dict[str, evaluate.Entry]:
    """The best mean Dice with one threshold, and what the validated threshold loses to it."""
    best = best_common(maps, cases).dice
    known = [line['dice_validated'] for line in lines if line['dice_validated'] is not None]
    loss = best - float(np.mean(known)) if known else np.nan
    return {'dice_best': _number(best, len(known)), 'threshold_loss': _number(loss, len(known))}


def _false_alarms(
    on_healthy: Output, healthy: Sequence[Subject], rules: dict[str, float]
) -> dict[str, evaluate.Entry]:
    """Millilitres marked in healthy scans: median and 90th percentile, at two thresholds."""
    entries = {}
    for rule, score in (('dice', 'healthy_ml'), ('healthy_1ml', 'strict_ml')):
        marked = [
            marked_ml(one, case, rules.get(rule, np.nan))
            for one, case in zip(on_healthy.maps, healthy, strict=True)
        ]
        entries[score] = _number(float(np.median(marked)), len(marked))
        entries[f'{score}_90'] = _number(float(np.percentile(marked, 90.0)), len(marked))
    return entries


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
