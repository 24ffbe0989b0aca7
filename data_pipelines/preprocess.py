"""Any T1w scan -> the model's grid, and the affine that places the result on the scan.

Steps: brain mask (see `brain_extraction`), optionally N4 (`bias_field`), affine registration to
MNI152, one intensity scale, resampling, warnings (`quality`). The returned
affine maps model voxels into the *scan's own* world, so a NIfTI file written with it overlays on
the original scan, with no resampling on the way back.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from data_pipelines import bias_field as n4
from data_pipelines import brain_extraction, grids, mni_template, quality, resampling
from data_pipelines import registration as affine_registration
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Preprocessed

REGISTRATIONS = ('affine', 'none')
# Where the median of white matter comes to lie in [0, 1].
WHITE_MATTER_INTENSITY = 0.82
# Fraction of the 98th percentile below which a voxel is background (interpolation leaves traces).
BACKGROUND_FRACTION = 0.01
_REFERENCE_GRID = grids.GRIDS['demo']


def preprocess(
    scan: Volume,
    grid: grids.ModelGrid,
    lesion: Volume | None = None,
    registration: str = 'affine',
    *,
    extraction: str = 'auto',
    bias_field: bool = False,
    brain: Volume | None = None,
) -> Preprocessed:
    """Bring a T1w scan, and its lesion mask, onto the model grid.

    Args:
      scan: a brain whose background is one constant, or a whole head.
      grid: the model's grid in MNI152 space.
      lesion: mask on the scan's voxels; any value > 0 is lesion.
      registration: 'affine', or 'none' for a scan whose world is MNI152 already.
      extraction: one of `brain_extraction.METHODS`; 'auto' leaves a skull-stripped scan as it is.
      bias_field: take out the coil's shading by N4.
      brain: the user's brain mask on the scan's voxels, any value > 0; before `extraction`.

    Raises:
      UserError: unknown registration or extraction, mask of another shape, a scan with no brain
        in it, or a head whose brain could not be found.
    """
    if registration not in REGISTRATIONS:
        raise UserError(f"registration '{registration}' is unknown; choose 'affine' or 'none'")
    if lesion is not None and lesion.data.shape != scan.data.shape:
        raise UserError(
            f'{lesion.path}: mask of shape {lesion.data.shape} on a scan of shape {scan.data.shape}'
            f' ({scan.path}); give a mask with one voxel for each voxel of the scan'
        )
    found = brain_extraction.extract(scan, extraction, brain)
    whole = find_brain(scan)[0] if found.brain is None else found.brain
    head, brain_there = extract_brain(scan, found.brain)
    shaded, shading = head.data, 1.0
    if bias_field:
        field = n4.estimate(head.data, brain_there, head.affine)
        head = Volume(head.data / field, head.affine, head.path)
        shading = n4.strength(field, brain_there)
    scan_from_mni = np.eye(4)
    if registration == 'affine':
        scan_from_mni = affine_registration.register_to_mni(head.data, brain_there, head.affine)

    affine = scan_from_mni @ grid.affine
    brain_on_grid = resample_mask(brain_there, head.affine, grid.shape, affine)
    on_grid = lambda data: (
        brain_on_grid
        * resample_image(
            _scaled(data, brain_there, head.affine, scan_from_mni), head.affine, grid.shape, affine
        )
    )
    lesion_on_grid = None
    if lesion is not None:
        lesion_on_grid = resample_mask(lesion.data > 0, scan.affine, grid.shape, affine)
    overlap = dice(brain_on_grid, mni_brain(grid))
    volume_ml = float(whole.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000)
    warnings = (
        quality.contrast_warnings(quality.tissue_levels(head.data, head.affine, scan_from_mni))
        + quality.overlap_warnings(overlap)
        + quality.head_warnings(found.whole_head, found.method, volume_ml)
        + quality.field_of_view_warnings(whole, scan.affine)
    )
    return Preprocessed(
        on_grid(head.data),
        brain_on_grid,
        lesion_on_grid,
        affine,
        overlap,
        tuple(warnings),
        found.method,
        on_grid(shaded) if bias_field else None,
        shading,
    )


def _scaled(
    data: np.ndarray, brain: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray
) -> np.ndarray:
    """Intensities in [0, 1] with white matter where it belongs."""
    level = white_matter_level(data, brain, affine, scan_from_mni)
    return np.clip(WHITE_MATTER_INTENSITY / level * data, 0.0, 1.0)


def extract_brain(scan: Volume, brain: np.ndarray | None = None) -> tuple[Volume, np.ndarray]:
    """The scan cropped to its brain, background subtracted, zero outside; and the brain mask.

    Args:
      scan: skull-stripped, unless `brain` is given.
      brain: (x, y, z) bool on its voxels; None: everything above the background.

    Raises:
      UserError: nothing is brighter than the background.
    """
    if brain is None:
        brain, background = find_brain(scan)
    else:
        background = _background_around(scan, brain)
    head, brain = _crop(scan, brain)
    data = np.where(brain, np.maximum(head.data - background, 0.0), 0.0)
    if not data.any():
        raise UserError(
            f'{scan.path}: nothing in its brain mask is brighter than the background; '
            'do mask and scan belong together?'
        )
    return Volume(data.astype(np.float32), head.affine, scan.path), brain


def _background_around(scan: Volume, brain: np.ndarray) -> float:
    """Intensity of air around a head, of which most faces of the volume may show tissue."""
    outside = scan.data[~brain][::7]
    level = background_level(scan.data)
    return min(level, float(np.percentile(outside, 5))) if outside.size else level


def background_level(data: np.ndarray) -> float:
    """Median intensity of the volume's faces."""
    return float(
        np.median(np.concatenate([np.take(data, (0, -1), axis=k).ravel() for k in range(3)]))
    )


