"""Image files <-> arrays with their geometry, and nothing else (`image_files` opens them)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from data_pipelines.image_files import ending_of, open_image, quiet_nibabel
from fluidjax.base.errors import UserError

VOXEL_MM = (0.01, 100.0)  # edges beyond these are mistakes of a header
# "Aligned": world coordinates of another file, here of the scan that the volume was made from.
_XFORM_ALIGNED = 2


@dataclasses.dataclass(frozen=True)
class Volume:
    """A scan or a mask as it lies in the scanner's world.

    Attributes:
      data: (x, y, z) float32, axes in RAS+ order.
      affine: voxel index -> world mm (RAS+), (4, 4) float64.
      path: the file it came from, for messages.
    """

    data: np.ndarray
    affine: np.ndarray
    path: str


def load_volume(path: str | os.PathLike[str], allow_empty: bool = False) -> Volume:
    """Read one 3-D volume, its axes reordered to RAS+ (no interpolation).

    Args:
      path: what `image_files.open_image` takes: NIfTI or MGH; a 4-D file that holds one volume is
        taken as that volume.
      allow_empty: accept a volume that is zero everywhere (a lesion mask of a healthy subject).

    Raises:
      UserError: `open_image` refuses the file, its affine is singular or of another size than a
        head's, or it holds NaN, infinity or (unless `allow_empty`) nothing but zeros.
    """
    path = Path(path)
    image = open_image(path)
    affine = _checked_affine(path, np.asarray(image.affine, np.float64))
    data = _read(image, path).reshape(image.shape[:3])
    if not np.isfinite(data).all():
        raise UserError(
            f'{path}: holds NaN or infinite values, or larger ones than 32-bit numbers '
            'can hold (3e38); replace them, for example by 0'
        )
    if not allow_empty and not data.any():
        raise UserError(f'{path}: holds nothing but zeros; was it exported or masked wrongly?')
    own = nib.orientations.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(own, data.shape)
    return Volume(nib.orientations.apply_orientation(data, own), affine, str(path))


def _checked_affine(path: Path, affine: np.ndarray) -> np.ndarray:
    """The affine, whose axes are three and have a length a scanner can make."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * sizes.prod():
        raise UserError(f'{path}: its affine is singular; mend the sform or qform of its header')
    if sizes.min() < VOXEL_MM[0] or sizes.max() > VOXEL_MM[1]:
        raise UserError(
            f'{path}: has voxels of {sizes[0]:.3g} x {sizes[1]:.3g} x {sizes[2]:.3g} '
            'mm, which no scan has; mend its header (is it in metres?)'
        )
    return affine


def _read(image: nib.spatialimages.SpatialImage, path: Path) -> np.ndarray:
    """The voxels, which nibabel reads only now."""
    try:
        with np.errstate(over='ignore'):  # what does not fit becomes infinite, and is reported so
            return np.asarray(image.get_fdata(dtype=np.float32, caching='unchanged'))
    except Exception as error:  # EOFError, zlib.error, OSError, ValueError, by format and platform.
        raise UserError(f'{path}: is truncated or damaged; copy it again') from error


def strip_ending(path: str | os.PathLike[str]) -> str:
    """File name without .nii.gz or another ending of an image file."""
    return Path(path).name.removesuffix(ending_of(path))


def save_volume(path: str | os.PathLike[str], data: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI file: masks (bool, uint8) as uint8, everything else as float32.

    The sform always holds `affine`. The qform, a rotation with voxel sizes, holds it too unless
    it has shear: then its code is 0, so that no reader takes a wrong geometry. Written beside,
    then renamed.
    """
    _save(Path(path), _aligned(_storable(data), affine))


def save_like(path: str | os.PathLike[str], data: np.ndarray, scan: Volume) -> None:
    """Write a volume that lies on a scan's voxels as a file with that scan's own voxel order,
    affine and, from a NIfTI file, header.

    Args:
      path: a .nii or .nii.gz file; written beside, then renamed.
      data: (x, y, z) in RAS+ order, as `scan.data`; masks as uint8, everything else as float32.
      scan: what `load_volume` made of the scan's file, which is read again for its header.
    """
    original = open_image(scan.path)
    ras, own = (nib.orientations.io_orientation(a) for a in (scan.affine, original.affine))
    data = nib.apply_orientation(_storable(data), nib.orientations.ornt_transform(ras, own))
    if isinstance(original, nib.MGHImage):
        image = _aligned(data, original.affine)
    else:
        header = original.header.copy()
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1.0, 0.0)
        header['cal_max'] = header['cal_min'] = 0.0  # a display range of the scan's, not of this
        kind = nib.Nifti2Image if header['sizeof_hdr'] == 540 else nib.Nifti1Image
        with quiet_nibabel():
            image = kind(data, original.affine, header)
    _save(Path(path), image)


def _aligned(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, affine)
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
