"""Evaluate a run: counterparts, anomaly maps, scores beside the trivial rows, pictures.

    scan -> method.reconstruct -> residual_map -> scores -> metrics.json, subjects.csv, report.html

The threshold of every row is chosen on validation subjects, healthy scans with lesions simulated by
the training's own law: it needs no diseased scan, so a user without any gets one too.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fluidjax.config import settings_from
from fluidjax.detect import baselines, evaluate, metrics
from fluidjax.detect.anomaly_map import MapSettings, residual_maps
from fluidjax.detect.figures import Panel, subject_figure
from fluidjax.detect.report import write_report
from fluidjax.errors import UserError
from fluidjax.experiment import (
    Run,
    check_cohort_of,
    derived_seed,
    load_run,
    open_cohort,
)
from fluidjax.files import write_bytes, write_text
from fluidjax.fluid.randomize import randomize_batch

REFERENCES = ('scan', 'autoencoder')
MAX_PICTURED = 12


@dataclasses.dataclass(frozen=True)
class Case:
    """A subject to score, on the model's grid: see `fluidjax.detect.evaluate.Subject`."""

    name: str
    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray | None
    healthy: np.ndarray | None
    affine: np.ndarray


@dataclasses.dataclass(frozen=True)
class Output:
    """What a row of the table makes of some cases: a map each, counterparts where it has any."""

    maps: np.ndarray
    counterparts: np.ndarray | None
    seconds: float


class Detector:
    """A run's method as a function of scans, and the trivial rows beside it.

    Args:
        run: the trained run.
        mean_brain: mean of the training scans `(x, y, z)`, or None to leave that row out.
    """

    def __init__(self, run: Run, mean_brain: np.ndarray | None = None) -> None:
        detect = run.config.detect
        if detect.reference not in REFERENCES:
            raise UserError(f'config.detect.reference: {detect.reference!r} is not one of '
                            f'{", ".join(REFERENCES)}')
        self.run = run
        self.map_settings = settings_from(MapSettings, detect.map, 'detect.map')
        self._mean = mean_brain
        self._batch = int(detect.batch_size)
        if self._batch < 1:
            raise UserError(f'config.detect.batch_size: {self._batch} must be 1 or more')
        self._seed = derived_seed(run.config.seed, 'sampling')
        self._reconstruct = jax.jit(run.method.reconstruct)
        self._autoencode = jax.jit(run.method.autoencoder.reconstruct)

    def reconstruct(self, cases: Sequence[Case]) -> np.ndarray:
        """Healthy counterparts `(n, x, y, z)`, zero outside the brain."""
        return self._batched(self._reconstruct, cases, self.run.config.method)

    def autoencode(self, cases: Sequence[Case]) -> np.ndarray:
        """The cases after the autoencoder alone `(n, x, y, z)`."""
        return self._batched(self._autoencode, cases, 'autoencoder')

    def maps(
        self, scans: np.ndarray, counterparts: np.ndarray, cases: Sequence[Case]
    ) -> np.ndarray:
        """Anomaly maps `(n, x, y, z)` of scans against their counterparts."""
        brains = np.stack([case.brain for case in cases])
        spacing = tuple(float(h) for h in self.run.grid.spacing)
        made = [residual_maps(s[None], c[None], b[None], spacing, self.map_settings)
                for s, c, b in zip(scans, counterparts, brains)]
        return np.concatenate([np.asarray(m) for m in made])

    def warm_up(self, case: Case) -> None:
        """Compile for this run's shapes, so that the seconds reported are those of the work."""
        self.rows([case], darker=True)

    def detect(self, cases: Sequence[Case]) -> Output:
        """The run's own maps, from the scans to the maps."""

        def from_scans() -> tuple[np.ndarray, np.ndarray]:
            counterparts = self.reconstruct(cases)
            if self.run.config.detect.reference == 'scan':
                return self.maps(_images(cases), counterparts, cases), counterparts
            return self.maps(self.autoencode(cases), counterparts, cases), counterparts

        (maps, counterparts), seconds = _timed(from_scans)
        return Output(maps, counterparts, seconds / len(cases))

    def rows(self, cases: Sequence[Case], darker: bool) -> dict[str, Output]:
        """Every row of the table: the method, then the trivial ones."""
        images = _images(cases)
        rows = {self.run.config.method: self.detect(cases)}
        autoencoded, coding = _timed(lambda: self.autoencode(cases))
        maps, seconds = _timed(lambda: self.maps(images, autoencoded, cases))
        rows['autoencoder'] = Output(maps, autoencoded, (coding + seconds) / len(cases))
        if self._mean is not None:
            means = np.broadcast_to(self._mean, images.shape)
            maps, seconds = _timed(lambda: self.maps(images, means, cases))
            rows['mean_brain'] = Output(maps, means, seconds / len(cases))
        maps, seconds = _timed(lambda: np.stack(
            [baselines.intensity_map(c.image, c.brain, darker) for c in cases]))
        rows['intensity'] = Output(maps, None, seconds / len(cases))
        return rows

    def _batched(self, function: Callable, cases: Sequence[Case], name: str) -> np.ndarray:
        """Run over the cases in batches of one size, so that it compiles once."""
        images, size = _images(cases)[..., None], self._batch
        done = []
        for start in tqdm(range(0, len(cases), size), desc=name, unit='batch', mininterval=5.0,
                          leave=False):
            chunk = images[start:start + size]
            blank = np.zeros((size - len(chunk), *images.shape[1:]), images.dtype)
            padded = np.concatenate([chunk, blank])
            key = jax.random.fold_in(jax.random.key(self._seed), start)
            done.append(np.asarray(function(self.run.params, padded, key))[:len(chunk), ..., 0])
        return np.concatenate(done) * np.stack([case.brain for case in cases])


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the seconds it took."""
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def _images(cases: Sequence[Case]) -> np.ndarray:
    return np.stack([case.image for case in cases]).astype(np.float32)


def cases_of(cohort: Any, split: str) -> Iterator[Case]:
    """The subjects of a split, one by one."""
    from data_pipelines import input_pipeline

    fields = [field.name for field in dataclasses.fields(Case)]
    return (Case(**{name: getattr(subject, name) for name in fields})
            for subject in input_pipeline.subjects(cohort, split))


def lesion_bank(cohort: Any) -> np.ndarray | None:
    """The cohort's real lesion masks `(n, x, y, z)` uint8, or None."""
    from data_pipelines import input_pipeline

    return input_pipeline.lesion_bank(cohort)


