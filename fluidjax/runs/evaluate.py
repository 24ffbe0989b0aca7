"""Evaluation of a run: counterparts, anomaly maps, scores beside those of trivial rows, pictures.

    subjects -> Detector -> anomaly maps -> scores -> metrics.json, subjects.csv, report.html

Recipe and thresholds of every row are chosen on validation subjects: healthy scans with simulated
lesions of several kinds (`laws.MIXTURE`). So no diseased scans are needed to choose them.
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
from fluidjax.detect import curves, evaluate
from fluidjax.detect.figures import Panel, with_pictures
from fluidjax.detect.report import HEADLINE, write_report
from fluidjax.detect.scores import verdict
from fluidjax.runs import package
from fluidjax.runs import thresholds as calibration
from fluidjax.runs.cases import own_test_set
from fluidjax.runs.cohort import check_cohort_of, open_cohort
from fluidjax.runs.detector import Detector, Output
from fluidjax.runs.load import Run, load_run
from fluidjax.runs.rows import Row, output, rows_of
from fluidjax.runs.scoring import Calibrated, calibrated, healthy_of, scored

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
    name, cases, split = own_test_set(run.config, cohort)
    training = training_scans(cohort)
    detector = Detector(run)
    rows = rows_of(detector, training)
    search = bool(run.config.detect.get('search', True))
    chosen = {row: calibrated(rows[row], split, training, detector, search) for row in rows}
    _save_choices(home, run, chosen)
    outputs = {row: output(rows[row], chosen[row].choice, cases, detector) for row in rows}
    summary, table = _scores(name, rows, outputs, chosen, cases, detector)
    thresholds = {row: one.thresholds['dice'] for row, one in chosen.items()}
    panels = _panels(name, run, outputs, cases, thresholds)
    panels = with_pictures(panels if save_volumes else panels[:MAX_PICTURED])
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
        {name: {row: curve_of(made, cases) for row, made in outputs.items()}},
        {name: {row: verdict(scores) for row, scores in summary[name].items()}},
        {row: one.choice.recipe.in_words() for row, one in chosen.items()},
    )
    if save_volumes:
        spreads = outputs[run.name].uncertainty
        for number, panel in enumerate(panels):
            save_panel(
                folder / 'subjects' / short_name(panel.subject.name),
                panel,
                None if spreads is None else spreads[number],
            )
    print(scores_text(summary))
    return folder / 'report.html'


def _save_choices(folder: Path, run: Run, chosen: Mapping[str, Calibrated]) -> None:
    """Write recipes and thresholds of all rows."""
    calibration.save(
        folder,
        run,
        {row: one.thresholds for row, one in chosen.items()},
        {row: one.choice for row, one in chosen.items()},
        {run.name: chosen[run.name].validation},
    )


def _scores(
    cohort: str,
    rows: Mapping[str, Row],
    outputs: Mapping[str, Output],
    chosen: Mapping[str, Calibrated],
    cases: Sequence[Subject],
    detector: Detector,
) -> tuple[dict, list[dict]]:
    """Scores of all rows: `{cohort: {row: {score: entry}}}`, and a line per row and case."""
    summary, table, healthy = {}, [], healthy_of(cases)
    for name, made in outputs.items():
        one = chosen[name]
        on_healthy = output(rows[name], one.choice, healthy, detector) if healthy else None
        lines, summary[name] = scored(made, cases, on_healthy, healthy, one.thresholds)
        table += [{'cohort': cohort, 'method': name, **line} for line in lines]
    return {cohort: summary}, table


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


def training_scans(cohort: object) -> list[Subject]:
    """The healthy training scans, which say what is usual."""
    from data_pipelines import input_pipeline  # imports TensorFlow, which predict does not need

    return list(input_pipeline.subjects(cohort, 'train'))


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
    """Write the volumes of a subject, in the scan's own world, and the panel's picture."""
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
    write_bytes(folder / 'picture.png', panel.picture)


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
