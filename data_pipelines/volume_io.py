"""Image files and nibabel images <-> arrays in RAS+ order with their affine."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from scipy import ndimage

from data_pipelines.image_files import (
    WARNINGS,
    check_one_volume,
    ending_of,
    open_image,
    plain_header,
    quiet_nibabel,
)
from fluidjax.base.errors import UserError
from fluidjax.base.partial import written_beside

VOXEL_MM = (0.01, 100.0)  # edges beyond these are mistakes of a header
NO_ORIENTATION = (
    'its header has no orientation (no form code): left and right are unknown, and the axes are a '
    'guess'
)
_MM_PER_UNIT = {'meter': 1000.0, 'mm': 1.0, 'micron': 0.001, 'unknown': 1.0}
MOST_HOLES = 0.01  # share of a brain's voxels that may be NaN where its background is
# "Aligned": world coordinates of another file, here of the scan that the volume was made from.
_XFORM_ALIGNED = 2


@dataclasses.dataclass(frozen=True)
class Original:
    """How a volume was stored, to write results in the same way.

    Attributes:
      affine: voxel index in the stored order -> world mm, (4, 4).
      header: NIfTI header, or None if it was not stored as NIfTI.
    """

    affine: np.ndarray
    header: nib.Nifti1Header | None


@dataclasses.dataclass(frozen=True)
class Volume:
    """A scan or a mask in the scanner's world.

    Attributes:
      data: (x, y, z) float32, axes in RAS+ order.
      affine: voxel index -> world mm (RAS+), (4, 4) float64.
      path: the file it was read from, for messages.
      original: how it was stored; None for a volume that was computed.
      warnings: sentences about its header, for a person.
    """

    data: np.ndarray
    affine: np.ndarray
    path: str
    original: Original | None = None
    warnings: tuple[str, ...] = ()


def load_volume(path: str | os.PathLike[str], allow_empty: bool = False) -> Volume:
    """Read one 3-D volume, its axes reordered to RAS+ (no interpolation).

    Args:
      path: NIfTI or MGH, see `image_files.open_image`; a 4-D file with one volume is accepted.
      allow_empty: accept a volume of zeros (a lesion mask of a healthy subject).

    Raises:
      UserError: `open_image` or `volume_of` refuses the file.
    """
    return volume_of(open_image(path), str(path), allow_empty)


def volume_of(image: SpatialImage, name: str, allow_empty: bool = False) -> Volume:
    """A nibabel image as a volume.

    Args:
      image: one 3-D volume, or a 4-D image with one volume.
      name: for messages.
      allow_empty: accept a volume of zeros.

    Raises:
      UserError: it is not one volume of real numbers, its affine is missing, singular or has voxels
        of a size that no scan has, or its values are NaN, infinite or (unless `allow_empty`) all
        zero.
    """
    check_one_volume(name, image.shape, image.get_data_dtype())
    if image.affine is None:
        raise UserError(f'{name}: has no affine; give it that of the file that it was read from')
    affine, warnings = _in_mm(image, name)
    stored = _checked_affine(name, affine)
    data = _without_nan(_read(image, name).reshape(image.shape[:3]), name)
    if not allow_empty and not data.any():
        raise UserError(f'{name}: holds nothing but zeros; was it exported or masked wrongly?')
    orientation = nib.orientations.io_orientation(stored)
    affine = stored @ nib.orientations.inv_ornt_aff(orientation, data.shape)
    header = plain_header(image.header) if isinstance(image.header, nib.Nifti1Header) else None
    data = nib.orientations.apply_orientation(data, orientation)
    warnings = (*image.extra.get(WARNINGS, ()), *warnings, *_orientation_warnings(image.header))
    return Volume(data, affine, name, Original(stored, header), warnings)


def _in_mm(image: SpatialImage, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine in mm, by the unit that a NIfTI header names, and a warning where it is wrong."""
    affine = np.asarray(image.affine, np.float64)
    if not isinstance(image.header, nib.Nifti1Header):
        return affine, ()
    try:
        unit = image.header.get_xyzt_units()[0]
    except KeyError:  # a code that NIfTI does not have
        return affine, ()
    factor = _MM_PER_UNIT.get(unit, 1.0)
    if factor == 1.0:
        return affine, ()
    scaled = np.diag([factor, factor, factor, 1.0]) @ affine
    if _is_plausible(scaled) or not _is_plausible(affine):
        return scaled, ()
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return affine, (
        f'its header says that lengths are in {unit}s, which cannot be: voxels of '
        f'{" x ".join(f"{size:.3g}" for size in sizes)} are read as mm',
    )


def _is_plausible(affine: np.ndarray) -> bool:
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(VOXEL_MM[0] <= sizes.min() and sizes.max() <= VOXEL_MM[1])


def _orientation_warnings(header) -> tuple[str, ...]:
    """A header without form codes, or of MGH without directions."""
    if isinstance(header, nib.Nifti1Header):
        unknown = header['sform_code'] <= 0 and header['qform_code'] <= 0
    elif isinstance(header, nib.MGHImage.header_class):
        unknown = header['goodRASFlag'] <= 0
    else:
        unknown = False
    return (NO_ORIENTATION,) if unknown else ()


