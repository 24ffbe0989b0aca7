"""Recipes and thresholds of the anomaly map, chosen on validation subjects, stored with the run.

`WORKDIR/calibration.json` has the step of the checkpoint and, for every row of the table of scores,
its recipe (`detect.recipe.Recipe`) and its thresholds: the one with the best mean Dice, those that
mark 1, 5 and 10 % of the healthy voxels, and the one that marks at most 1 ml in 90 % of healthy
scans. `eval` and `predict` use the same file. If the run's recipe has the unit 'spread',
`WORKDIR/healthy_residual.json` has the mean and spread of its residual in healthy scans.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fluidjax.base.errors import UserError
from fluidjax.base.files import parse_json, write_json
from fluidjax.base.subject import Subject
from fluidjax.detect import calibrate, metrics
from fluidjax.detect.evaluate import json_safe
from fluidjax.detect.histogram import Tally
from fluidjax.detect.recipe import Recipe, Spread
from fluidjax.detect.reliability import Rising, voxel_probability
from fluidjax.runs.detector import Choice, configured
from fluidjax.runs.load import Run, described

RULES = ('dice', 'fpr_1', 'fpr_5', 'fpr_10', 'healthy_1ml')
HEALTHY_FILE = 'healthy_residual.json'
SCORES_FILE = 'eval/metrics.json'
Calibration = dict[str, dict[str, float]]
# Fields of `config.detect` that change neither maps nor recipes.
_WITHOUT_EFFECT = ('batch_size', 'checkpoint')


class Rules:
    """The thresholds of a row, from its maps of validation cases, which are not kept."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._precisions: list[float] = []
        self._smallest: list[float] = []

    def add(self, maps: Iterable[np.ndarray], cases: Iterable[Subject]) -> None:
        """Add maps `(x, y, z)` of validation cases with lesions."""
        for anomaly_map, case in zip(maps, cases, strict=True):
            calibrate.count(self._tally, [anomaly_map], [case])
            self._precisions.append(metrics.average_precision(anomaly_map, case.lesion, case.brain))

    def add_healthy(self, maps: Iterable[np.ndarray], cases: Iterable[Subject]) -> None:
        """Add maps `(x, y, z)` of healthy validation scans."""
        self._smallest += [
            calibrate.smallest_within(*pair) for pair in zip(maps, cases, strict=True)
        ]

    def thresholds(self) -> dict[str, float]:
        """One threshold for each of `RULES`, NaN where it could not be chosen."""
        healthy = calibrate.healthy_threshold(self._smallest)
        return calibrate.thresholds(self._tally) | {'healthy_1ml': healthy}

    def probability(self) -> Rising | None:
        """The probability of a lesion by the value of the map."""
        return voxel_probability(self._tally)

    def scores(self) -> dict[str, float]:
        """Scores on the validation cases, by which runs are compared.

        Returns:
            Mean average precision 'ap', and mean Dice 'dice' at the threshold of that name.
        """
        found = [value for value in self._precisions if np.isfinite(value)]
        precision = float(np.mean(found)) if found else metrics.NAN
        return {'ap': precision, 'dice': self._tally.best_mean().dice}


@dataclasses.dataclass(frozen=True)
class Certainty:
    """What the run's map means, each None where it is not known.

    Attributes:
        probability: of a lesion, by the value of the map (`reliability.voxel_probability`).
        confidence: of a region, by its peak (`reliability.region_confidence`).
    """

    probability: Rising | None = None
    confidence: Rising | None = None

    def probability_of(self, anomaly_map: np.ndarray, brain: np.ndarray) -> np.ndarray | None:
        """The probability of a lesion (x, y, z), 0 outside the brain; None where not known."""
        if self.probability is None:
            return None
        return np.where(brain, self.probability(anomaly_map), 0.0).astype(np.float32)


def save(
    folder: Path,
    run: Run,
    calibration: Calibration,
    choices: Mapping[str, Choice],
    validation: Mapping[str, Mapping[str, float]] | None = None,
    certainty: Certainty = Certainty(),
) -> None:
    """Write `calibration.json` and, where the run's recipe needs it, `healthy_residual.json`.

    Args:
        folder: the run's, or another to write to.
        run: the run.
        calibration: thresholds of every row.
        choices: the recipe of every row.
        validation: `Rules.scores` of rows.
        certainty: of the run's own row.
    """
    spreads = choices[run.name].spreads
    residual = folder / HEALTHY_FILE
    if spreads:
        write_json(residual, {name: _packed(spread) for name, spread in spreads.items()})
    else:
        residual.unlink(missing_ok=True)
    content = {
        'step': run.step,
        'depends_on': fingerprint(run),
        'recipes': {row: dataclasses.asdict(choice.recipe) for row, choice in choices.items()},
        'thresholds': calibration,
        'validation': validation or {},
        'certainty': dataclasses.asdict(certainty),
    }
    write_json(folder / 'calibration.json', json_safe(content))


