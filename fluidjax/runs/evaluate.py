"""Evaluation of a run: counterparts, anomaly maps, scores beside those of trivial rows, pictures.

    subjects -> Detector -> anomaly maps -> scores -> metrics.json, subjects.csv, report.html

Recipe and thresholds of every row are chosen on validation subjects: healthy scans with simulated
lesions of several kinds (`laws.MIXTURE`). So no diseased scans are needed to choose them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import scan_folders
from fluidjax.base.disk import check_output
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes
from fluidjax.base.names import short_name
from fluidjax.base.subject import Subject
from fluidjax.detect import evaluate
from fluidjax.detect.figures import Panel, map_scale, subject_figure, with_pictures
from fluidjax.detect.report import HEADLINE, write_report
from fluidjax.detect.scores import verdict
from fluidjax.runs import package
from fluidjax.runs import thresholds as calibration
from fluidjax.runs.cases import healthy_of, own_test_set
from fluidjax.runs.cohort import check_cohort_of, open_cohort, trained_contrasts
from fluidjax.runs.detector import Detector, Output
from fluidjax.runs.load import Run, load_run
from fluidjax.runs.rows import rows_of
from fluidjax.runs.scoring import Calibrated, calibrated, scored, scores_of

MAX_PICTURED = 12


def run_evaluation(
    workdir: Path,
    save_volumes: bool = True,
    out: Path | None = None,
    scans: Mapping[str, str] | None = None,
    contrast: str = '',
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
        contrast: the one, of several that a run is for, that recipes and thresholds are chosen for
            and that it is tested on; '' for all. `out` is needed then, too.

    Returns:
        Path of the report.

    Raises:
        UserError: there is no trained run, a cohort that cannot be read, or a folder that cannot be
            written to.
    """
    home, folder = _where_to_write(workdir, out, bool(scans or contrast))
    for place in {home, folder}:
        check_output(place, '--workdir' if out is None else '--out')
    run = load_run(workdir)
    if contrast:
        run = _for_contrast(run, contrast)
    config = _with_scans(run.config, workdir, scans or {})
    cohort = open_cohort(config)
    if not scans and not contrast:
        check_cohort_of(workdir, run.text('cohort.json'), cohort)
    name, cases, split = own_test_set(config, cohort)
    training = healthy_of(config, cohort, 'train')
    detector = Detector(run)
    rows = rows_of(detector, training)
    search = bool(run.config.detect.get('search', True))
    chosen = calibrated(rows, split, training, detector, search)
    thresholds = {row: one.thresholds['dice'] for row, one in chosen.items()}
    shown = Shown(name, run.name, thresholds[run.name], folder if save_volumes else None)
    folder.mkdir(parents=True, exist_ok=True)
    with scores_of(chosen, folder) as scores:
        for batch, outputs in scored(rows, chosen, cases, detector, scores):
            shown.add(batch, outputs)
        table = [
            {'cohort': name, 'method': row, **line}
            for row, one in scores.items()
            for line in one.lines()
        ]
        summary = {name: {row: one.summary() for row, one in scores.items()}}
        curves = {name: {row: one.curve() for row, one in scores.items()}}
        reliability = {name: scores[run.name].reliability()}
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
        shown.panels(),
        thresholds,
        facts,
        curves,
        {name: {row: verdict(scores) for row, scores in summary[name].items()}},
        {row: one.choice.recipe.in_words() for row, one in chosen.items()},
        reliability,
    )
    (folder / 'metrics.json').unlink(missing_ok=True)  # never scores of other thresholds
    _save_choices(home, run, chosen)
    evaluate.write_metrics(folder / 'metrics.json', summary)
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
        chosen[run.name].certainty,
    )


def _for_contrast(run: Run, contrast: str) -> Run:
    """A run as one for a single contrast of those that it is for."""
    known = trained_contrasts(run.config)
    if contrast not in known:
        raise UserError(f'--contrast: {contrast} is none of those of this run, {", ".join(known)}')
    if 'synthesis' not in run.config:
        return run
    config = run.config.copy_and_resolve_references()
    config.synthesis.contrasts = (contrast,)
    return dataclasses.replace(run, config=config)


def _where_to_write(workdir: Path, out: Path | None, other_scans: bool) -> tuple[Path, Path]:
    """The folder of the thresholds, and the folder of the report."""
    if out is not None:
        return out, out
    if package.is_package(workdir):
        beside = workdir.with_name(f'{workdir.stem}-eval')
        return beside, beside
    if other_scans:
        raise UserError(
            f'{workdir}: to evaluate it on other scans or for one contrast give --out=DIR, so that '
            'its own scores and thresholds are kept'
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
            f'--{next(iter(scans))}: needs --data_dir=DIR, a folder of healthy scans, on which '
            'thresholds are chosen'
        )
    changed = ConfigDict(config.to_dict())
    if scans:
        folders = dict.fromkeys(('data_dir', 'test_dir', 'lesion_dir'), '')
        labels = _labels_of(config.cohort.get('labels', ''), scans.get('data_dir', ''))
        fresh = {'name': 'nifti', **folders, 'embedded': 0, 'labels': labels}
        changed.cohort.update({**fresh, **scans})
    return changed


def _labels_of(labels: str, folder: str) -> str:
    """The label table of a run that is evaluated on a folder; '' if that holds scans."""
    if not labels or not folder:
        return ''
    try:
        scan_folders.find_cases(folder, '--data_dir')
    except UserError:  # no scan by its name
        return labels
    return ''


class Shown:
    """Pictures and volumes of the test cases, which come one batch after another.

    The volumes of the first `MAX_PICTURED` cases are kept for the report. Pictures share the colour
    scale of these.

    Args:
        cohort: name of the test set.
        method: the row whose maps are shown; those of the others only beside them.
        threshold: of that row.
        folder: of the evaluation, to write a folder of files for each case; None: none are written.
    """

    def __init__(self, cohort: str, method: str, threshold: float, folder: Path | None) -> None:
        self._cohort, self._method, self._threshold = cohort, method, threshold
        self._folder = folder
        self._first: list[Panel] = []

    def add(self, cases: Sequence[Subject], outputs: Mapping[str, Output]) -> None:
        """Keep the first cases, and write the files of all."""
        own = outputs[self._method]
        for number, case in enumerate(cases):
            others = {name: one.maps[number].copy() for name, one in outputs.items()}
            counterpart, made = own.counterparts[number].copy(), others[self._method]
            panel = Panel(
                self._cohort, self._method, case, counterpart, made, self._threshold, others
            )
            if self._folder is not None:
                spread = None if own.uncertainty is None else own.uncertainty[number]
                save_volumes_of(self._place(panel), panel, spread)
            if len(self._first) < MAX_PICTURED:
                self._first.append(panel)
            elif self._folder is not None:
                picture = subject_figure(panel, map_scale(self._first))
                write_bytes(self._place(panel) / 'picture.png', picture)

    def panels(self) -> list[Panel]:
        """The first cases with their pictures, which are written if files are."""
        panels = with_pictures(self._first)
        if self._folder is not None:
            for panel in panels:
                write_bytes(self._place(panel) / 'picture.png', panel.picture)
        return panels

    def _place(self, panel: Panel) -> Path:
        return self._folder / 'subjects' / short_name(panel.subject.name)


def save_volumes_of(folder: Path, panel: Panel, uncertainty: np.ndarray | None = None) -> None:
    """Write the volumes of a subject, in the scan's own world."""
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
