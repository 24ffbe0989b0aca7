"""A scan on the model's grid, as a run wants it: the same way for predict and from Python."""

from __future__ import annotations

import dataclasses

from data_pipelines.grids import ModelGrid
from data_pipelines.preprocess import preprocess
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Preprocessed, Subject
from fluidjax.runs.load import Run


@dataclasses.dataclass(frozen=True)
class Steps:
    """What is done to a scan before the model sees it.

    Attributes:
        extraction: how the brain is found, one of `brain_extraction.METHODS`.
        bias_field: take out the coil's shading by N4.
        registration: 'affine' or 'none'; None for what the run was trained with.
    """

    extraction: str = 'auto'
    bias_field: bool = False
    registration: str | None = None


def model_grid_of(run: Run) -> ModelGrid:
    """The run's grid in MNI152 space."""
    return ModelGrid(run.grid.shape, run.grid.spacing)


def on_model_grid(
    scan: Volume, run: Run, steps: Steps = Steps(), brain: Volume | None = None
) -> Preprocessed:
    """Bring a scan onto a run's grid.

    Args:
        scan: a T1w scan, brain or whole head.
        run: whose grid, and whose registration unless `steps` says otherwise.
        steps: of preprocessing.
        brain: the user's brain mask on the scan's voxels, or None.

    Raises:
        UserError: the scan cannot be used; the message says why.
    """
    cohort = run.config.cohort
    usual = 'affine' if cohort.name == 'template' else cohort.registration
    made = preprocess(
        scan,
        model_grid_of(run),
        registration=steps.registration or usual,
        extraction=steps.extraction,
        bias_field=steps.bias_field,
        brain=brain,
    )
    if not made.brain.any():
        raise UserError(f"{scan.path}: no brain on the model's grid; is it a T1w scan of a head?")
    return made


def subject_of(name: str, made: Preprocessed) -> Subject:
    """A preprocessed scan as the detector takes it."""
    return Subject(name, made.image, made.brain, None, None, made.affine)