def fingerprint(run: Run) -> dict[str, Any]:
    """The settings of `config.detect` that thresholds depend on, as JSON has them."""
    detect = run.config.detect.to_dict()
    # 'auto' is what versions without the field `head` did.
    detect = {name: value for name, value in detect.items() if (name, value) != ('head', 'auto')}
    kept = {name: value for name, value in detect.items() if name not in _WITHOUT_EFFECT}
    return json.loads(json.dumps(json_safe(kept)))


def load(run: Run, rule: str = 'dice') -> float:
    """A threshold of a run, by one of `RULES`.

    Raises:
        UserError: the run has no thresholds, they belong to another step or to other settings, or
            this one could not be chosen.
    """
    if rule not in RULES:
        raise UserError(f"threshold '{rule}': is not one of {', '.join(RULES)}")
    calibration = _read(run)
    threshold = calibration['thresholds'].get(run.name, {}).get(rule)
    if threshold is None:
        few = ' (it needs 9 healthy validation scans)' if rule == 'healthy_1ml' else ''
        raise UserError(
            f'{run.path / "calibration.json"}: has no threshold {rule} of {run.name}{few}; '
            f'{_again(run)}'
        )
    return float(threshold)


def is_evaluated(workdir: Path) -> bool:
    """Whether the run in a folder has thresholds of its step and settings, and scores.

    An evaluation replaces both at its end, the scores last, so they are of one evaluation.
    """
    try:
        load(described(workdir))
    except UserError:
        return False
    return (workdir / SCORES_FILE).is_file()


def load_choice(run: Run) -> Choice:
    """How the run's maps are made: as chosen by its evaluation, or by its configuration.

    Raises:
        UserError: as for `load`, or the healthy residual that the recipe needs is missing.
    """
    if run.text('calibration.json') is None:
        return Choice(configured(run.config, run.method))
    stored = _read(run).get('recipes', {}).get(run.name)
    if stored is None:  # of a version that did not choose recipes
        return Choice(configured(run.config, run.method))
    where = run.path / 'calibration.json'
    try:
        recipe = Recipe(**stored)
    except TypeError as error:
        raise UserError(f'{where}: recipes.{run.name}: {error}; {_again(run)}') from error
    return Choice(recipe, _healthy_residual(run) if recipe.unit == 'spread' else {})


def load_certainty(run: Run) -> Certainty:
    """What the run's map means; nothing is known of runs that older versions evaluated.

    Raises:
        UserError: as for `load`, or it is damaged.
    """
    if run.text('calibration.json') is None:
        return Certainty()
    stored = _read(run).get('certainty') or {}
    try:
        return Certainty(**{name: Rising.of(curve) for name, curve in stored.items()})
    except (KeyError, TypeError) as error:
        where = run.path / 'calibration.json'
        raise UserError(f'{where}: certainty: {error}; {_again(run)}') from error


def _again(run: Run) -> str:
    return f'evaluate it again: fluidjax eval --workdir={run.path}'


def _read(run: Run) -> dict[str, Any]:
    """The calibration of a run, of its step and settings.

    Raises:
        UserError: there is none, or it is of another step or of other settings.
    """
    text = run.text('calibration.json')
    if text is None:
        export = ', then export it again' if run.package is not None else ''
        raise UserError(
            f'{run.path}: has no threshold yet; evaluate the run first: '
            f'fluidjax eval --workdir={run.path}{export}'
        )
    where, again = run.path / 'calibration.json', _again(run)
    calibration = parse_json(text, str(where), again)
    step, found = calibration.get('step'), calibration.get('thresholds')
    if not isinstance(step, int) or not isinstance(found, dict):
        raise UserError(f'{where}: has no thresholds; {again}')
    if step != run.step:
        raise UserError(f'{where}: is of step {step}, the run is at step {run.step}; {again}')
    then, now = calibration.get('depends_on'), fingerprint(run)
    if then is not None and then != now:  # older files do not say
        changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
        raise UserError(
            f'{where}: was chosen with other settings (config.detect.{changed[0]} has changed); '
            f'{again}'
        )
    return calibration


def _packed(spread: Spread) -> dict[str, Any]:
    """Volumes as text: float16, compressed, base64."""

    def text(volume: np.ndarray) -> str:
        return base64.b64encode(zlib.compress(volume.astype('<f2').tobytes())).decode()

    return {
        'shape': list(spread.mean.shape),
        'mean': text(spread.mean),
        'deviation': text(spread.deviation),
    }


def _healthy_residual(run: Run) -> dict[str, Spread]:
    """The residual in healthy scans, for each reference, as `save` wrote it.

    Raises:
        UserError: it is missing or damaged.
    """
    text, where = run.text(HEALTHY_FILE), run.path / HEALTHY_FILE
    if text is None:
        raise UserError(f'{where}: is missing; {_again(run)}')
    try:
        return {
            name: Spread(_unpacked(entry, 'mean'), _unpacked(entry, 'deviation'))
            for name, entry in parse_json(text, str(where), _again(run)).items()
        }
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise UserError(f'{where}: is damaged ({error}); {_again(run)}') from error


def _unpacked(entry: Mapping[str, Any], name: str) -> np.ndarray:
    content = zlib.decompress(base64.b64decode(entry[name]))
    return np.frombuffer(content, '<f2').astype(np.float32).reshape(entry['shape'])
