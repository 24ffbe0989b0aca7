"""Thresholds that carry over: chosen on validation subjects, kept beside the checkpoint.

`WORKDIR/calibration.json` holds the step they belong to and for every row of the table
`{'dice': t, 'fpr_1': t, 'fpr_5': t, 'fpr_10': t}`: the threshold of the best pooled Dice, and those
at which 1, 5 and 10 % of healthy voxels are marked. `eval` and `predict` use the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.files import write_text
from fluidjax.base.subject import Subject
from fluidjax.detect import baselines, calibrate, metrics
from fluidjax.detect.evaluate import json_safe
from fluidjax.runs import package
from fluidjax.runs.detector import Output

RULES = ('dice', 'fpr_1', 'fpr_5', 'fpr_10')
Calibration = dict[str, dict[str, float]]


def darker_on(cases: Sequence[Subject]) -> bool:
    """Whether darkness, not brightness, ranks the lesions of these cases higher (mean AP)."""

    def score(darker: bool) -> float:
        return float(
            np.nanmean(
                [
                    metrics.average_precision(
                        baselines.intensity_map(c.image, c.brain, darker), c.lesion, c.brain
                    )
                    for c in cases
                ]
            )
        )

    return score(True) >= score(False)


def calibrate_rows(rows: Mapping[str, Output], cases: Sequence[Subject]) -> Calibration:
    """The thresholds of every row, from its maps of the validation cases."""
    return {name: calibrate.thresholds(list(row.maps), cases) for name, row in rows.items()}


def scores(output: Output, cases: Sequence[Subject], threshold: float) -> dict[str, float]:
    """How well a row does on the cases that chose its threshold, to choose between runs by: mean
    average precision `ap`, and mean Dice `dice` at the threshold.
    """
    pairs = list(zip(output.maps, cases, strict=True))
    return {
        'ap': float(
            np.nanmean(
                [metrics.average_precision(found, case.lesion, case.brain) for found, case in pairs]
            )
        ),
        'dice': float(
            np.nanmean(
                [
                    metrics.dice_at(found, case.lesion, threshold, case.brain)
                    for found, case in pairs
                ]
            )
        ),
    }


def save(
    workdir: Path,
    calibration: Calibration,
    step: int,
    validation: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Write `calibration.json` of a run whose newest checkpoint is that of `step`.

    Args:
        workdir: the run's folder.
        calibration: thresholds of every row.
        step: of the checkpoint.
        validation: `scores` of rows.
    """
    text = json.dumps(
        json_safe({'step': step, 'thresholds': calibration, 'validation': validation or {}}),
        indent=2,
    )
    write_text(workdir / 'calibration.json', text + '\n')


def load(workdir: Path, row: str, step: int, rule: str = 'dice') -> float:
    """A threshold of a run, by one of `RULES`.

    Args:
        workdir: the run's folder, or its model package.
        row: of the table of scores; the method's own is `Run.name`.
        step: of the checkpoint in use.
        rule: one of `RULES`.

    Raises:
        UserError: no such rule, the run was not evaluated since its last step, or no threshold
            could be chosen.
    """
    path, again = workdir / 'calibration.json', f'fluidjax eval --workdir={workdir}'
    if rule not in RULES:
        raise UserError(f"threshold '{rule}': is not one of {', '.join(RULES)}")
    text = package.read_text(workdir, 'calibration.json')
    if text is None:
        again = f'{again}, then export it again' if package.is_package(workdir) else again
        raise UserError(f'{workdir}: has no threshold yet; evaluate the run first: {again}')
    held = _parsed(text, path, again)
    if held['step'] != step:
        raise UserError(
            f'{path}: is of step {held["step"]}, the run is at step {step}; evaluate '
            f'it again: {again}'
        )
    threshold = held['thresholds'].get(row, {}).get(rule)
    if threshold is None:
        raise UserError(f'{path}: holds no threshold {rule} of {row}; evaluate again: {again}')
    return float(threshold)


def _parsed(text: str, path: Path, again: str) -> dict:
    try:
        held = json.loads(text)
        if isinstance(held['step'], int) and isinstance(held['thresholds'], dict):
            return held
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f'{path}: holds no thresholds as eval writes them; evaluate again: {again}')
