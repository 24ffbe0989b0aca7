"""Doing the trials of a sweep: one worker's loop, several workers on a machine, and progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fluidjax.base import cli
from fluidjax.base.errors import RESUME_ME, Stopped, UserError
from fluidjax.base.trials import Fields
from fluidjax.sweep.store import TrialStore

POLL_SECONDS = 2.0
Configure = Callable[[Fields], ConfigDict]


def do_trial(config: ConfigDict, folder: Path, saved: Callable[[], None]) -> dict[str, Any]:
    """Train and evaluate one trial; what is done of it is not done again.

    Returns:
        Its scores by name: those of the validation scans, `validation_ap` and `validation_dice`,
        and the means of the test set's; in other processes than the first nothing.
    """
    from fluidjax.runs import evaluate
    from fluidjax.runs.load import load_run
    from fluidjax.runs.train import train
    from fluidjax.training import parallel

    train(config, folder, saved=saved)
    if not parallel.is_first():
        return {}
    if not is_evaluated(folder):
        evaluate.run_evaluation(folder, save_volumes=False)
    return scores_of(folder, load_run(folder).name)


def is_evaluated(folder: Path) -> bool:
    """Whether the scores of a run are younger than its newest checkpoint."""
    scores = folder / 'eval' / 'metrics.json'
    checkpoints = [p.stat().st_mtime for p in (folder / 'checkpoints').glob('*/*')]
    return scores.is_file() and scores.stat().st_mtime > max(checkpoints)


def scores_of(folder: Path, row: str) -> dict[str, Any]:
    """A row's scores in an evaluated run's files."""
    tests = json.loads((folder / 'eval' / 'metrics.json').read_text())
    chosen = json.loads((folder / 'calibration.json').read_text())
    scores = {name: entry['mean'] for name, entry in next(iter(tests.values()))[row].items()}
    validation = chosen.get('validation', {}).get(row, {})
    return scores | {f'validation_{name}': value for name, value in validation.items()}


def work(
    store: TrialStore,
    configure: Configure,
    score: str,
    wait: bool = True,
    saved: Callable[[], None] = lambda: None,
) -> None:
    """Do trials until there are none; several workers on one store share them.

    Args:
        store: hands trials out.
        configure: a trial's configuration from its fields.
        score: what its score is.
        wait: also take over the trials of others, should these die: return when all are finished.
        saved: called when there is something new in the sweep's folder.

    Raises:
        Stopped: a signal asked for it; the trial under way is saved and given back.
    """
    from fluidjax.training import parallel
    from fluidjax.training.stopping import StopRequest

    def do_next() -> bool:
        claim = store.next() if parallel.is_first() else None
        taken = parallel.text_from_first(
            json.dumps([claim.name, dict(claim.fields)]) if claim else ''
        )
        if not taken:
            return False
        name, fields = json.loads(taken)
        made = _outcome(configure, fields, store.workdir / name, name, score, saved)
        if claim is not None:
            store.finish(claim, made)
            saved()
            _tell_progress(store, name, made)
        return True

    with StopRequest():
        while True:
            while do_next():
                pass
            unfinished = parallel.is_first() and len(store.results()) < store.count()
            if not parallel.from_first(unfinished and wait):
                return
            time.sleep(POLL_SECONDS)


def _outcome(
    configure: Configure,
    fields: Fields,
    folder: Path,
    name: str,
    score: str,
    saved: Callable[[], None],
) -> dict[str, Any]:
    from fluidjax.training import parallel

    if parallel.is_first():
        cli.tell(f'{name}: ' + ', '.join(f'{key}={value}' for key, value in fields.items()))
    try:
        scores = do_trial(configure(fields), folder, saved)
    except UserError as error:
        return {'error': str(error)}
    except Exception as error:
        if not parallel.is_alone():  # the others do not know: better to end than to wait for ever
            raise
        traceback.print_exc()
        return {'error': f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'}
    if not parallel.is_first():
        return {}
    value = scores.get(score)
    if value is None:
        return {'error': f"no score '{score}'; there are {', '.join(scores)}", 'scores': scores}
    return {'score': value, 'scores': scores}


def _tell_progress(store: TrialStore, name: str, made: dict[str, Any]) -> None:
    outcome = f'failed: {made["error"]}' if 'error' in made else f'score {made["score"]:.4g}'
    cli.tell(f'{name}: {outcome}; {len(store.results())} of {store.count()} trials are finished')


def start_workers(count: int, arguments: list[str], workdir: Path) -> None:
    """Run this command as several workers, and return when all have ended.

    Each writes to `workdir/worker-N.log`; visible NVIDIA GPUs are shared among them. A signal is
    passed on. One that dies is told of; the others take its trial.

    Raises:
        Stopped: the workers were asked to stop.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    workers = []
    for number in range(count):
        with (workdir / f'worker-{number}.log').open('a') as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, '-m', 'fluidjax.sweep', *arguments],
                    stdout=log,
                    stderr=log,
                    env=os.environ | _gpus_of(number, count),
                    start_new_session=True,
                )
            )  # else the terminal's Ctrl-C would reach it twice
    cli.tell(f'{count} workers; they write to {workdir}/worker-N.log')

    def pass_on(number: int, frame: Any) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    before = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        statuses = [worker.wait() for worker in workers]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, status in enumerate(statuses):
        if status < 0:
            cli.tell(f'worker {number} was killed (signal {-status}); its trial was given back')
    for status in (RESUME_ME, 130):
        if status in statuses:
            raise Stopped(
                'the workers stopped, and saved what they were doing; the same command '
                'goes on from there',
                status,
            )


def _gpus_of(number: int, count: int) -> dict[str, str]:
    """The part of the visible NVIDIA GPUs that is a worker's, as an environment."""
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is None:
        try:
            listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True)
        except OSError:
            return {}
        named = ','.join(str(i) for i in range(listed.stdout.count('GPU ')))
    gpus = [gpu for gpu in named.split(',') if gpu]
    if not gpus:
        return {}
    own = gpus[number::count] or [gpus[number % len(gpus)]]
    return {'CUDA_VISIBLE_DEVICES': ','.join(own)}
