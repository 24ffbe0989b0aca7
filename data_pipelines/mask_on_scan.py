"""A mask of the user's on the voxels of its scan: taken as it is, resampled, or refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from data_pipelines import resampling
from data_pipelines.volume_io import NO_ORIENTATION, Volume
from fluidjax.base.errors import UserError

# Share of the scan's field of view that the mask must cover for their worlds to agree.
_LEAST_COMMON = 0.5


def on_voxels_of(mask: Volume, scan: Volume, what: str = 'mask') -> Volume:
    """A mask with one voxel for each voxel of its scan.

    The voxels are the same if the shapes are, and the affines agree to half a voxel. Otherwise the
    mask is resampled by its own header, with a warning, if both show the same part of the world.

    Args:
      mask: any value > 0 is inside.
      scan: of the same subject.
      what: kind of mask, for messages.

    Raises:
      UserError: mask and scan lie in different places, or it is unknown where the mask lies.
    """
    if on_same_voxels(mask, scan):
        return mask
    advice = (
        'give a mask in the space of the scan; if its voxels are those of the scan, copy the '
        "scan's header to it"
    )
    about = f'{mask.path}: {what} of shape {mask.data.shape} on a scan of shape {scan.data.shape}'
    for volume in (mask, scan):
        if NO_ORIENTATION in volume.warnings:
            raise UserError(
                f'{about} ({scan.path}): the header of {volume.path} has no orientation; {advice}'
            )
    common = _common_share(mask, scan)
    if common < _LEAST_COMMON:
        raise UserError(
            f'{about} ({scan.path}) lies elsewhere by its header: it covers {100 * common:.0f} % '
            f"of the scan's field of view; {advice}"
        )
    data = resampling.resample_mask(mask.data > 0, mask.affine, scan.data.shape, scan.affine)
    warning = f'{what} {mask.path} has other voxels than the scan, and was laid on it by its header'
    return dataclasses.replace(
        mask, data=data.astype(np.float32), affine=scan.affine, warnings=(*mask.warnings, warning)
    )


def joined(masks: Sequence[Volume], scan: Volume, what: str = 'mask') -> Volume:
    """One mask on the voxels of a scan, inside where any of several is; see `on_voxels_of`.

    Args:
      masks: at least one, of the same subject.
      scan, what: as in `on_voxels_of`.
    """
    laid = [on_voxels_of(mask, scan, what) for mask in masks]
    inside = np.any([mask.data > 0 for mask in laid], axis=0)
    warnings = tuple(dict.fromkeys(line for mask in laid for line in mask.warnings))
    return dataclasses.replace(
        laid[0], data=inside.astype(np.float32), affine=scan.affine, warnings=warnings
    )


def on_same_voxels(mask: Volume, scan: Volume) -> bool:
    """Whether shapes are equal, and each corner voxel lies at most half a voxel from the other."""
    if mask.data.shape != scan.data.shape:
        return False
    distance = np.linalg.norm(_corners(mask) - _corners(scan), axis=1)
    return bool(distance.max() <= 0.5 * resampling.voxel_sizes(scan.affine).min())


def _corners(volume: Volume) -> np.ndarray:
    """World positions of the eight corner voxels, (8, 3) mm."""
    ends = [(0, side - 1) for side in volume.data.shape]
    index = np.array(list(itertools.product(*ends)))
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def _common_share(mask: Volume, scan: Volume) -> float:
    """The part of a scan's bounding box that lies in that of a mask."""
    boxes = []
    for volume in (mask, scan):
        corners, margin = _corners(volume), 0.5 * resampling.voxel_sizes(volume.affine).max()
        boxes.append((corners.min(axis=0) - margin, corners.max(axis=0) + margin))
    (low_mask, high_mask), (low, high) = boxes
    common = np.maximum(np.minimum(high_mask, high) - np.maximum(low_mask, low), 0)
    return float(np.prod(common / (high - low)))
