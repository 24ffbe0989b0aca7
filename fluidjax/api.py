"""fluidjax from Python, reached as `fluidjax.load` and so on: nibabel images in and out.

    model = fluidjax.load()                            # the model that comes with fluidjax
    found = model.detect(nib.load('scan.nii.gz'))
    found.mask.to_filename('mask.nii.gz')

What comes back lies on the voxels of the scan that went in. A mistake of the caller's is a
`fluidjax.UserError`, a ValueError whose message says what to do.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import volume_io
from data_pipelines.subject import Subject
from data_pipelines.volume_io import Volume
from fluidjax import calibration, experiment, run_files
from fluidjax.config import settings_from
from fluidjax.detect.evaluate import voxel_ml
from fluidjax.detector import Detector, Output
from fluidjax.errors import UserError
from fluidjax.experiment import Run
from fluidjax.fluid.settings import FluidSettings
from fluidjax.predicted_volumes import predicted_on_scan
from fluidjax.scan_input import Steps, on_model_grid, subject_of

__all__ = ['Detection', 'Model', 'UserError', 'load', 'pseudo_pathology', 'train']

Image = nib.spatialimages.SpatialImage
Scan = Image | str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Detection:
    """What was found in a scan; every image lies on the scan's own voxels, with its affine.

    Attributes:
        healthy: the healthy counterpart on the scan's own scale of intensity, float32; 0 outside
            the brain.
        anomaly_map: float32, in the model's unit (white matter near 0.82); 0 outside the brain.
        uncertainty: standard deviation of the map, or None where the model makes one counterpart.
        mask: uint8, where the map reaches the threshold within the brain.
        brain_mask: uint8.
        threshold: of the mask.
        volume_ml: volume of the mask, millilitres.
        overlap: Dice of the brain with the atlas's after registration; below 0.85 look at the
            scan before the numbers.
        warnings: what is odd about the scan, sentences.
    """

    healthy: nib.Nifti1Image
    anomaly_map: nib.Nifti1Image
    uncertainty: nib.Nifti1Image | None
    mask: nib.Nifti1Image
    brain_mask: nib.Nifti1Image
    threshold: float
    volume_ml: float
    overlap: float
    warnings: tuple[str, ...]


class Model:
    """A trained model; made by `load` or `train`.

    Attributes:
        run: its configuration, grid, method and parameters.
        path: the run's folder or package.
    """

    def __init__(self, run: Run, path: Path) -> None:
        if run.method.needs_mask:
            raise UserError(f'{path}: {run.config.method} must be told where the lesion is, so it '
                            'finds none; load a run of another method')
        self.run, self.path = run, path
        self._detector = Detector(run)

    def detect(
        self, scans: Scan | Sequence[Scan], threshold: str | float = 'dice',
        steps: Steps = Steps(),
    ) -> Detection | list[Detection]:
        """Find anomalies.

        Args:
            scans: a T1w scan as a nibabel image or a file's path, or several of them in a list.
            threshold: where a voxel is marked: 'dice', 'fpr_1', 'fpr_5' or 'fpr_10', chosen on
                validation subjects (`calibration`), or a number.
            steps: of preprocessing.

        Returns:
            A Detection; a list of them for a list.

        Raises:
            UserError: a scan that cannot be used, or no threshold of that name.
        """
        level = self._level(threshold)
        if isinstance(scans, (str, os.PathLike, Image)):
            return self._detect_one(scans, level, steps)
        return [self._detect_one(scan, level, steps) for scan in scans]

    def _level(self, threshold: str | float) -> float:
        if isinstance(threshold, str):
            return calibration.load(self.path, self.run.name, self.run.step, threshold)
        return float(threshold)

    def _detect_one(self, scan: Scan, threshold: float, steps: Steps) -> Detection:
        image, volume = _read(scan)
        made = on_model_grid(volume, self.run, steps)
        case = subject_of('scan', made)
        return _on_scan(self._detector.detect([case]), case, made.overlap, made.warnings,
                        threshold, volume, image)


def load(run: str | os.PathLike | None = None) -> Model:
    """A trained model.

    Args:
        run: a run's folder or a model package; None for the model that comes with fluidjax.

    Raises:
        UserError: it is neither, or cannot be used.
    """
    path = run_files.BUNDLED if run is None else Path(run).expanduser()
    return Model(experiment.load_run(path), path)


def train(
    config: ConfigDict | Mapping[str, Any], workdir: str | os.PathLike, evaluate: bool = True
) -> Model:
    """Train a configuration; skip what is done, resume what is not.

    Args:
        config: as a file in `configs` makes it: `configs.ldm.get_config('demo,cohort=nifti')`.
        workdir: folder of the run.
        evaluate: also choose its thresholds and write its report, unless it has them; without,
            `Model.detect` wants a threshold in numbers.

    Raises:
        UserError: a field that does not fit, or data that cannot be read.
    """
    path = Path(workdir).expanduser()
    config = config if isinstance(config, ConfigDict) else ConfigDict(dict(config))
    experiment.train(config, path)
    model = load(path)
    if evaluate and not _is_evaluated(model):
        from fluidjax.evaluation import run_evaluation

        run_evaluation(path, save_volumes=False)
    return model


def _is_evaluated(model: Model) -> bool:
    try:
        calibration.load(model.path, model.run.name, model.run.step)
    except UserError:
        return False
    return True


def pseudo_pathology(
    image: Scan, seed: int, settings: FluidSettings | Mapping[str, Any] | None = None,
    lesions: str | os.PathLike | None = None,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A healthy scan with lesions painted in, carried along a random flow, and their mask.

    Args:
        image: a healthy, skull-stripped T1w scan, as a nibabel image or a file's path.
        seed: of all draws, 0 or more: the same seed gives the same lesions.
        settings: what to draw, or the fields of `configs/fluid.py` that differ from it, such as
            `{'lesion_count': (1, 3), 'size_ml': (2.0, 30.0)}`.
        lesions: folder of lesion masks to carry, in MNI space or on the scan's voxels; without,
            lesions are cut from Perlin noise.

    Returns:
        The diseased image, float32 in the scan's own intensities and equal to it where nothing was
        painted, and the mask, uint8; both on the scan's voxels.

    Raises:
        UserError: a scan, a mask or a setting that cannot be used.
    """
    from configs import fluid
    from fluidjax import healthy_scan, scan_pairs

    if type(seed) is not int or not 0 <= seed < 2**31:
        raise UserError(f'seed: {seed!r} must be a whole number of 0 or more, below 2**31')
    if not isinstance(settings, FluidSettings):
        fields = {**fluid.get_config().to_dict(), **(settings or {})}
        settings = settings_from(FluidSettings, fields, '')
    original, volume = _read(image)
    healthy = healthy_scan.healthy_from(volume)
    folder = None if lesions is None else os.fspath(Path(lesions).expanduser().absolute())
    made = scan_pairs.one_pair(healthy, settings, seed, folder)
    own = [_own_order(values, volume, original) for values in made]
    return _like(own[0].astype(np.float32), original), _like(own[1], original)


