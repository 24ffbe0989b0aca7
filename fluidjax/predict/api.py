"""fluidjax from Python, reached as `fluidjax.load` and so on: nibabel images in and out.

    model = fluidjax.load()                            # the model that comes with fluidjax
    detection = model.detect(nib.load('scan.nii.gz'))
    detection.mask.to_filename('mask.nii.gz')

Results lie on the voxels of the scan. A mistake of the caller's raises `fluidjax.UserError`, a
ValueError whose message says what to do.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import scan_images
from data_pipelines.mask_on_scan import on_voxels_of
from data_pipelines.preprocess import LEAST_LESION_IN_BRAIN
from data_pipelines.scan_images import Image, Scan
from data_pipelines.volume_io import Volume, image_like
from fluidjax.base import environment
from fluidjax.base.environment import single_precision
from fluidjax.base.errors import UserError
from fluidjax.base.subject import Preprocessed
from fluidjax.detect.evaluate import voxel_ml
from fluidjax.predict.on_scan import (
    COUNTERPARTS,
    Predicted,
    Steps,
    grid_of,
    on_model_grid,
    predicted_on_scan,
    subject_of,
)
from fluidjax.runs import package, thresholds
from fluidjax.runs import train as training
from fluidjax.runs.detector import Detector
from fluidjax.runs.load import Run, load_run, model_for, models_of

__all__ = ['Detection', 'Model', 'load', 'train']


@dataclasses.dataclass(frozen=True)
class Detection:
    """Anomalies of a scan; every image lies on the scan's own voxels, with its affine.

    Attributes:
        healthy: the healthy counterpart on the scan's own scale of intensity, float32; 0 outside
            the brain.
        anomaly_map: float32, in the unit of the model's recipe (intensity, in which white matter
            is near 0.82, or the spread of healthy scans); 0 outside the brain.
        probability: of a lesion in each voxel, by the value of the map, where lesions are as
            frequent as in the validation scans; None where the model does not know it.
        uncertainty: standard deviation of the map, or None where the model makes one counterpart.
        mask: uint8, where the map reaches the threshold within the brain.
        brain_mask: uint8.
        threshold: of the mask.
        contrast: that the scan looks like, 't1w', 't2w', 'flair' or 'other'; a package may have
            different models for them.
        volume_ml: volume of the mask, millilitres.
        overlap: Dice of the brain with the atlas's after registration; below 0.85 look at the
            scan before you use the results.
        warnings: sentences about the scan.
    """

    healthy: nib.Nifti1Image
    anomaly_map: nib.Nifti1Image
    probability: nib.Nifti1Image | None
    uncertainty: nib.Nifti1Image | None
    mask: nib.Nifti1Image
    brain_mask: nib.Nifti1Image
    threshold: float
    contrast: str
    volume_ml: float
    overlap: float
    warnings: tuple[str, ...]


class Model:
    """A trained model, from `load` or `train`.

    Attributes:
        run: its configuration, grid, method and parameters.
        path: the run's folder or package.
    """

    def __init__(self, run: Run, path: Path) -> None:
        if run.method.needs_mask:
            raise UserError(
                f'{path}: {run.config.method} needs a mask of the lesion, so it cannot find any; '
                'load a run of another method'
            )
        self.run, self.path = run, path
        self._runs = models_of(run)
        self._detectors: dict[int, Detector] = {}

    @single_precision
    def detect(
        self,
        scans: Scan | Sequence[Scan],
        threshold: str | float = 'dice',
        steps: Steps = Steps(),
        counterpart: str = 'filled',
    ) -> Detection | list[Detection]:
        """Find anomalies.

        Args:
            scans: a T1w scan as a nibabel image or a file's path, or several of them in a list.
            threshold: a voxel is marked where its map is at least this: 'dice', 'fpr_1', 'fpr_5',
                'fpr_10' or 'healthy_1ml', chosen on validation subjects (`runs.thresholds`), or a
                number.
            steps: of preprocessing.
            counterpart: what `healthy` is, 'filled': the scan with its marked voxels replaced, or
                'model': the model's own image.

        Returns:
            A Detection; a list of them for a list.

        Raises:
            UserError: a scan that cannot be used, or no threshold of that name.
        """
        if counterpart not in COUNTERPARTS:
            raise UserError(f'counterpart: {counterpart!r} is not one of {", ".join(COUNTERPARTS)}')
        self._level(self.run, threshold)  # fails before the first scan is read
        if isinstance(scans, (str, os.PathLike, Image)):
            return self._detect_one(scans, threshold, steps, counterpart)
        return [self._detect_one(scan, threshold, steps, counterpart) for scan in scans]

    @single_precision
    def fill(self, scan: Scan, lesion: Scan, steps: Steps = Steps()) -> nib.Nifti1Image:
        """Replace a known lesion by healthy tissue (`fluidjax.detect.filling`).

        Args:
            scan: a T1w scan as a nibabel image or a file's path.
            lesion: its mask, above 0 in the lesion; on other voxels than the scan's it is laid on
                them by its header (`data_pipelines.mask_on_scan`).
            steps: of preprocessing.

        Returns:
            The scan, equal to the given one but in the lesion and some mm around it.

        Raises:
            UserError: a scan or mask that cannot be used, or most of the mask lies outside the
                brain.

        Warns:
            UserWarning: what is unusual about scan and mask, and how much of the mask lies outside
                the brain, where nothing is filled.
        """
        volume = scan_images.read(scan)
        mask = on_voxels_of(scan_images.read(lesion), volume, 'lesion mask')
        marked = mask.data > 0
        predicted, preprocessed, _ = self._predicted(volume, lambda run: marked, steps, 'filled')
        outside = _outside_brain(mask, predicted.brain, volume)
        for warning in dict.fromkeys((*preprocessed.warnings, *mask.warnings, *outside)):
            warnings.warn(f'{volume.path}: {warning}', stacklevel=3)  # past `single_precision`
        filled = np.where(predicted.brain, predicted.healthy_in_scan_units, volume.data)
        return image_like(filled.astype(np.float32), volume)

    def _predicted(
        self,
        volume: Volume,
        marked: Callable[[Run], float | np.ndarray],
        steps: Steps,
        counterpart: str,
    ) -> tuple[Predicted, Preprocessed, Run]:
        """The results, and the run for the scan's contrast, which gave them."""
        steps = steps.of_run(self.run)
        preprocessed = on_model_grid(volume, grid_of(self.run), steps, tuple(self._runs))
        run = model_for(preprocessed.contrast, self._runs)
        if id(run) not in self._detectors:
            self._detectors[id(run)] = Detector(run, thresholds.load_choice(run))
        case = subject_of('scan', preprocessed)
        output = self._detectors[id(run)].detect([case])
        predicted = predicted_on_scan(
            case, output, 0, marked(run), volume, preprocessed.background, counterpart
        )
        return predicted, preprocessed, run

    def _level(self, run: Run, threshold: str | float) -> float:
        return thresholds.load(run, threshold) if isinstance(threshold, str) else float(threshold)

    def _detect_one(
        self, scan: Scan, threshold: str | float, steps: Steps, counterpart: str
    ) -> Detection:
        volume = scan_images.read(scan)
        level = lambda run: self._level(run, threshold)
        predicted, preprocessed, run = self._predicted(volume, level, steps, counterpart)

        def place(data: np.ndarray) -> nib.Nifti1Image:
            return image_like(data, volume)

        spread = predicted.uncertainty
        certainty = thresholds.load_certainty(run)
        probability = certainty.probability_of(predicted.anomaly_map, predicted.brain)
        return Detection(
            healthy=place(predicted.healthy_in_scan_units),
            anomaly_map=place(predicted.anomaly_map),
            probability=None if probability is None else place(probability),
            uncertainty=None if spread is None else place(spread),
            mask=place(predicted.mask),
            brain_mask=place(predicted.brain),
            threshold=level(run),
            contrast=preprocessed.contrast,
            volume_ml=float(predicted.mask.sum()) * voxel_ml(volume.affine),
            overlap=preprocessed.overlap,
            warnings=preprocessed.warnings,
        )


