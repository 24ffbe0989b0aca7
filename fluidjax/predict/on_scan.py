"""What a detector found on the model's grid, brought onto the voxels of the scan itself."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.way_back import to_scan
from fluidjax.base.subject import Subject

if TYPE_CHECKING:
    from data_pipelines.volume_io import Volume

_LEAST_WEIGHT = 0.25  # of brain in an interpolated value, for it to count


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Volumes (x, y, z) on a scan's voxels in RAS+ order, as `Volume.data`.

    Attributes:
        image: the scan in [0, 1], as the pictures show it, with its own detail.
        healthy: the counterpart in [0, 1], 0 outside the brain.
        anomaly_map: in the model's unit, 0 outside the brain; interpolated, so that a voxel never
            exceeds the model's own.
        uncertainty: standard deviation of the map, or None where there is one counterpart.
        brain: bool.
        mask: bool, where the map reaches the threshold within the brain.
        slope, offset: the scan's intensity is about `slope * image + offset`.
    """

    image: np.ndarray
    healthy: np.ndarray
    anomaly_map: np.ndarray
    uncertainty: np.ndarray | None
    brain: np.ndarray
    mask: np.ndarray
    slope: float
    offset: float

    @property
    def healthy_in_scan_units(self) -> np.ndarray:
        """The counterpart on the scan's own scale of intensity, 0 outside the brain."""
        return np.where(self.brain, self.slope * self.healthy + self.offset, 0).astype(np.float32)


def predicted_on_scan(
    case: Subject,
    counterpart: np.ndarray,
    anomaly_map: np.ndarray,
    uncertainty: np.ndarray | None,
    threshold: float,
    scan: Volume,
) -> Predicted:
    """A detector's output for one scan on that scan's voxels.

    Args:
        case: the scan on the model's grid.
        counterpart, anomaly_map: (x, y, z) on the model's grid; `uncertainty` too, or None.
        threshold: a voxel is marked where its map is at least this.
        scan: the scan's file.
    """
    share = to_scan(case.brain.astype(np.float32), case.affine, scan)
    brain = share >= 0.5

    def within(volume: np.ndarray) -> np.ndarray:
        """Without the zeros around the brain, which would darken its rim."""
        values = to_scan(volume * case.brain, case.affine, scan)
        return np.where(brain, values / np.maximum(share, _LEAST_WEIGHT), 0.0).astype(np.float32)

    slope, offset = intensity_scale(scan.data, within(case.image), brain)
    placed = np.where(brain, to_scan(anomaly_map, case.affine, scan), 0.0)
    return Predicted(
        image=np.clip((scan.data - offset) / slope, 0.0, 1.0),
        healthy=within(counterpart),
        anomaly_map=placed,
        brain=brain,
        mask=(placed >= threshold) & brain,
        slope=slope,
        uncertainty=None
        if uncertainty is None
        else np.where(brain, to_scan(uncertainty, case.affine, scan), 0.0),
        offset=offset,
    )


def intensity_scale(data: np.ndarray, image: np.ndarray, brain: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the scan's intensity: `slope * image + offset`.

    The line through the background of both and the medians of their brains, which hold whatever the
    blur of the model's grid did to the detail.

    Args:
        data, image, brain: (x, y, z) on one grid; `image` in [0, 1], its background 0.
    """
    from data_pipelines.preprocess import background_level

    offset = background_level(data)
    if not brain.any():
        return float(np.ptp(data)) or 1.0, offset
    slope = (float(np.median(data[brain])) - offset) / max(float(np.median(image[brain])), 1e-3)
    return (slope if slope > 0 else float(np.ptp(data)) or 1.0), offset
