"""Evaluation of a run: counterparts, anomaly maps, scores beside those of trivial rows, pictures.

    subjects -> Detector -> anomaly maps -> scores -> metrics.json, subjects.csv, report.html

The thresholds of every row are chosen on validation subjects: healthy scans with lesions that are
simulated as in training. So no diseased scans are needed to choose them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fluidjax.base.disk import check_output
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes
from fluidjax.base.names import short_name
from fluidjax.base.subject import Subject
from fluidjax.detect import baselines, curves, evaluate
from fluidjax.detect.figures import Panel, subject_figure
from fluidjax.detect.report import HEADLINE, write_report
from fluidjax.detect.scores import verdict
from fluidjax.runs import package
from fluidjax.runs import thresholds as calibration
from fluidjax.runs.cases import own_test_set
from fluidjax.runs.cohort import check_cohort_of, open_cohort
from fluidjax.runs.detector import Detector, Output
from fluidjax.runs.load import Run, load_run

MAX_PICTURED = 12


def run_evaluation(
    workdir: Path,
    save_volumes: bool = True,
    out: Path | None = None,
    scans: Mapping[str, str] | None = None,
) -> Path:
    """Evaluate a run on its cohort's test subjects; see the module's docstring.

    Args:
        workdir: the folder of a trained run, or a model package.
        save_volumes: also write NIfTI files of every test subject.
        out: folder to write to, thresholds included; by default the run's own folder, and
            `NAME-eval` beside a package.
        scans: other scans than those of the training, as fields of `config.cohort`: `{'data_dir':
            DIR, 'test_dir': DIR}`, or `{'name': 'template'}` for the embedded cohort. For the
            folder of a run `out` is needed then.

    Returns:
        Path of the report.

    Raises:
        UserError: there is no trained run, a cohort that cannot be read, or a folder that cannot be
            written to.
    """
    home, folder = _where_to_write(workdir, out, bool(scans))
    for place in {home, folder}:
        check_output(place, '--workdir' if out is None else '--out')
    run = load_run(workdir)
    cohort = open_cohort(_with_scans(run.config, workdir, scans or {}))
    if not scans:
        check_cohort_of(workdir, run.text('cohort.json'), cohort)
    detector = Detector(run, training_brains(cohort))
    name, cases, split = own_test_set(run.config, cohort)
    darker = calibration.darker_on(split.validation)
    detector.warm_up(split.validation[0])
    thresholds = _choose_thresholds(home, detector, split.validation, darker)
    rows = detector.rows(cases, darker)
    summary, table = score_rows(name, rows, cases, thresholds)
    panels = _panels(name, run, rows, cases, thresholds)
    evaluate.write_metrics(folder / 'metrics.json', summary)
    evaluate.write_subjects_csv(folder / 'subjects.csv', table)
    facts = {
        'run': workdir.name,
        'method': run.name,
        'step': run.step,
        'seed': run.config.seed,
        'grid': f'{run.grid.shape} voxels of {run.grid.spacing} mm',
    }
    write_report(
        folder / 'report.html',
        f'fluidjax: {run.name}',
        run.config.to_dict(),
        summary,
        table,
        panels[:MAX_PICTURED],
        thresholds,
        facts,
        {name: {row: curve_of(output, cases) for row, output in rows.items()}},
        {name: {row: verdict(scores) for row, scores in summary[name].items()}},
    )
    if save_volumes:
        spreads = rows[run.name].uncertainty
        for number, panel in enumerate(panels):
            save_panel(
                folder / 'subjects' / short_name(panel.subject.name),
                panel,
                None if spreads is None else spreads[number],
            )
    print(scores_text(summary))
    return folder / 'report.html'


def _choose_thresholds(
    folder: Path, detector: Detector, cases: Sequence[Subject], darker: bool
) -> dict[str, float]:
    """Choose and write the thresholds of all rows; returns the ones with the best Dice."""
    run, rows = detector.run, detector.rows(cases, darker)
    chosen = calibration.calibrate_rows(rows, cases)
    scores = calibration.scores(rows[run.name], cases, chosen[run.name]['dice'])
    calibration.save(folder, chosen, run.step, {run.name: scores})
    return {row: rules['dice'] for row, rules in chosen.items()}


def _where_to_write(workdir: Path, out: Path | None, other_scans: bool) -> tuple[Path, Path]:
    """The folder of the thresholds, and the folder of the report."""
    if out is not None:
        return out, out
    if package.is_package(workdir):
        beside = workdir.with_name(f'{workdir.stem}-eval')
        return beside, beside
    if other_scans:
        raise UserError(
            f'{workdir}: to evaluate it on other scans give --out=DIR, so that its own scores and '
            'thresholds are kept'
        )
    return workdir, workdir / 'eval'


def _with_scans(config: ConfigDict, workdir: Path, scans: Mapping[str, str]) -> ConfigDict:
    """The configuration with the folders of other scans; a package does not name any."""
    if not scans and config.cohort.name == 'nifti' and not config.cohort.data_dir:
        raise UserError(
            f'{workdir}: a package contains no scans; name a folder of healthy ones, '
            '--data_dir=DIR, and of patients, --test_dir=DIR; or --embedded'
        )
    if scans and scans.get('name') != 'template' and not scans.get('data_dir'):
        raise UserError(
            '--test_dir: needs --data_dir=DIR, a folder of healthy scans, on which thresholds '
            'are chosen'
        )
    changed = ConfigDict(config.to_dict())
    if scans:
        fresh = {'name': 'nifti', 'data_dir': '', 'test_dir': '', 'lesion_dir': '', 'embedded': 0}
        changed.cohort.update({**fresh, **scans})
    return changed


def training_brains(cohort: object) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the training scans `(x, y, z)`, for the trivial rows."""
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need

    return baselines.mean_and_spread(
        subject.image for subject in input_pipeline.subjects(cohort, 'train')
    )


