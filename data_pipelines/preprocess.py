"""Any T1w scan -> the model's grid, and the affine that places the result on the scan.

Steps: brain mask (`brain_extraction`), affine registration to MNI152, shading divided out if asked
(`bias_field`), one intensity scale, resampling, warnings (`quality`). The affine that is returned
maps model voxels into the *scan's own* world, so a NIfTI file written with it overlays on the
original scan.

Everything is computed on one thread and without random numbers: a scan gives the same result in any
process, however many run beside it. Nothing here imports JAX or TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from data_pipelines import bias_field as coil
from data_pipelines import brain_extraction, grids, mni_template, orientation, quality
from data_pipelines import registration as affine_registration
from data_pipelines.background import background_level, black_level, with_black_background
from data_pipelines.file_names import contrast_in_name
from data_pipelines.mask_on_scan import on_voxels_of
from data_pipelines.mni_template import TissueLevel, tissue_levels
from data_pipelines.resampling import resample_image, resample_mask
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Preprocessed

REGISTRATIONS = ('affine', 'none')
# The intensity in [0, 1] to which the median of white matter is scaled: so low that what is bright
# in the contrast stays below 1. The level of a bright tissue would depend on bright lesions.
WHITE_MATTER_INTENSITY = 0.82
WHITE_MATTER_LEVELS = {'t1w': WHITE_MATTER_INTENSITY, 'flair': 0.5, 't2w': 0.28}
# In contrasts that are not known: the percentile in the brain that is scaled, and to what.
BRIGHTEST, BRIGHTEST_INTENSITY = 99.5, 0.9
# Share of a lesion that must lie in the brain: skull stripping may have cut some of it off.
LEAST_LESION_IN_BRAIN = 0.25
# Fraction of the 98th percentile below which a voxel is background (interpolation leaves traces).
BACKGROUND_FRACTION = 0.01


def preprocess(
    scan: Volume,
    grid: grids.ModelGrid,
    lesion: Volume | None = None,
    registration: str = 'affine',
    *,
    extraction: str = 'auto',
    bias_field: str = 'none',
    brain: Volume | None = None,
    contrasts: Sequence[str] = ('t1w',),
) -> Preprocessed:
    """Bring a scan, and its lesion mask, onto the model grid.

    Args:
      scan: a brain whose background is one constant, or a whole head.
      grid: the model's grid in MNI152 space.
      lesion: mask, any value > 0 is lesion; see `mask_on_scan` for its voxels.
      registration: 'affine', or 'none' for a scan whose world is MNI152 already.
      extraction: one of `brain_extraction.METHODS`; 'auto' leaves a skull-stripped scan as it is.
      bias_field: whether the coil's shading is divided out, one of `bias_field.CHOICES`; 'auto'
        where it is strong.
      brain: the user's brain mask, any value > 0; replaces `extraction`.
      contrasts: that the scan may have; any other is a fault.

    Raises:
      UserError: unknown registration, extraction or bias_field, a mask that lies elsewhere, a scan
        without a brain or that is a label map, or a head whose brain could not be found.
    """
    for name, value, choices in (
        ('registration', registration, REGISTRATIONS),
        ('bias_field', bias_field, coil.CHOICES),
    ):
        if value not in choices:
            raise UserError(f"{name} '{value}' is unknown; choose one of {', '.join(choices)}")
    if lesion is not None:
        lesion = on_voxels_of(lesion, scan, 'lesion mask')
    quality.refuse_ct(scan)
    given, scan = scan, with_black_background(scan)
    extracted, whole, background = brain_of(scan, extraction, brain)
    head, in_head = crop_to_brain(scan, whole, background)
    scan_from_mni = np.eye(4)
    if registration == 'affine':
        scan_from_mni = affine_registration.register_to_mni(head.data, in_head, head.affine)

    affine = scan_from_mni @ grid.affine
    brain_on_grid = resample_mask(in_head, head.affine, grid.shape, affine)

    lesion_on_grid = None
    if lesion is not None:
        _refuse_lesion_outside(lesion, scan, whole)
        lesion_on_grid = resample_mask(lesion.data > 0, scan.affine, grid.shape, affine)
    overlap = dice(brain_on_grid, mni_brain(grid))
    placed = _Placed(scan, extracted, whole, head, in_head, scan_from_mni)
    wrong_axes = _orientation_fault(placed, registration == 'affine')
    even, shading = None, 1.0
    if not wrong_axes:
        even, shading = coil.correct(head.data, head.affine, scan_from_mni, bias_field)
    seen = head.data if even is None else even
    levels = tissue_levels(seen, head.affine, scan_from_mni)
    named = contrast_in_name(scan.path)
    contrast = quality.contrast_of(levels, named)
    faults = wrong_axes or quality.contrast_warnings(levels, contrasts, named)

    def on_grid(data: np.ndarray, white_matter: TissueLevel) -> np.ndarray:
        """The brain in [0, 1] on the model grid."""
        white = white_matter_level(white_matter, data, in_head)
        if contrast in WHITE_MATTER_LEVELS and white > 0:
            gain = WHITE_MATTER_LEVELS[contrast] / white
        else:
            gain = BRIGHTEST_INTENSITY / float(np.percentile(data[in_head], BRIGHTEST))
        scaled = np.clip(gain * data, 0.0, 1.0)
        return brain_on_grid * resample_image(scaled, head.affine, grid.shape, affine)

    before = None
    if even is not None:
        before = on_grid(head.data, tissue_levels(head.data, head.affine, scan_from_mni)['wm'])
    doubts = _doubts(placed, overlap, shading, even is not None, bool(wrong_axes))
    warnings = (*scan.warnings, *extracted.warnings, *(lesion.warnings if lesion else ()))
    return Preprocessed(
        image=on_grid(seen, levels['wm']),
        brain=brain_on_grid,
        lesion=lesion_on_grid,
        affine=affine,
        overlap=overlap,
        warnings=(*warnings, *faults, *doubts),
        faults=tuple(faults),
        extraction=extracted.method,
        before=before,
        shading=shading,
        contrast=contrast,
        background=background if given is scan else black_level(given.data),
    )


def brain_of(
    scan: Volume, extraction: str = 'auto', brain: Volume | None = None
) -> tuple[brain_extraction.Extraction, np.ndarray, float]:
    """How the brain of a scan was found, the brain, (x, y, z) bool, and the background's intensity.

    Args:
      scan: with a black background, see `background.with_black_background`.
      extraction, brain: see `preprocess`.

    Raises:
      UserError: no brain, or a label map.
    """
    extracted = brain_extraction.extract(scan, extraction, brain)
    if extracted.brain is None:
        whole, background = find_brain(scan)
    else:
        whole, background = extracted.brain, _background_around(scan, extracted.brain)
    quality.refuse_label_map(scan, whole)
    return extracted, whole, background


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A scan whose brain was found and registered.

    Attributes:
      scan: the whole scan.
      extracted: how its brain was found.
      whole: the brain on the voxels of `scan`.
      head, in_head: scan and brain cropped to the brain.
      scan_from_mni: MNI152 world -> world of the scan.
    """

    scan: Volume
    extracted: brain_extraction.Extraction
    whole: np.ndarray
    head: Volume
    in_head: np.ndarray
    scan_from_mni: np.ndarray


