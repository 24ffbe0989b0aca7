"""A healthy scan prepared for painting, and lesion masks resampled to it."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from data_pipelines import grids, resampling, volume_io
from data_pipelines.background import black_level, with_black_background
from data_pipelines.mask_on_scan import on_same_voxels
from data_pipelines.preprocess import brain_of
from data_pipelines.resampling import resample_mask
from data_pipelines.scan_folders import counted, split_files
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError
from fluidjax.fluid.grid import Grid

_PAD_TO = 16  # boxes have sides of a multiple of this, so that scans share compiled code


@dataclasses.dataclass(frozen=True)
class Healthy:
    """A scan prepared for painting.

    Attributes:
        volume: the whole scan, RAS+.
        box: the part around the brain that is painted in.
        brain: (x, y, z) bool, in the box.
        background, scale: the box's image is (volume - background) / scale.
        grid: of the box.
    """

    volume: Volume
    box: tuple[slice, slice, slice]
    brain: np.ndarray
    background: float
    scale: float
    grid: Grid

    @functools.cached_property
    def image(self) -> np.ndarray:
        """(x, y, z) float32 in the box, 0 outside the brain, at most 1 inside."""
        inside = (self.volume.data[self.box] - self.background) / self.scale
        return np.where(self.brain, np.maximum(inside, 0.0), 0.0).astype(np.float32)

    @property
    def affine(self) -> np.ndarray:
        """Voxel of the box -> the scan's world, mm."""
        affine = self.volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in self.box]
        return affine

    def whole(self, values: np.ndarray, outside: np.ndarray | float = 0) -> np.ndarray:
        """Values of the box on all voxels of the scan, with `outside` elsewhere."""
        full = np.empty(self.volume.data.shape, values.dtype)
        full[...] = outside
        full[self.box] = values
        return full


def load_healthy(path: str, brain_path: str | None = None) -> Healthy:
    """Read a scan and its brain mask; see `healthy_from`."""
    return healthy_from(volume_io.load_volume(path), brain_path)


def healthy_from(volume: Volume, brain_path: str | None = None) -> Healthy:
    """Prepare a scan for painting.

    Args:
        volume: the scan.
        brain_path: its brain mask; by default the brain is found as in `predict`.

    Raises:
        UserError: a scan or a mask that cannot be used.
    """
    path = volume.path
    black = with_black_background(volume)
    given = None if brain_path is None else volume_io.load_volume(brain_path)
    extracted, brain, background = brain_of(black, brain=given)
    if black is not volume:
        background = black_level(volume.data)
    for warning in (*volume.warnings, *extracted.warnings):
        tqdm.write(f'{path}: {warning}', file=sys.stderr)
    box = _padded_box(brain)
    # Rounded, as oblique scans of one spacing differ in the eighth digit, and each compiles anew.
    spacing = tuple(round(float(h), 4) for h in resampling.voxel_sizes(volume.affine))
    scale = float(volume.data[brain].max()) - background
    if not scale > 0:
        raise UserError(f'{path}: its brain is no brighter than its background; give a T1w scan')
    try:
        grid = Grid(brain[box].shape, spacing)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    return Healthy(volume, box, brain[box], background, scale, grid)


def _padded_box(brain: np.ndarray) -> tuple[slice, slice, slice]:
    """A box around the brain with one voxel of margin, its sides multiples of 16 if these fit."""
    box = []
    for side, n in zip(ndimage.find_objects(brain.astype(np.uint8))[0], brain.shape):
        length = min(n, -(-(side.stop - side.start + 2) // _PAD_TO) * _PAD_TO)
        start = min(max(0, (side.start + side.stop - length) // 2), n - length)
        box.append(slice(start, start + length))
    return tuple(box)


def _usable(folder: Path) -> list[Path]:
    """The masks of a folder that can be read; the other image files are named."""
    usable = []
    files, others = split_files(folder, '--lesions')
    for path in tqdm(files, desc='lesion masks', leave=False):
        try:
            volume_io.load_volume(path)
            usable.append(path)
        except UserError as error:
            others.append((path, str(error).removeprefix(f'{path}: ')))
    for line in counted(len(usable), others) if others else ():
        tqdm.write(line, file=sys.stderr)
    if not usable:
        raise UserError(f'--lesions: no mask in {folder} can be used')
    return usable


class MaskFiles:
    """A folder of lesion masks, each of which is read when it is drawn.

    Args:
        folder: of the masks, or None for no masks.
        paths: its files, where they are known already.

    Raises:
        UserError: no such folder, or no usable mask in it.
    """

    def __init__(self, folder: str | None, paths: Sequence[Path] | None = None) -> None:
        self.folder = folder
        self.paths = list(paths or [])
        if folder and not paths:
            self.paths = _usable(Path(folder))

    def __len__(self) -> int:
        return len(self.paths)

    def on(self, scan: Healthy, index: int) -> np.ndarray:
        """A mask on the box of a scan, (x, y, z) uint8.

        A mask on the scan's own voxels stays where it is. Any other is taken to be in MNI space,
        and is shifted so that the centre of the MNI brain lies on the centre of the scan's brain.

        Raises:
            UserError: the mask is empty or does not overlap the scan.
        """
        path = self.paths[index]
        mask = volume_io.load_volume(path)
        volume = scan.volume
        if on_same_voxels(mask, volume):
            on_scan = mask.data[scan.box] > 0
        else:
            box = ndimage.find_objects(scan.brain.astype(np.uint8))[0]
            middle = [0.5 * (side.start + side.stop - 1) for side in box]
            affine = scan.affine
            shift = affine[:3, :3] @ middle + affine[:3, 3] - grids.MNI_BRAIN_CENTRE
            affine[:3, 3] -= shift
            on_scan = resample_mask(mask.data > 0, mask.affine, scan.grid.shape, affine)
        if not on_scan.any():
            raise UserError(
                f'{path}: this mask does not overlap {volume.path}; masks of --lesions must '
                "be in MNI space or on the scan's voxels"
            )
        return on_scan.astype(np.uint8)
