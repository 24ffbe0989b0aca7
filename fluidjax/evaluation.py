"""Evaluate a run: counterparts, anomaly maps, scores beside the trivial rows, pictures.

    subjects -> Detector -> anomaly maps -> scores -> metrics.json, subjects.csv, report.html

The threshold of every row is chosen on validation subjects, healthy scans with lesions simulated by
the training's own law: it needs no diseased scan, so a user without any gets one too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from data_pipelines.subject import Subject
from fluidjax.detect import baselines, evaluate, metrics
from fluidjax.detect.figures import Panel, subject_figure
from fluidjax.detect.report import write_report
from fluidjax.detector import Detector, Output
from fluidjax.experiment import (
    Run,
    check_cohort_of,
    derived_seed,
    load_run,
    open_cohort,
)
from fluidjax.files import write_bytes, write_text
from fluidjax.fluid.randomize import randomize_batch
from fluidjax.stages import fluid_settings

MAX_PICTURED = 12


def with_simulated_lesions(
    run: Run, cases: Sequence[Subject], seed: int, bank: np.ndarray | None = None
) -> list[Subject]:
    """Healthy cases with a lesion each, drawn by the training's law from a seed of its own.

    Args:
        run: its fluid settings and grid are used.
        cases: healthy cases.
        seed: of the draws.
        bank: real lesion masks `(n, x, y, z)` uint8, as in training, or None.
    """
    settings = dataclasses.replace(fluid_settings(run.config), diseased_probability=1.0)
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


def darker_on(cases: Sequence[Subject]) -> bool:
    """Whether darkness, not brightness, ranks the lesions of these cases higher (mean AP)."""

    def score(darker: bool) -> float:
        return float(np.nanmean([
            metrics.average_precision(
                baselines.intensity_map(c.image, c.brain, darker), c.lesion, c.brain)
            for c in cases]))

    return score(True) >= score(False)


def choose_thresholds(rows: dict[str, Output], cases: Sequence[Subject]) -> dict[str, float]:
    """For each row the threshold with the best pooled Dice over the cases."""
    truths, regions = [c.lesion for c in cases], [evaluate.region_of(c) for c in cases]
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
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need

    run = load_run(workdir)
    cohort = open_cohort(run.config)
    check_cohort_of(workdir, cohort)
    train = input_pipeline.subjects(cohort, 'train')
    detector = Detector(run, baselines.mean_brain(subject.image for subject in train))
    healthy = list(input_pipeline.subjects(cohort, 'validation'))
    bank = input_pipeline.lesion_bank(cohort)
    half = len(healthy) // 2 if 'test' not in cohort.sizes else len(healthy)
    validation = with_simulated_lesions(
        run, healthy[:max(half, 1)], derived_seed(run.config.seed, 'validation lesions'), bank)
    darker = darker_on(validation)
    detector.warm_up(validation[0])
    thresholds = choose_thresholds(detector.rows(validation, darker), validation)
    if 'test' in cohort.sizes:
        name, cases = cohort.name, list(input_pipeline.subjects(cohort, 'test'))
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
    cohort: str, rows: dict[str, Output], cases: Sequence[Subject], thresholds: dict[str, float]
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
    cohort: str, run: Run, rows: dict[str, Output], cases: Sequence[Subject],
    thresholds: dict[str, float],
) -> list[Panel]:
    method = run.name
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
    facts = {'run': workdir.name, 'method': run.name, 'step': run.step,
             'seed': run.config.seed, 'grid': f'{run.grid.shape} voxels of {run.grid.spacing} mm'}
    write_report(folder / 'report.html', f'fluidjax: {run.name}', run.config.to_dict(),
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
        width = max(map(len, (*methods, cohort))) + 1
        lines.append(cohort.ljust(width) + ''.join(s.rjust(16) for s in shown))
        for method, scores in methods.items():
            cells = (scores[s]['mean'] for s in shown)
            lines.append(method.ljust(width) + ''.join(
                ('-' if v is None else f'{v:.3f}').rjust(16) for v in cells))
    return '\n'.join(lines)
