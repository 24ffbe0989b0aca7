"""Image files and nibabel images <-> arrays in RAS+ order with their affine."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from data_pipelines.image_files import check_one_volume, ending_of, open_image, quiet_nibabel
from fluidjax.base.errors import UserError

VOXEL_MM = (0.01, 100.0)  # edges beyond these are mistakes of a header
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
    """

    data: np.ndarray
    affine: np.ndarray
    path: str
    original: Original | None = None


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
      UserError: it is not one volume of real numbers, its affine is singular or has voxels of a
        size that no scan has, or its values are NaN, infinite or (unless `allow_empty`) all zero.
    """
    check_one_volume(name, image.shape, image.get_data_dtype())
    stored = _checked_affine(name, np.asarray(image.affine, np.float64))
    data = _read(image, name).reshape(image.shape[:3])
    if not np.isfinite(data).all():
        raise UserError(
            f'{name}: holds NaN or infinite values, or larger ones than 32-bit numbers '
            'can hold (3e38); replace them, for example by 0'
        )
    if not allow_empty and not data.any():
        raise UserError(f'{name}: holds nothing but zeros; was it exported or masked wrongly?')
    orientation = nib.orientations.io_orientation(stored)
    affine = stored @ nib.orientations.inv_ornt_aff(orientation, data.shape)
    header = image.header if isinstance(image.header, nib.Nifti1Header) else None
    data = nib.orientations.apply_orientation(data, orientation)
    return Volume(data, affine, name, Original(stored, header))


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


def check_same_shape(mask: Volume, scan: Volume, what: str = 'mask') -> None:
    """Raise a UserError unless a mask has one voxel for each voxel of its scan.

    Args:
      mask, scan: of one subject.
      what: kind of mask, for the message.
    """
    if mask.data.shape != scan.data.shape:
        raise UserError(
            f'{mask.path}: {what} of shape {mask.data.shape} on a scan of shape {scan.data.shape} '
            f'({scan.path}); give a mask with one voxel for each voxel of the scan'
        )


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
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = '.nii.gz' if path.name.endswith('.gz') else '.nii'
    partial = path.with_name(f'.{strip_ending(path)}.{os.getpid()}.partial{ending}')
    try:
        nib.save(image, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _has_shear(affine: np.ndarray) -> bool:
    """Whether the voxel axes are not at right angles (to 1e-4)."""
    axes = np.asarray(affine)[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)
