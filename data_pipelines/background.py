"""The background of a scan: its intensity, and scans whose background is not black.

A brain that was z-scored within its mask has a background of 0 in the middle of its intensities;
one that was scaled to [0, 1] may have a background of -1, far below.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from data_pipelines.volume_io import Volume

# A background that was written as one value has it on so much of the volume's faces.
_LEAST_SHARE = 0.25
# A value is darker than the background if it lies below it by this part of the bright end; so many
# voxels of a brain must be darker for the background not to be black.
_DARKER_BY, _LEAST_DARKER = 0.05, 0.01
# Percentile of a brain's intensities that is taken for black, where the background is not: in six
# healthy scans with a black background it lies at 2 to 3 % of white matter.
_BLACK_PERCENTILE = 0.05
# A background is no black either if black lies above it by this part of the bright end.
_FAR_BELOW = 0.4


def background_level(data: np.ndarray) -> float:
    """Median intensity of the volume's faces."""
    return float(np.median(_faces(data)))


def black_level(data: np.ndarray) -> float:
    """The intensity of no signal: the background's, unless much of the brain is darker, or all of
    it far brighter."""
    outside = _odd_background(data)
    if outside is None:
        return background_level(data)
    return _darkest(data, outside)


def with_black_background(scan: Volume) -> Volume:
    """The scan; with background 0 and positive intensities if its background was not black."""
    outside = _odd_background(scan.data)
    if outside is None:
        return scan
    inside = ndimage.binary_fill_holes(scan.data != outside)
    black = _darkest(scan.data, outside)
    # So bright that the darkest voxels remain in the brain.
    least = 0.02 * (float(scan.data.max()) - black)
    data = np.where(inside, np.maximum(scan.data - black, least), 0.0).astype(np.float32)
    return dataclasses.replace(scan, data=data)


def _faces(data: np.ndarray) -> np.ndarray:
    return np.concatenate([np.take(data, (0, -1), axis=k).ravel() for k in range(3)])


def _odd_background(data: np.ndarray) -> float | None:
    """The value of a constant background that is not black, or None.

    Much of the brain is darker, or all of it is far brighter.
    """
    values, counts = np.unique(_faces(data), return_counts=True)
    most = int(np.argmax(counts))
    if counts[most] < _LEAST_SHARE * counts.sum():
        return None
    outside = values[most]
    inside = data[data != outside]
    if not inside.size:
        return None
    black, white = np.percentile(inside, (_BLACK_PERCENTILE, 98))
    bright = max(float(white) - outside, outside - float(inside.min()))
    darker = np.mean(inside < outside - _DARKER_BY * bright)
    is_odd = darker > _LEAST_DARKER or black > outside + _FAR_BELOW * bright
    return float(outside) if is_odd else None


def _darkest(data: np.ndarray, outside: float) -> float:
    return float(np.percentile(data[data != outside], _BLACK_PERCENTILE))