def _without_nan(data: np.ndarray, name: str) -> np.ndarray:
    """NaN around the brain, as SPM writes it, becomes background: 0, or darker than the rest.

    Then so do a few NaN in the brain: voxels that a mask made from a threshold left out.

    Raises:
      UserError: infinite values, or NaN where there are none around the brain, or too many.
    """
    finite = np.isfinite(data)
    if finite.all():
        return data
    missing = np.isnan(data)
    only_nan = bool((missing | finite).all() and finite.any())
    enclosed = ndimage.binary_fill_holes(finite) & missing
    if only_nan and (missing & ~enclosed).any() and enclosed.sum() < MOST_HOLES * finite.sum():
        lowest, highest = float(data[finite].min()), float(data[finite].max())
        background = min(0.0, lowest - 0.01 * (highest - lowest)) if lowest < 0 else 0.0
        return np.where(missing, np.float32(background), data)
    where = ' inside the brain' if only_nan and enclosed.any() else ''
    raise UserError(
        f'{name}: holds NaN or infinite values{where}, or larger ones than 32-bit numbers '
        'can hold (3e38); replace them, for example by 0'
    )


def _checked_affine(name: str, affine: np.ndarray) -> np.ndarray:
    """The affine, if its axes span space and have lengths that a scanner can make."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * sizes.prod():
        raise UserError(f'{name}: its affine is singular; mend the sform or qform of its header')
    if sizes.min() < VOXEL_MM[0] or sizes.max() > VOXEL_MM[1]:
        raise UserError(
            f'{name}: has voxels of {sizes[0]:.3g} x {sizes[1]:.3g} x {sizes[2]:.3g} '
            'mm, which no scan has; mend its header (is it in metres?)'
        )
    return affine


def _read(image: SpatialImage, name: str) -> np.ndarray:
    """The voxels of an image, which nibabel reads from its file only now."""
    try:
        with np.errstate(over='ignore'):  # values that do not fit become infinite: an error above
            return np.asarray(image.get_fdata(dtype=np.float32, caching='unchanged'))
    except Exception as error:  # EOFError, zlib.error, OSError, ValueError, by format and platform
        raise UserError(f'{name}: is truncated or damaged; copy it again') from error


def strip_ending(path: str | os.PathLike[str]) -> str:
    """File name without .nii.gz or another ending of an image file."""
    return Path(path).name.removesuffix(ending_of(path))


def save_volume(path: str | os.PathLike[str], data: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI file: masks (bool, uint8) as uint8, everything else as float32.

    The sform always holds `affine`. The qform, a rotation with voxel sizes, holds it too, unless
    the affine has shear: then the qform code is 0, so that no reader uses a wrong geometry. The
    file is written under another name, then renamed.
    """
    _save(Path(path), _aligned(_storable(data), affine))


def save_like(path: str | os.PathLike[str], data: np.ndarray, scan: Volume) -> None:
    """Write a volume on a scan's voxels with the voxel order, affine and header of that scan.

    Args:
      path: a .nii or .nii.gz file, written under another name, then renamed.
      data, scan: see `image_like`.
    """
    _save(Path(path), image_like(data, scan))


def image_like(data: np.ndarray, scan: Volume) -> nib.Nifti1Image:
    """A volume on a scan's voxels as a NIfTI image that is stored as the scan was.

    Args:
      data: (x, y, z) in RAS+ order, as `scan.data`; masks become uint8, everything else float32.
      scan: gives the voxel order, the affine and, if it was NIfTI, the header.
    """
    original = scan.original or Original(scan.affine, None)
    ras, stored = (nib.orientations.io_orientation(a) for a in (scan.affine, original.affine))
    data = _storable(data)
    data = nib.orientations.apply_orientation(data, nib.orientations.ornt_transform(ras, stored))
    if original.header is None:
        return _aligned(data, original.affine)
    header = original.header.copy()
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1.0, 0.0)
    header.set_xyzt_units('mm', 'sec')  # many scans do not say, and BIDS wants it
    header['cal_max'] = header['cal_min'] = 0.0  # the display range of the scan, not of this
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with quiet_nibabel():
        return kind(data, original.affine, header)


def _aligned(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units('mm', 'sec')
    image.set_sform(affine, code=_XFORM_ALIGNED)
    image.set_qform(affine, code=0 if _has_shear(affine) else _XFORM_ALIGNED)
    return image


def _storable(data: np.ndarray) -> np.ndarray:
    return data.astype(np.uint8 if data.dtype in (np.bool_, np.uint8) else np.float32)


def _save(path: Path, image: nib.Nifti1Image) -> None:
    with written_beside(path) as partial:
        nib.save(image, partial)


def _has_shear(affine: np.ndarray) -> bool:
    """Whether the voxel axes are not at right angles (to 1e-4)."""
    axes = np.asarray(affine)[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)