def _outside_brain(lesion: Volume, brain: np.ndarray, scan: Volume) -> list[str]:
    """What part of a lesion mask lies outside the brain of its scan; empty if none does.

    Raises:
        UserError: most of it does.
    """
    marked = lesion.data > 0
    inside = float(np.mean(brain[marked])) if marked.any() else 0.0
    if inside < LEAST_LESION_IN_BRAIN:
        raise UserError(
            f'{lesion.path}: {100 * inside:.0f} % of this lesion mask lie in the brain of '
            f'{scan.path}; do they belong together?'
        )
    outside = voxel_ml(scan.affine) * int(np.sum(marked & ~brain))
    what = f'{outside:.2g} ml of the lesion mask {lesion.path} lie outside the brain'
    return [f'{what} and were not filled'] if outside else []


@single_precision
def load(run: str | os.PathLike | None = None) -> Model:
    """Load a trained model.

    Args:
        run: a run's folder or a model package; None for the model that comes with fluidjax.

    Raises:
        UserError: it is neither, or cannot be used.
    """
    path = package.BUNDLED if run is None else Path(run).expanduser()
    return Model(load_run(path), path)


@single_precision
def train(
    config: ConfigDict | Mapping[str, Any], workdir: str | os.PathLike, evaluate: bool = True
) -> Model:
    """Train a configuration; a run that was interrupted goes on, a finished one is loaded.

    On a CPU all cores are used if JAX was not in use before the call.

    Args:
        config: from a file in `configs`: `configs.ldm.get_config('demo,cohort=nifti')`.
        workdir: folder of the run.
        evaluate: also choose its thresholds and write its report, unless it has them and its
            scores; without thresholds, `Model.detect` needs a number.

    Raises:
        UserError: a field that does not fit, or data that cannot be read.
    """
    path = Path(workdir).expanduser()
    config = config if isinstance(config, ConfigDict) else ConfigDict(dict(config))
    environment.use_all_cores()
    training.train(config, path)
    if evaluate and not thresholds.is_evaluated(path):
        from fluidjax.runs.evaluate import run_evaluation

        run_evaluation(path, save_volumes=False)
    return load(path)