def _orientation_fault(placed: _Placed, registered: bool) -> list[str]:
    """A header whose axes are wrong; see `orientation`."""
    head = placed.head
    rotation = orientation.better_rotation(
        head.data, placed.in_head, head.affine, placed.scan_from_mni, registered
    )
    if rotation is None:
        return []
    original = placed.scan.original
    return [orientation.warning(original.affine if original else placed.scan.affine, rotation)]


def _doubts(
    placed: _Placed, overlap: float, shading: float, corrected: bool, wrong_axes: bool
) -> list[str]:
    """What may be wrong with a scan; with wrong axes the template says nothing about it."""
    scan, extracted = placed.scan, placed.extracted
    found = []
    if not wrong_axes:
        found += quality.overlap_warnings(overlap)
        found += quality.shading_warnings(shading, corrected)
    volume_ml = float(placed.whole.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000)
    found += quality.head_warnings(extracted.whole_head, extracted.method, volume_ml)
    return found + quality.field_of_view_warnings(placed.whole, scan.affine)


def _refuse_lesion_outside(lesion: Volume, scan: Volume, brain: np.ndarray) -> None:
    marked = lesion.data > 0
    inside = np.mean(brain[marked]) if marked.any() else 1.0
    if inside < LEAST_LESION_IN_BRAIN:
        raise UserError(
            f'{lesion.path}: {100 * inside:.0f} % of this lesion mask lie in the brain of '
            f'{scan.path}; do they belong together?'
        )


def crop_to_brain(scan: Volume, brain: np.ndarray, background: float) -> tuple[Volume, np.ndarray]:
    """The scan cropped to its brain, background subtracted, zero outside; and the brain mask.

    Args:
      scan: brain or whole head.
      brain: (x, y, z) bool on its voxels.
      background: intensity of its background.

    Raises:
      UserError: nothing in the mask is brighter than the background.
    """
    head, brain = _crop(scan, brain)
    data = np.where(brain, np.maximum(head.data - background, 0.0), 0.0)
    if not data.any():
        raise UserError(
            f'{scan.path}: nothing in its brain mask is brighter than the background; '
            'do mask and scan belong together?'
        )
    return Volume(data.astype(np.float32), head.affine, scan.path), brain


def _background_around(scan: Volume, brain: np.ndarray) -> float:
    """Intensity of the air around a head, of which most faces of the volume may show tissue."""
    outside = scan.data[~brain][::7]
    level = background_level(scan.data)
    return min(level, float(np.percentile(outside, 5))) if outside.size else level


def find_brain(scan: Volume) -> tuple[np.ndarray, float]:
    """The brain of a skull-stripped scan, (x, y, z) bool, and the intensity of its background.

    The brain is the largest connected component above the background, with its holes filled.

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
    """Volume and mask cropped to the mask, with a margin of one voxel if the volume has it."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    return Volume(volume.data[box], affine, volume.path), mask[box]


def white_matter_level(white_matter: TissueLevel, data: np.ndarray, brain: np.ndarray) -> float:
    """The intensity of white matter, which sets the intensity scale.

    It is the median over all white matter of the template, which a lesion, a small part of it,
    hardly changes. If scan and template hardly overlap, it is the 80th percentile of the brain.

    Args:
      white_matter: measured in `data`, see `mni_template.tissue_levels`.
      data: (x, y, z).
      brain: (x, y, z) bool.
    """
    if white_matter.share < 0.5:
        return float(np.percentile(data[brain], 80))
    return white_matter.median


def mni_brain(grid: grids.ModelGrid) -> np.ndarray:
    """The template's brain on a model grid: (x, y, z) bool."""
    return mni_template.on_grid(grid).brain >= 0.5


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|) of two masks; 0 if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 0.0
