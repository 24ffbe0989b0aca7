"""Between a scan's own voxels and the model's grid, there and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from scipy import ndimage

from data_pipelines.grids import ModelGrid
from data_pipelines.preprocess import preprocess
from data_pipelines.resampling import to_scan
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Preprocessed, Subject
from fluidjax.detect import filling

if TYPE_CHECKING:  # JAX, which processes that only preprocess do without
    from fluidjax.runs.detector import Output
    from fluidjax.runs.load import Run

# What is shown and written as the healthy counterpart: the scan with marked voxels replaced, or the
# model's own.
COUNTERPARTS = ('filled', 'model')
_LEAST_WEIGHT = 0.25  # of brain in an interpolated value, for the value to count


@dataclasses.dataclass(frozen=True)
class Steps:
    """What is done to a scan before the model sees it.

    Attributes:
        extraction: how the brain is found, one of `brain_extraction.METHODS`.
        bias_field: whether the coil's shading is divided out, one of `bias_field.CHOICES`.
        registration: 'affine' or 'none'; None for what the run was trained with.
    """

    extraction: str = 'auto'
    bias_field: str = 'auto'
    registration: str | None = None

    def of_run(self, run: Run) -> Steps:
        """These steps with the registration that a run was trained with, unless they name one."""
        cohort = run.config.cohort
        trained_with = 'affine' if cohort.name == 'template' else cohort.registration
        return dataclasses.replace(self, registration=self.registration or trained_with)


def grid_of(run: Run) -> ModelGrid:
    """The run's grid in MNI152 space."""
    return ModelGrid(run.grid.shape, run.grid.spacing)


def on_model_grid(
    scan: Volume,
    grid: ModelGrid,
    steps: Steps,
    contrasts: Sequence[str] = ('t1w',),
    brain: Volume | None = None,
) -> Preprocessed:
    """Bring a scan onto a model's grid.

    Args:
        scan: a T1w scan, brain or whole head.
        grid: the model's.
        steps: of preprocessing; the registration must be named.
        contrasts: that there is a model for.
        brain: the user's brain mask on the scan's voxels, or None.

    Raises:
        UserError: the scan cannot be used; the message says why.
    """
    preprocessed = preprocess(
        scan,
        grid,
        registration=steps.registration,
        extraction=steps.extraction,
        bias_field=steps.bias_field,
        brain=brain,
        contrasts=contrasts,
    )
    if not preprocessed.brain.any():
        raise UserError(f"{scan.path}: no brain on the model's grid; is it a T1w scan of a head?")
    return preprocessed