def find_brain(scan: Volume) -> tuple[np.ndarray, float]:
    """The brain of a skull-stripped scan, (x, y, z) bool, and the intensity of its background.

    The brain is the largest connected piece above the background, with its holes filled.

    Raises:
      UserError: nothing is brighter than the background.
    """
    background = background_level(scan.data)
    above = scan.data > background
    if not above.any():
        raise UserError(f'{scan.path}: is constant or darker than its background; give a T1w scan')
    brightest = np.percentile(scan.data[above], 98) - background
    bright = scan.data > background + BACKGROUND_FRACTION * brightest
    box = ndimage.find_objects(bright.astype(np.uint8))[0]
    above = bright[box]
    labels, count = ndimage.label(above)
    if count > 1:
        above = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    brain = np.zeros(scan.data.shape, bool)
    brain[box] = ndimage.binary_fill_holes(above)
    return brain, background


def _crop(volume: Volume, mask: np.ndarray) -> tuple[Volume, np.ndarray]:
    """Volume and mask around the mask, with a margin of one voxel where there is one."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    return Volume(volume.data[box], affine, volume.path), mask[box]


def white_matter_level(
    data: np.ndarray, brain: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray
) -> float:
    """Median intensity where the template is white matter.

    A median over all the white matter: a lesion, which fills a small part of it, hardly moves it.
    Where scan and template hardly meet, the 80th percentile of the brain stands in.
    """
    maps = mni_template.load_template(_REFERENCE_GRID.spacing[0])
    in_mni = _REFERENCE_GRID.positions()
    white = in_mni[resampling.sample(maps.wm, maps.affine, in_mni) > 0.85]
    in_scan = (white @ scan_from_mni[:3, :3].T + scan_from_mni[:3, 3]).astype(np.float32)
    values = resampling.sample(data, affine, in_scan)
    values = values[values > 0]
    if values.size < 0.5 * len(white):
        return float(np.percentile(data[brain], 80))
    return float(np.median(values))


def resample_image(
    data: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], target_affine: np.ndarray
) -> np.ndarray:
    """Low-pass where the target is coarser, then linear interpolation: (x, y, z) float32.

    Both affines lead to the same world.
    """
    spacing = float(np.mean(resampling.voxel_sizes(target_affine)))
    positions = grids.voxel_positions(shape, target_affine)
    return resampling.sample(resampling.antialias(data, affine, spacing), affine, positions)


def resample_mask(
    mask: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int], target_affine: np.ndarray
) -> np.ndarray:
    """A mask on another grid: where at least half of the low-passed mask lies; (x, y, z) bool.

    A mask too small for that keeps its best voxel, as long as any of it lies on the target grid.
    """
    fraction = resample_image(mask, affine, shape, target_affine)
    best = fraction.max()
    return fraction >= 0.5 if best >= 0.5 or best <= 0 else fraction >= best


def mni_brain(grid: grids.ModelGrid) -> np.ndarray:
    """The template's brain on a model grid: (x, y, z) bool."""
    maps = mni_template.load_template(grid.spacing[0])
    return resampling.sample(maps.brain, maps.affine, grid.positions()) >= 0.5


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|) of two masks; 0 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 0.0
