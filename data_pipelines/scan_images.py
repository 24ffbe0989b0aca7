"""Scans as users of the Python interface give them: nibabel images in memory, or paths."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib

from data_pipelines import volume_io
from data_pipelines.volume_io import Volume

Image = nib.spatialimages.SpatialImage
Scan = Image | str | os.PathLike


def read(scan: Scan) -> Volume:
    """A scan as a volume; `volume_io.image_like` turns results on its voxels into images.

    Raises:
      UserError: it cannot be used; see `volume_io.volume_of`, the same for both.
    """
    if isinstance(scan, Image):
        return volume_io.volume_of(scan, scan.get_filename() or 'the image')
    return volume_io.load_volume(Path(scan).expanduser())
