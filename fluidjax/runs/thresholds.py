"""Thresholds of the anomaly map, chosen on validation subjects and stored with the run.

`WORKDIR/calibration.json` has the step of the checkpoint, and for every row of the table of scores
`{'dice': t, 'fpr_1': t, 'fpr_5': t, 'fpr_10': t}`: the threshold with the best pooled Dice, and the
ones that mark 1, 5 and 10 % of the healthy voxels. `eval` and `predict` use the same file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.files import parse_json, write_json
from fluidjax.base.subject import Subject
from fluidjax.detect import baselines, calibrate, metrics
from fluidjax.detect.evaluate import json_safe
from fluidjax.runs.detector import Output
from fluidjax.runs.load import Run

RULES = ('dice', 'fpr_1', 'fpr_5', 'fpr_10')
Calibration = dict[str, dict[str, float]]


def darker_on(cases: Sequence[Subject]) -> bool:
    """Whether darkness ranks the lesions of these cases higher than brightness (by mean AP)."""

    def mean_ap(darker: bool) -> float:
        maps = [baselines.intensity_map(case.image, case.brain, darker) for case in cases]
        return _mean_ap(maps, cases)

    return mean_ap(True) >= mean_ap(False)


def calibrate_rows(rows: Mapping[str, Output], cases: Sequence[Subject]) -> Calibration:
    """The thresholds of every row, from its maps of the validation cases."""
    return {name: calibrate.thresholds(list(row.maps), cases) for name, row in rows.items()}


def scores(output: Output, cases: Sequence[Subject], threshold: float) -> dict[str, float]:
    """Scores on the validation cases, by which runs are compared.

    Returns:
        Mean average precision 'ap', and mean Dice 'dice' at the threshold.
    """
    dice = [
        metrics.dice_at(anomaly_map, case.lesion, threshold, case.brain)
        for anomaly_map, case in zip(output.maps, cases, strict=True)
    ]
    return {'ap': _mean_ap(output.maps, cases), 'dice': float(np.nanmean(dice))}


def _mean_ap(maps: Sequence[np.ndarray], cases: Sequence[Subject]) -> float:
    """Mean average precision of the lesions within the brain."""
    values = [
        metrics.average_precision(anomaly_map, case.lesion, case.brain)
        for anomaly_map, case in zip(maps, cases, strict=True)
    ]
    return float(np.nanmean(values))


def save(
    workdir: Path,
    calibration: Calibration,
    step: int,
    validation: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Write `calibration.json`.

    Args:
        workdir: the run's folder.
        calibration: thresholds of every row.
        step: of the checkpoint that they were chosen for.
        validation: `scores` of rows.
    """
    content = {'step': step, 'thresholds': calibration, 'validation': validation or {}}
    write_json(workdir / 'calibration.json', json_safe(content))


def load(run: Run, rule: str = 'dice') -> float:
    """A threshold of a run, by one of `RULES`.

    Raises:
        UserError: the run has no thresholds, they belong to another step, or this one could not be
            chosen.
    """
    again = f'evaluate it again: fluidjax eval --workdir={run.path}'
    if rule not in RULES:
        raise UserError(f"threshold '{rule}': is not one of {', '.join(RULES)}")
    text = run.text('calibration.json')
    if text is None:
        export = ', then export it again' if run.package is not None else ''
        raise UserError(
            f'{run.path}: has no threshold yet; evaluate the run first: '
            f'fluidjax eval --workdir={run.path}{export}'
        )
    where = run.path / 'calibration.json'
    calibration = parse_json(text, str(where), again)
    step, thresholds = calibration.get('step'), calibration.get('thresholds')
    if not isinstance(step, int) or not isinstance(thresholds, dict):
        raise UserError(f'{where}: has no thresholds; {again}')
    if step != run.step:
        raise UserError(f'{where}: is of step {step}, the run is at step {run.step}; {again}')
    threshold = thresholds.get(run.name, {}).get(rule)
    if threshold is None:
        raise UserError(f'{where}: has no threshold {rule} of {run.name}; {again}')
    return float(threshold)
