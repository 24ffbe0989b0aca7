"""The work on a sweep's trials: the loop of one worker, and several workers on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fluidjax.base import cli
from fluidjax.base.disk import is_of_disk
from fluidjax.base.errors import RESUME_ME, DiskError, Stopped, UserError
from fluidjax.base.files import read_json
from fluidjax.base.trials import Fields
from fluidjax.sweep.store import TrialStore, digest

POLL_SECONDS = 2.0
EVALUATE_AGAIN = 'evaluate the run again, with fluidjax eval'
Configure = Callable[[Fields], ConfigDict]


def do_trial(config: ConfigDict, folder: Path, saved: Callable[[], None]) -> dict[str, Any]:
    """Train and evaluate one trial, or continue where it was interrupted.

    Returns:
        Its scores by name: `validation_ap` and `validation_dice` of the validation scans, and the
        means over the test set. Empty in all processes but the first.
    """
    from fluidjax.runs import evaluate, thresholds
    from fluidjax.runs.load import described
    from fluidjax.runs.train import train
    from fluidjax.training import parallel

    train(config, folder, saved=saved)
    if not parallel.is_first():
        return {}
    if not thresholds.is_evaluated(folder):
        evaluate.run_evaluation(folder, save_volumes=False)
    return scores_of(folder, described(folder).name)


def scores_of(folder: Path, row: str) -> dict[str, Any]:
    """The scores of an evaluated run, of the row `row` of its table."""
    tests = read_json(folder / 'eval' / 'metrics.json', EVALUATE_AGAIN)
    chosen = read_json(folder / 'calibration.json', EVALUATE_AGAIN)
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
    """Do trials until all are done; several workers on one store share them.

    Args:
        store: hands out the trials.
        configure: makes a trial's configuration from its fields.
        score: the name of the score to keep.
        wait: return only when the trials of other workers are finished too, and take over those
            of a worker that died.
        saved: called after something new was written to the sweep's folder.

    Raises:
        Stopped: a signal asked to stop; the trial under way is saved and released.
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
        result = _result(configure, fields, store.workdir / name, score, saved)
        if claim is not None:
            store.finish(claim, result)
            saved()
            _tell_progress(store, name, result)
        return True

    with StopRequest():
        while True:
            while do_next():
                pass
            unfinished = parallel.is_first() and len(store.results()) < store.count()
            if not parallel.from_first(unfinished and wait):
                return
            time.sleep(POLL_SECONDS)


def _result(
    configure: Configure, fields: Fields, folder: Path, score: str, saved: Callable[[], None]
) -> dict[str, Any]:
    """The result of a trial as `TrialStore.finish` takes it; its errors do not end the sweep."""
    from fluidjax.training import parallel

    if parallel.is_first():
        cli.tell(f'{folder.name}: ' + ', '.join(f'{key}={value}' for key, value in fields.items()))
    try:
        config = configure(fields)
        scores = do_trial(config, folder, saved)
    except DiskError:  # the other trials could not be written either
        raise
    except UserError as error:
        return {'error': str(error)}
    except Exception as error:
        if is_of_disk(error):
            raise
        if not parallel.is_alone():  # the other processes would wait for this one for ever
            raise
        traceback.print_exc()
        return {'error': f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'}
    if not parallel.is_first():
        return {}
    value = scores.get(score)
    if value is None and score in scores and scores.get('validation_dice') is not None:
        value = scores['validation_dice']
        cli.tell(f"{folder.name}: no test scan has a lesion mask, so '{score}' is validation_dice")
    if value is None:
        return {'error': f"no score '{score}'; there are {', '.join(scores)}", 'scores': scores}
    return {'score': value, 'scores': scores, 'config': digest(config)}


def _tell_progress(store: TrialStore, name: str, result: dict[str, Any]) -> None:
    outcome = f'failed: {result["error"]}' if 'error' in result else f'score {result["score"]:.4g}'
    cli.tell(f'{name}: {outcome}; {len(store.results())} of {store.count()} trials are finished')


def start_workers(count: int, arguments: list[str], workdir: Path) -> None:
    """Run this command in several processes, and return when all have ended.

    Each writes to `workdir/worker-N.log`, and has its share of the visible NVIDIA GPUs. Signals
    are passed on to all of them. When one dies, the others take over its trial.

    Args:
        count: number of workers.
        arguments: of the command.
        workdir: folder of the sweep.

    Raises:
        Stopped: the workers were asked to stop.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    workers = [_start_worker(number, count, arguments, workdir) for number in range(count)]
    cli.tell(f'{count} workers write to {workdir}/worker-N.log')
    with _signals_passed_on(workers):
        statuses = [worker.wait() for worker in workers]
    for number, status in enumerate(statuses):
        if status < 0:
            cli.tell(f'worker {number} was killed (signal {-status}); its trial is free again')
    for status in (RESUME_ME, 130):
        if status in statuses:
            raise Stopped('the workers stopped; the same command continues their trials', status)


def _start_worker(
    number: int, count: int, arguments: list[str], workdir: Path
) -> subprocess.Popen[bytes]:
    with (workdir / f'worker-{number}.log').open('a') as log:
        return subprocess.Popen(
            [sys.executable, '-m', 'fluidjax', 'sweep', *arguments],
            stdout=log,
            stderr=log,
            env=os.environ | _gpus_of(number, count),
            start_new_session=True,  # else the terminal's Ctrl-C would reach it twice
        )


@contextlib.contextmanager
def _signals_passed_on(workers: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, frame: Any) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _gpus_of(number: int, count: int) -> dict[str, str]:
    """A worker's share of the visible NVIDIA GPUs, as an environment variable."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is None:
        try:
            listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True)
        except OSError:
            return {}
        visible = ','.join(str(i) for i in range(listed.stdout.count('GPU ')))
    gpus = [gpu for gpu in visible.split(',') if gpu]
    if not gpus:
        return {}
    own = gpus[number::count] or [gpus[number % len(gpus)]]
    return {'CUDA_VISIBLE_DEVICES': ','.join(own)}
