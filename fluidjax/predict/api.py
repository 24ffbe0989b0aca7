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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import scan_images
from data_pipelines.scan_images import Image, Scan
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Subject
from fluidjax.detect.evaluate import voxel_ml
from fluidjax.predict.on_scan import predicted_on_scan
from fluidjax.predict.scan_input import Steps, on_model_grid, subject_of
from fluidjax.runs import package, thresholds
from fluidjax.runs import train as training
from fluidjax.runs.detector import Detector, Output
from fluidjax.runs.load import Run, load_run

__all__ = ['Detection', 'Model', 'load', 'train']


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
            raise UserError(
                f'{path}: {run.config.method} must be told where the lesion is, so it '
                'finds none; load a run of another method'
            )
        self.run, self.path = run, path
        self._detector = Detector(run)

    def detect(
        self, scans: Scan | Sequence[Scan], threshold: str | float = 'dice', steps: Steps = Steps()
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
            return thresholds.load(self.path, self.run.name, self.run.step, threshold)
        return float(threshold)

    def _detect_one(self, scan: Scan, threshold: float, steps: Steps) -> Detection:
        image, volume = scan_images.read(scan)
        made = on_model_grid(volume, self.run, steps)
        case = subject_of('scan', made)
        return _on_scan(
            self._detector.detect([case]),
            case,
            made.overlap,
            made.warnings,
            threshold,
            volume,
            image,
        )


def load(run: str | os.PathLike | None = None) -> Model:
    """A trained model.

    Args:
        run: a run's folder or a model package; None for the model that comes with fluidjax.

    Raises:
        UserError: it is neither, or cannot be used.
    """
    path = package.BUNDLED if run is None else Path(run).expanduser()
    return Model(load_run(path), path)


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
    training.train(config, path)
    model = load(path)
    if evaluate and not _is_evaluated(model):
        from fluidjax.runs.evaluate import run_evaluation

        run_evaluation(path, save_volumes=False)
    return model


def _is_evaluated(model: Model) -> bool:
    try:
        thresholds.load(model.path, model.run.name, model.run.step)
    except UserError:
        return False
    return True


def _on_scan(
    output: Output,
    case: Subject,
    overlap: float,
    warnings: tuple[str, ...],
    threshold: float,
    volume: Volume,
    image: Image,
) -> Detection:
    """The detection of one scan, from the model's grid to the voxels of the image."""
    spread = None if output.uncertainty is None else output.uncertainty[0]
    found = predicted_on_scan(
        case, output.counterparts[0], output.maps[0], spread, threshold, volume
    )

    def place(data: np.ndarray) -> nib.Nifti1Image:
        kind = np.uint8 if data.dtype == bool else np.float32
        return scan_images.on_image(data.astype(kind), volume, image)

    return Detection(
        healthy=place(found.healthy_in_scan_units),
        anomaly_map=place(found.anomaly_map),
        uncertainty=None if found.uncertainty is None else place(found.uncertainty),
        mask=place(found.mask),
        brain_mask=place(found.brain),
        threshold=threshold,
        volume_ml=float(found.mask.sum()) * voxel_ml(image.affine),
        overlap=overlap,
        warnings=warnings,
    )
