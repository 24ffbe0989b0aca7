"""The models that predict a folder of scans: one, or several for different contrasts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fluidjax.base.errors import UserError
from fluidjax.predict.files import Source
from fluidjax.runs import thresholds
from fluidjax.runs.detector import Detector
from fluidjax.runs.load import Run, load_run, model_for, models_of
from fluidjax.runs.thresholds import Certainty


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, ready to predict.

    Attributes:
        detector: of the run.
        source: what its results say about where they come from.
    """

    detector: Detector
    source: Source


@dataclasses.dataclass(frozen=True)
class Models:
    """A model for each contrast.

    Attributes:
        run: the run or package that was named; its grid and preprocessing are those of all.
        by_contrast: the model for each contrast that there is one for.
    """

    run: Run
    by_contrast: dict[str, Model]

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The contrasts that there is a model for."""
        return tuple(self.by_contrast)

    def for_contrast(self, contrast: str) -> Model:
        """The model for a scan, see `runs.load.model_for`."""
        return model_for(contrast, self.by_contrast)


def contrasts_of(workdir: Path) -> tuple[str, ...]:
    """The contrasts that a run or package is for. UserError if it cannot be used."""
    return tuple(models_of(load_run(workdir)))


def load_models(workdir: Path, rule: str, counterpart: str) -> Models:
    """The models of a run or package.

    Args:
        workdir: a trained and evaluated run, or a model package.
        rule: which threshold marks a voxel, see `runs.thresholds`.
        counterpart: what is written as the healthy image, one of `on_scan.COUNTERPARTS`.

    Raises:
        UserError: no trained and evaluated run.
    """
    run = load_run(workdir)
    if run.method.needs_mask:
        raise UserError(
            f'{workdir}: {run.config.method} needs a mask of the lesion, so it cannot find any; '
            'predict with a run of another method'
        )
    made: dict[int, Model] = {}
    by_contrast = {}
    for contrast, own in models_of(run).items():
        name = workdir.name if own is run else f'{workdir.name} (other contrasts)'
        if id(own) not in made:
            made[id(own)] = _model(own, name, rule, counterpart)
        by_contrast[contrast] = made[id(own)]
    return Models(run, by_contrast)


def _model(run: Run, name: str, rule: str, counterpart: str) -> Model:
    source = Source(
        name,
        str(run.config.method),
        run.step,
        rule,
        thresholds.load(run, rule),
        counterpart,
        _certainty(run, rule),
    )
    return Model(Detector(run, thresholds.load_choice(run)), source)


def _certainty(run: Run, rule: str) -> Certainty:
    """What the run's map means; the confidence of regions was counted at the threshold dice."""
    certainty = thresholds.load_certainty(run)
    return certainty if rule == 'dice' else dataclasses.replace(certainty, confidence=None)