def with_simulated_lesions(
    run: Run, cases: Sequence[Case], seed: int, bank: np.ndarray | None = None
) -> list[Case]:
    """Healthy cases with a lesion each, drawn by the training's law from a seed of its own.

    Args:
        run: its fluid settings and grid are used.
        cases: healthy cases.
        seed: of the draws.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
    """
    settings = dataclasses.replace(run.method.fluid, diseased_probability=1.0)
    randomize = jax.jit(lambda key, image, brain, bank: randomize_batch(
        key, image, brain, run.grid, settings, bank))
    made = []
    for number, case in enumerate(cases):
        key = jax.random.fold_in(jax.random.key(seed), number)
        pair = randomize(key, case.image[None, ..., None],
                         case.brain[None, ..., None].astype(np.float32), bank)
        healthy, diseased, mask = (np.asarray(v)[0, ..., 0] for v in pair[:3])
        made.append(dataclasses.replace(
            case, image=diseased, healthy=healthy, lesion=mask > 0, name=f'{case.name}-simulated'))
    return made


def darker_on(cases: Sequence[Case]) -> bool:
    """Whether darkness, not brightness, ranks the lesions of these cases higher (mean AP)."""

    def score(darker: bool) -> float:
        return float(np.nanmean([
            metrics.average_precision(
                baselines.intensity_map(c.image, c.brain, darker), c.lesion, c.brain)
            for c in cases]))

    return score(True) >= score(False)


def choose_thresholds(rows: dict[str, Output], cases: Sequence[Case]) -> dict[str, float]:
    """For each row the threshold with the best pooled Dice over the cases."""
    truths, regions = [c.lesion for c in cases], [c.brain for c in cases]
    return {name: float(metrics.threshold_for(list(row.maps), truths, regions))
            for name, row in rows.items()}


