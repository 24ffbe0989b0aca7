"""A configuration from training to a prediction with a few steps: does it run here, in what memory?

Each part runs in a process of its own, whose peak memory the system reports: training of all
stages, evaluation, prediction of one scan. The scans are simulated, so that no data are needed.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fluidjax.base import environment
from fluidjax.base.errors import UserError
from fluidjax.base.settings import load_config, save_config
from fluidjax.bench.timer import Table, peak_gb

HEALTHY_SCANS = 3
COLUMNS = (
    ('s', 'seconds', '10.1f'),
    ('s a step', 'seconds_per_step', '10.2f'),
    ('peak GB', 'peak_gb', '9.2f'),
)


def rehearse(config: ConfigDict, steps: int, scan: str = '', folder: str = '') -> dict[str, Any]:
    """Train, evaluate and predict, with few steps on few scans; prints a table.

    Args:
        config: the configuration; its cohort is replaced by simulated scans.
        steps: of every stage, rounded up to its `reuse` of latents.
        scan: the scan to predict; '': the simulated patient.
        folder: where scans and run are kept; '': a temporary folder that is removed.

    Returns:
        `parts`: for each part its seconds and the peak of the host's memory in GB; for stages
        also `seconds_per_step`, the mean over the steps without compilation where there are two.

    Raises:
        UserError: there is no such scan, the folder holds a rehearsal, or a part failed; its own
            message came before.
    """
    scan = str(Path(scan).expanduser()) if scan else ''
    if scan and not Path(scan).exists():
        raise UserError(f'--scan: there is no {scan}')
    place = Path(folder).expanduser() if folder else Path(tempfile.mkdtemp(prefix='rehearsal-'))
    try:
        place.mkdir(parents=True, exist_ok=True)
        if (place / 'rehearsal.json').exists():
            raise UserError(f'--keep: {place} holds a rehearsal already; name another folder')
        return {'steps': steps, 'parts': _parts(_shortened(config, steps, place), place, scan)}
    finally:
        if not folder:
            shutil.rmtree(place, ignore_errors=True)


def _parts(config: ConfigDict, place: Path, scan: str) -> list[dict[str, Any]]:
    save_config(place / 'rehearsal.json', config)
    table = Table(24, *COLUMNS)
    table.print_head(f'{config.method} {config.size}')
    done = []
    for name, work in (('scans', _make_scans), ('train', _train), ('eval', _evaluate)):
        done += _timed(name, work, (place,), table)
    for stage, seconds in _stages(place / 'run'):
        done.append({'part': stage, 'seconds_per_step': seconds})
        table.print_row(f'  {stage}', done[-1])
    return done + _timed('predict', _predict, (place, scan), table)


def _shortened(config: ConfigDict, steps: int, place: Path) -> ConfigDict:
    """The configuration with few steps, on the scans of this rehearsal."""
    short = ConfigDict(config.to_dict())
    for section in short.values():
        if not isinstance(section, ConfigDict) or 'training' not in section:
            continue
        training = section.training
        if not training.steps:  # a stage that this configuration does not have
            continue
        training.steps = -(-steps // training.reuse) * training.reuse
        training.update({'epochs': 0, 'patience': 0})
        every = {'log_every': training.reuse, 'checkpoint_every': training.steps}
        training.update(every | {'validate_every': training.steps, 'picture_every': 0})
    short.cohort.update(
        {
            'name': 'nifti',
            'data_dir': str(place / 'healthy'),
            'test_dir': str(place / 'patients'),
            'lesion_dir': '',
            'store': str(place / 'store'),
            'embedded': 0,
            'labels': '',
        }
    )
    short.start = ''
    return short


def _timed(name: str, work: Callable, arguments: tuple, table: Table) -> list[dict[str, Any]]:
    """Run one part in a new process; its seconds and its peak of memory."""
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe(duplex=False)
    began = time.perf_counter()
    process = context.Process(target=_run, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        peak = ours.recv()
    except EOFError:  # it ended without an answer
        peak = None
    process.join()
    if peak is None:
        raise UserError(
            f'{name}: failed (exit status {process.exitcode}); -9 means that the system ended it, '
            'which it does where memory is short'
        )
    row = {'part': name, 'seconds': time.perf_counter() - began, 'peak_gb': peak}
    table.print_row(name, row)
    return [row]


def _run(answer: Any, work: Callable, arguments: tuple) -> None:
    """In the new process: the work, then the peak of this process's memory in GB."""
    environment.set_up()
    try:
        work(*arguments)
    except UserError as error:
        print(f'fluidjax bench: {error}', file=sys.stderr)
        raise SystemExit(1) from None
    answer.send(max(peak_gb(), peak_gb(resource.RUSAGE_CHILDREN)))


def _make_scans(place: Path) -> None:
    """Healthy scans and a patient of the embedded cohort, as NIfTI files."""
    from data_pipelines.grids import GRIDS
    from data_pipelines.template_cohort import make_record
    from data_pipelines.volume_io import save_volume

    grid = GRIDS['demo']
    for number in range(HEALTHY_SCANS):
        made = make_record(grid, 'train', number)
        name = f'sub-{number + 1:02d}'
        save_volume(place / 'healthy' / name / f'{name}_T1w.nii.gz', made['image'], grid.affine)
    made = make_record(grid, 'test', 0)
    patient = place / 'patients' / 'sub-patient'
    save_volume(patient / 'sub-patient_T1w.nii.gz', made['image'], grid.affine)
    mask = np.asarray(made['lesion'], np.uint8)
    save_volume(patient / 'sub-patient_label-lesion_mask.nii.gz', mask, grid.affine)


def _train(place: Path) -> None:
    from fluidjax.runs.train import train

    environment.use_all_cores()
    train(load_config(place / 'rehearsal.json'), place / 'run')


def _evaluate(place: Path) -> None:
    from fluidjax.runs.evaluate import run_evaluation

    run_evaluation(place / 'run', save_volumes=False)


def _predict(place: Path, scan: str) -> None:
    patient = place / 'patients' / 'sub-patient' / 'sub-patient_T1w.nii.gz'
    words = [scan or str(patient), f'--workdir={place / "run"}', f'--out={place / "prediction"}']
    done = subprocess.run([sys.executable, '-m', 'fluidjax', 'predict', *words], check=False)
    if done.returncode:
        raise UserError(f'predict: failed with exit status {done.returncode}')


def _stages(workdir: Path) -> list[tuple[str, float]]:
    """Seconds per step of each stage, without the first line of the log, which has compilation."""
    lines: dict[str, list[float]] = {}
    for line in (workdir / 'metrics.jsonl').read_text('utf-8').splitlines():
        logged = json.loads(line)
        if 'seconds_per_step' in logged:
            lines.setdefault(logged['stage'], []).append(logged['seconds_per_step'])
    return [
        (stage, float(np.mean(seconds[1:] if len(seconds) > 1 else seconds)))
        for stage, seconds in lines.items()
    ]