def score_rows(
    cohort: str, rows: dict[str, Output], cases: Sequence[Subject], thresholds: dict[str, float]
) -> tuple[dict, list[dict]]:
    """Scores of all rows: `{cohort: {row: {score: entry}}}`, and a line per row and case."""
    summary, table = {}, []
    for name, output in rows.items():
        lines, summary[name] = score_row(output, cases, thresholds[name])
        table += [{'cohort': cohort, 'method': name, **line} for line in lines]
    return {cohort: summary}, table


def score_row(
    output: Output, cases: Sequence[Subject], threshold: float
) -> tuple[list[evaluate.Row], dict[str, evaluate.Entry]]:
    """Scores of one row: a line per case, and their summary over all cases."""
    maps = list(output.maps)
    counterparts = None if output.counterparts is None else list(output.counterparts)
    lines = evaluate.score_method(maps, counterparts, cases, threshold, output.seconds)
    dice, sensitivity = evaluate.global_dice(maps, cases), evaluate.sensitivity_at_fp(maps, cases)
    return lines, evaluate.summarise(lines, dice, sensitivity)


def curve_of(output: Output, cases: Sequence[Subject]) -> curves.Curve:
    """The curves of a row on some cases, see `curves.curves_of`."""
    return curves.curves_of(
        list(output.maps),
        [case.lesion for case in cases],
        [evaluate.region_of(case) for case in cases],
    )


def _panels(
    cohort: str,
    run: Run,
    rows: dict[str, Output],
    cases: Sequence[Subject],
    thresholds: dict[str, float],
) -> list[Panel]:
    method = run.name
    return [
        Panel(
            cohort,
            method,
            case,
            rows[method].counterparts[i],
            rows[method].maps[i],
            thresholds[method],
            {name: row.maps[i] for name, row in rows.items()},
        )
        for i, case in enumerate(cases)
    ]


def save_panel(folder: Path, panel: Panel, uncertainty: np.ndarray | None = None) -> None:
    """Write the volumes of a subject, in the scan's own world, and its picture."""
    from data_pipelines.volume_io import save_volume

    case, marked = panel.subject, panel.anomaly_map >= panel.threshold
    volumes = {
        'scan': case.image,
        'counterpart': panel.counterpart,
        'anomaly_map': panel.anomaly_map,
        'anomaly_mask': (marked & case.brain).astype(np.uint8),
    }
    if uncertainty is not None:
        volumes['uncertainty'] = uncertainty
    if case.lesion is not None:
        volumes['lesion'] = case.lesion.astype(np.uint8)
    for name, data in volumes.items():
        save_volume(folder / f'{name}.nii.gz', data, case.affine)
    write_bytes(folder / 'picture.png', subject_figure(panel))


def scores_text(summary: dict) -> str:
    """The table of scores for the terminal."""
    lines = []
    for cohort, methods in summary.items():
        width = max(map(len, (*methods, cohort))) + 1
        lines.append(cohort.ljust(width) + ''.join(s.rjust(16) for s in HEADLINE))
        for method, scores in methods.items():
            cells = (scores[s]['mean'] for s in HEADLINE)
            lines.append(
                method.ljust(width)
                + ''.join(('-' if v is None else f'{v:.3f}').rjust(16) for v in cells)
            )
    return '\n'.join(lines)