def run_evaluation(workdir: Path, save_volumes: bool = True) -> Path:
    """Evaluate a run on its cohort's test subjects; see the module's docstring.

    Args:
        workdir: a run of `fluidjax.main`.
        save_volumes: also write NIfTI files of every test subject.

    Returns:
        Path of the report.

    Raises:
        UserError: no trained run there, or a cohort that cannot be read.
    """
    run = load_run(workdir)
    cohort = open_cohort(run.config)
    check_cohort_of(workdir, cohort)
    detector = Detector(run, baselines.mean_brain(c.image for c in cases_of(cohort, 'train')))
    healthy = list(cases_of(cohort, 'validation'))
    bank = lesion_bank(cohort)
    half = len(healthy) // 2 if 'test' not in cohort.sizes else len(healthy)
    validation = with_simulated_lesions(
        run, healthy[:max(half, 1)], derived_seed(run.config.seed, 'validation lesions'), bank)
    darker = darker_on(validation)
    detector.warm_up(validation[0])
    thresholds = choose_thresholds(detector.rows(validation, darker), validation)
    if 'test' in cohort.sizes:
        name, cases = cohort.name, list(cases_of(cohort, 'test'))
    else:
        # Nobody gave diseased scans: simulated lesions in the other validation scans, and the
        # name says so.
        name = f'{cohort.name}-simulated'
        cases = with_simulated_lesions(
            run, healthy[half:], derived_seed(run.config.seed, 'test lesions'), bank)
    rows = detector.rows(cases, darker)
    folder = workdir / 'eval'
    summary, table = _score(name, rows, cases, thresholds)
    panels = _panels(name, run, rows, cases, thresholds)
    _write(folder, run, summary, table, thresholds, panels[:MAX_PICTURED], workdir)
    if save_volumes:
        for panel in panels:
            save_panel(folder / 'subjects' / panel.subject.name, panel)
    print(scores_text(summary))
    return folder / 'report.html'


def _score(
    cohort: str, rows: dict[str, Output], cases: Sequence[Case], thresholds: dict[str, float]
) -> tuple[dict, list[dict]]:
    summary, table = {}, []
    for method, row in rows.items():
        counterparts = None if row.counterparts is None else list(row.counterparts)
        scored = evaluate.score_method(
            list(row.maps), counterparts, cases, thresholds[method], row.seconds)
        summary[method] = evaluate.summarise(
            scored, evaluate.global_dice(list(row.maps), cases))
        table += [{'cohort': cohort, 'method': method, **one} for one in scored]
    return {cohort: summary}, table


def _panels(
    cohort: str, run: Run, rows: dict[str, Output], cases: Sequence[Case],
    thresholds: dict[str, float],
) -> list[Panel]:
    method = run.config.method
    return [
        Panel(cohort, method, case, rows[method].counterparts[i], rows[method].maps[i],
              thresholds[method], {name: row.maps[i] for name, row in rows.items()})
        for i, case in enumerate(cases)
    ]


def _write(
    folder: Path, run: Run, summary: dict, table: list[dict], thresholds: dict[str, float],
    panels: list[Panel], workdir: Path,
) -> None:
    evaluate.write_metrics(folder / 'metrics.json', summary)
    evaluate.write_subjects_csv(folder / 'subjects.csv', table)
    write_text(folder / 'thresholds.json',
               json.dumps(evaluate.json_safe(thresholds), indent=2) + '\n')
    facts = {'run': workdir.name, 'method': run.config.method, 'step': run.step,
             'seed': run.config.seed, 'grid': f'{run.grid.shape} voxels of {run.grid.spacing} mm'}
    write_report(folder / 'report.html', f'fluidjax: {run.config.method}', run.config.to_dict(),
                 summary, table, panels, thresholds, facts)


def save_panel(folder: Path, panel: Panel) -> None:
    """Write a subject's volumes, placed in the scan's own world, and its picture."""
    from data_pipelines.volume_io import save_volume

    case, found = panel.subject, panel.anomaly_map >= panel.threshold
    volumes = {'scan': case.image, 'counterpart': panel.counterpart,
               'anomaly_map': panel.anomaly_map,
               'anomaly_mask': (found & case.brain).astype(np.uint8)}
    if case.lesion is not None:
        volumes['lesion'] = case.lesion.astype(np.uint8)
    for name, data in volumes.items():
        save_volume(folder / f'{name}.nii.gz', data, case.affine)
    write_bytes(folder / 'picture.png', subject_figure(panel))


def scores_text(summary: dict) -> str:
    """The table of scores for the terminal."""
    shown = ('dice_validated', 'dice_global', 'dice_oracle', 'ap', 'auroc', 'lesion_f1', 'psnr',
             'seconds')
    lines = []
    for cohort, methods in summary.items():
        lines.append(cohort.ljust(16) + ''.join(s.rjust(16) for s in shown))
        for method, scores in methods.items():
            cells = (scores[s]['mean'] for s in shown)
            lines.append(method.ljust(16) + ''.join(
                ('-' if v is None else f'{v:.3f}').rjust(16) for v in cells))
    return '\n'.join(lines)