def _read(scan: Scan) -> tuple[Image, Volume]:
    """A scan as nibabel has it, and as the pipeline reads it."""
    if not isinstance(scan, Image):
        path = Path(scan).expanduser()
        volume = volume_io.load_volume(path)
        return _three_axes(nib.load(path)), volume
    with tempfile.TemporaryDirectory() as folder:
        # Through a file, so that an image in memory is checked as one on disk is.
        path = Path(folder) / 'image.nii'
        try:
            nib.save(nib.Nifti1Image(np.asarray(scan.get_fdata(dtype=np.float32)), scan.affine),
                     path)
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


def _on_scan(
    output: Output, case: Subject, overlap: float, warnings: tuple[str, ...], threshold: float,
    volume: Volume, image: Image,
) -> Detection:
    """The detection of one scan, from the model's grid to the voxels of the image."""
    spread = None if output.uncertainty is None else output.uncertainty[0]
    found = predicted_on_scan(
        case, output.counterparts[0], output.maps[0], spread, threshold, volume)

    def place(data: np.ndarray) -> nib.Nifti1Image:
        kind = np.uint8 if data.dtype == bool else np.float32
        return _like(_own_order(data.astype(kind), volume, image), image)

    return Detection(
        healthy=place(found.healthy_in_scan_units), anomaly_map=place(found.anomaly_map),
        uncertainty=None if found.uncertainty is None else place(found.uncertainty),
        mask=place(found.mask), brain_mask=place(found.brain), threshold=threshold,
        volume_ml=float(found.mask.sum()) * voxel_ml(image.affine), overlap=overlap,
        warnings=warnings)