def subject_of(name: str, scan: Preprocessed) -> Subject:
    """A preprocessed scan as the detector takes it."""
    return Subject(name, scan.image, scan.brain, None, None, scan.affine)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Volumes (x, y, z) on a scan's voxels in RAS+ order, as `Volume.data`.

    Attributes:
        image: the scan in [0, 1] with its own detail, as the pictures show it.
        healthy: the counterpart in [0, 1], 0 outside the brain.
        healthy_in_scan_units: the same on the scan's own scale of intensity; 'filled', it equals
            the scan where nothing was replaced.
        anomaly_map: in the model's unit, 0 outside the brain; interpolated, so that no voxel
            exceeds the model's own.
        uncertainty: standard deviation of the map, or None where there is one counterpart.
        brain: bool.
        mask: bool, where the map reaches the threshold within the brain, or the known mask there.
        slope, offset: the scan's intensity is about `slope * image + offset`.
    """

    image: np.ndarray
    healthy: np.ndarray
    healthy_in_scan_units: np.ndarray
    anomaly_map: np.ndarray
    uncertainty: np.ndarray | None
    brain: np.ndarray
    mask: np.ndarray
    slope: float
    offset: float


def predicted_on_scan(
    case: Subject,
    output: Output,
    number: int,
    marked: float | np.ndarray,
    scan: Volume,
    background: float,
    counterpart: str = 'filled',
) -> Predicted:
    """A detector's output for one scan on that scan's voxels.

    Args:
        case: the scan on the model's grid.
        output: of the detector, for a batch of scans.
        number: of the scan in the batch.
        marked: a threshold, that a voxel is marked where its map is at least this; or the mask
            (x, y, z) on the scan's voxels, where it is known.
        scan: the scan's file.
        background: its intensity of no signal, `Preprocessed.background`.
        counterpart: one of `COUNTERPARTS`.
    """
    share = to_scan(case.brain.astype(np.float32), case.affine, scan)
    brain = share >= 0.5

    def within(volume: np.ndarray) -> np.ndarray:
        """Without the zeros around the brain, which would darken its rim."""
        values = to_scan(volume * case.brain, case.affine, scan)
        return np.where(brain, values / np.maximum(share, _LEAST_WEIGHT), 0.0).astype(np.float32)

    def placed(volume: np.ndarray) -> np.ndarray:
        return np.where(brain, to_scan(volume, case.affine, scan), 0.0)

    slope, offset = intensity_scale(scan.data, within(case.image), brain, background)
    anomaly_map, spread = placed(output.maps[number]), output.uncertainty
    image = np.clip((scan.data - offset) / slope, 0.0, 1.0)
    mask = brain & (marked if isinstance(marked, np.ndarray) else anomaly_map >= marked)
    healthy, changed = within(output.counterparts[number]), brain
    if counterpart == 'filled':
        spacing = tuple(float(size) for size in nib.affines.voxel_sizes(scan.affine))
        mirrored = _other_side(case, mask, scan) if mask.any() else None
        healthy, changed = filling.fill(image, healthy, mask, brain, spacing, mirrored)
    in_scan_units = np.where(changed, slope * healthy + offset, scan.data)
    return Predicted(
        image=image,
        healthy=healthy,
        healthy_in_scan_units=np.where(brain, in_scan_units, 0.0).astype(np.float32),
        anomaly_map=anomaly_map,
        uncertainty=None if spread is None else placed(spread[number]),
        brain=brain,
        mask=mask,
        slope=slope,
        offset=offset,
    )


def _other_side(case: Subject, mask: np.ndarray, scan: Volume) -> np.ndarray:
    """The other side of the brain (x, y, z) on the scan's voxels, NaN where it is marked too.

    Sides are exchanged on the model's grid, whose first axis is symmetric about the midline.
    """
    brain = case.brain[::-1].astype(np.float32)
    share = to_scan(brain, case.affine, scan)
    values = to_scan(case.image[::-1] * brain, case.affine, scan)
    exchange = np.diag([-1.0, 1.0, 1.0, 1.0])
    exchange[0, 3] = case.image.shape[0] - 1
    to_grid = np.linalg.inv(case.affine) @ scan.affine
    to_other = np.linalg.inv(to_grid) @ exchange @ to_grid
    marked = ndimage.affine_transform(
        mask.astype(np.uint8), to_other[:3, :3], to_other[:3, 3], order=0
    )
    known = (share >= 0.5) & (marked == 0)
    return np.where(known, values / np.maximum(share, _LEAST_WEIGHT), np.nan)


def intensity_scale(
    data: np.ndarray, image: np.ndarray, brain: np.ndarray, background: float
) -> tuple[float, float]:
    """Slope and offset of the scan's intensity: `slope * image + offset`.

    The line through the background of both and the medians of their brains, which the blur of the
    model's grid does not change.

    Args:
        data, image, brain: (x, y, z) on one grid; `image` in [0, 1], its background 0.
        background: intensity of no signal in `data`.
    """
    offset = background
    if not brain.any():
        return float(np.ptp(data)) or 1.0, offset
    slope = (float(np.median(data[brain])) - offset) / max(float(np.median(image[brain])), 1e-3)
    return (slope if slope > 0 else float(np.ptp(data)) or 1.0), offset
