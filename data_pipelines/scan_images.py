"""nibabel images in and out: a scan in memory or on disk, and results on its own voxels."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from data_pipelines import volume_io
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError

Image = nib.spatialimages.SpatialImage
Scan = Image | str | os.PathLike


def read(scan: Scan) -> tuple[Image, Volume]:
    """A scan as nibabel has it, and as the pipeline reads it."""
    if not isinstance(scan, Image):
        path = Path(scan).expanduser()
        volume = volume_io.load_volume(path)
        return _three_axes(nib.load(path)), volume
    with tempfile.TemporaryDirectory() as folder:
        # Through a file, so that an image in memory is checked as one on disk is.
        path = Path(folder) / 'image.nii'
        try:
            nib.save(
                nib.Nifti1Image(np.asarray(scan.get_fdata(dtype=np.float32)), scan.affine), path
            )
            volume = volume_io.load_volume(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), _name_of(scan))) from error
        except Exception as error:  # nibabel reads its file only now, and raises whatever it meets
            raise UserError(f'{_name_of(scan)}: cannot be read ({error}); load it again') from error
    return _three_axes(scan), dataclasses.replace(volume, path=_name_of(scan))


def _name_of(scan: Image) -> str:
    return scan.get_filename() or 'the image'


def _three_axes(image: Image) -> Image:
    return image.slicer[..., 0] if image.ndim == 4 else image


def _own_order(data: np.ndarray, volume: Volume, image: Image) -> np.ndarray:
    """A volume in RAS+ order in the order of the image's own axes."""
    ras, own = (nib.orientations.io_orientation(a) for a in (volume.affine, image.affine))
    return nib.apply_orientation(data, nib.orientations.ornt_transform(ras, own))


def _like(data: np.ndarray, image: Image) -> nib.Nifti1Image:
    """An array on an image's voxels as a NIfTI image with its affine and, where it has one, its
    NIfTI header."""
    made = nib.Nifti1Image(data, image.affine, getattr(image, 'header', None))
    made.header.set_data_dtype(data.dtype)
    made.header.set_slope_inter(1.0, 0.0)
    made.header['cal_max'] = made.header['cal_min'] = 0.0  # a display range of the scan's
    return made


def on_image(data: np.ndarray, volume: Volume, image: Image) -> nib.Nifti1Image:
    """A volume `(x, y, z)` in RAS+ order as an image on the voxels of the scan it was read from."""
    return _like(_own_order(data, volume, image), image)
