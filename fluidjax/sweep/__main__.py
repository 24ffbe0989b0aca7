"""Train and evaluate many configurations or seeds, and compare them in one table and picture.

    fluidjax sweep --config=configs/ldm.py:demo --seeds=0,1,2 --workdir=runs/seeds
    fluidjax sweep --config=configs/sweeps/learning_rate.py:demo --workdir=runs/rates --workers=4
    fluidjax sweep ... --tpu=NAME --zone=ZONE --workdir=gs://BUCKET/FOLDER
    fluidjax sweep ... --slurm --sbatch='--gpus=1' --workers=8

The same command continues an interrupted sweep; finished trials are not repeated. Several commands
on one --workdir share the trials, and take over the trial of a command that died. --tpu runs on all
hosts of TPU VM slices, --slurm submits an array of --workers jobs; --dry-run only shows how.
"""

import copy
import itertools
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from fluidjax.base import cli
from fluidjax.base.disk import check_output
from fluidjax.base.settings import changed_config
from fluidjax.base.trials import Fields
from fluidjax.training import cluster

FLAGS = cli.Flags()
cluster.define_flags(FLAGS)
CONFIG = FLAGS.add_config('A configuration, trained with --seeds, or a file of configs/sweeps.')
WORKDIR = FLAGS.add_text(
    'workdir', None, 'Folder of the sweep, or gs://BUCKET/FOLDER; each trial has a folder in it.'
)
SEEDS = FLAGS.add_words('seeds', ['0', '1', '2'], 'Seeds to train a configuration with.')
WORKERS = FLAGS.add_integer('workers', 1, 'Trials at the same time.', least=1)
WAIT = FLAGS.add_switch(
    'wait', True, 'Wait for the other workers, to take over the trial of one that dies.'
)
RETRY = FLAGS.add_switch('retry', False, 'Repeat trials that failed.')
SHARE = FLAGS.add_text('share', '0/1', 'I/N: only every Nth trial, starting with trial I.')
TPU = FLAGS.add_words('tpu', [], 'Names of TPU VM slices to run on.')
ZONE = FLAGS.add_text('zone', None, 'Zone of the TPU VMs.')
PROJECT = FLAGS.add_text('project', '', "Google Cloud project of the TPU VMs; by default gcloud's.")
BRING = FLAGS.add_text(
    'bring',
    '',
    'gs://BUCKET/FOLDER of scans that each TPU host copies to its folder scans, for '
    '--config.cohort.data_dir=scans.',
)
SLURM = FLAGS.add_switch('slurm', False, 'Submit a Slurm job array.')
SBATCH = FLAGS.add_text('sbatch', '', 'Further options of sbatch.')
DRY_RUN = FLAGS.add_switch('dry-run', False, 'Only show what --tpu or --slurm would run.')
# Flags that say where and how often the sweep runs, which its workers are not given.
NOT_FOR_WORKERS = ('workers', 'tpu', 'zone', 'project', 'bring', 'slurm', 'sbatch', 'dry-run')
# Nor this one where their folder is on a disk: this command forgets the failures, once.
ONCE = 'retry'


def main() -> None:
    """Run the sweep, here or on other machines."""
    if CONFIG.value is None or not WORKDIR.value:
        raise cli.UserError(
            'sweep needs --config=FILE and --workdir=DIR, e.g. '
            '--config=configs/ldm.py:demo --workdir=runs/sweep'
        )
    from fluidjax.runs.bucket import is_bucket

    local = not is_bucket(WORKDIR.value)
    if not local and (WORKERS.value > 1 or SLURM.value):
        raise cli.UserError('--workdir: several workers need a folder on a disk, not in a bucket')
    if local and (SLURM.value or WORKERS.value > 1) and not DRY_RUN.value:
        check_output(Path(WORKDIR.value).expanduser(), '--workdir')
    if SLURM.value:
        _submit_to_slurm()
    elif TPU.value:
        _start_on_tpus()
    elif DRY_RUN.value:
        raise cli.UserError('--dry-run: shows what --tpu or --slurm would run; give one of them')
    else:
        if WORKERS.value > 1:
            from fluidjax.sweep import worker

            workdir = Path(WORKDIR.value).expanduser()
            _forget_failures(workdir)
            worker.start_workers(WORKERS.value, _worker_arguments(ONCE), workdir)
        # After workers: the trials that none of them finished, and the table.
        _sweep_here(forget=WORKERS.value == 1)


def _forget_failures(workdir: Path) -> None:
    """Have the trials that failed repeated, if that is asked for."""
    if RETRY.value:
        _trials(workdir).forget_failures()


def _worker_arguments(*also: str) -> list[str]:
    """The words of this command as the user wrote them, without some flags.

    Args:
        also: flags to leave out beside `NOT_FOR_WORKERS`.
    """
    words, rest, left_out = [], list(sys.argv[1:]), (*NOT_FOR_WORKERS, *also)
    while rest:
        word = rest.pop(0)
        name, has_value, _ = word.lstrip('-').replace('_', '-').partition('=')
        if not word.startswith('-') or name.removeprefix('no') not in left_out:
            words.append(word)
        elif not has_value and name in FLAGS and not FLAGS[name].boolean:
            rest = rest[1:]
            if getattr(FLAGS[name], 'several_words', False):
                rest = list(itertools.dropwhile(lambda word: not word.startswith('-'), rest))
    return words


def _submit_to_slurm() -> None:
    from fluidjax.sweep import remote

    workdir = Path(WORKDIR.value).expanduser().absolute()
    arguments, python = _worker_arguments(ONCE), Path(sys.executable)
    script = remote.slurm_script(
        arguments, workdir, WORKERS.value, SBATCH.value, python, Path.cwd()
    )
    if not DRY_RUN.value:
        _forget_failures(workdir)
    remote.submit(script, workdir, DRY_RUN.value)


def _start_on_tpus() -> None:
    from fluidjax.runs.bucket import is_bucket
    from fluidjax.sweep import remote

    if not ZONE.value:
        raise cli.UserError('--tpu: name the zone too, --zone=us-central2-b')
    if not is_bucket(WORKDIR.value):
        raise cli.UserError(
            f"--workdir: '{WORKDIR.value}' would be lost with the TPU VM; give gs://BUCKET/FOLDER"
        )
    tpus = remote.Tpus(tuple(TPU.value), ZONE.value, PROJECT.value)
    remote.run(tpus.start_commands(_worker_arguments(), BRING.value), DRY_RUN.value)
    cli.tell('to follow it: ' + '; '.join(map(shlex.join, tpus.follow_commands())))


def _sweep_here(forget: bool) -> None:
    """Do trials in this process, and write the table.

    Args:
        forget: whether failures are forgotten before, if that is asked for.
    """
    cluster.join(FLAGS)
    from fluidjax.runs.bucket import mirrored_folder
    from fluidjax.sweep import report, worker
    from fluidjax.training import parallel

    config = CONFIG.value
    with mirrored_folder(WORKDIR.value) as (workdir, saved):
        with parallel.together():
            if parallel.is_first():
                check_output(workdir, '--workdir')
        trials = _trials(workdir)
        if 'sweep' in config:
            _check_sweep(config.sweep.score)
            score, write = config.sweep.score, report.write
            configure = lambda fields: changed_config(config.sweep.base, fields)
        else:
            score, write, configure = 'dice_validated', report.write_seeds, _with_seed(config)
        if forget and RETRY.value and parallel.is_first():
            trials.forget_failures()
        with parallel.together():
            if parallel.is_first():
                trials.refuse_another_sweep(configure)
        worker.work(trials, configure, score, WAIT.value, saved)
        if not parallel.is_first():
            return
        results = trials.results()
        table = write(workdir, results, score)
    print(f'{len(results)} of {trials.count()} trials:\n{table}')
    failures = [f'{name}: {one["error"]}' for name, one in results.items() if 'error' in one]
    if failures:
        raise cli.UserError(
            f'{len(failures)} of {trials.count()} trials failed, the first was {failures[0]}; '
            '--retry repeats them'
        )


def _with_seed(config: ConfigDict) -> Callable[[Fields], ConfigDict]:
    """The configuration of a trial that changes only the seed."""

    def configure(fields: Fields) -> ConfigDict:
        one = copy.deepcopy(config)
        one.seed = fields['seed']
        return one

    return configure


def _trials(workdir: Path) -> 'store.TrialStore':  # noqa: F821
    """The trials of the sweep, or one for each seed."""
    from fluidjax.sweep.store import SearchStore, TrialStore

    if 'sweep' not in CONFIG.value:
        seeds = cli.numbers('seeds', SEEDS.value, int)
        named = {f'seed{seed}': {'seed': seed} for seed in seeds}
        return TrialStore(workdir, _own_share(named))
    sweep = CONFIG.value.sweep
    if not sweep.search:
        named = {f'trial-{number:03d}': fields for number, fields in enumerate(sweep.trials)}
        return TrialStore(workdir, _own_share(named))
    if _share()[1] > 1:
        raise cli.UserError(
            '--share: an Optuna search cannot be shared out beforehand; run it on one machine or '
            'on a shared folder'
        )
    return SearchStore(workdir, sweep)


def _check_sweep(score: str) -> None:
    from fluidjax.detect.scores import SCORES

    if score not in (known := ('validation_ap', 'validation_dice', *SCORES)):
        raise cli.UserError(f"sweep: no score '{score}'; there are {', '.join(known)}")
    if FLAGS['seeds'].present:
        raise cli.UserError(
            '--seeds: a file of configs/sweeps lists its trials; vary the field seed there'
        )


def _own_share(named: dict[str, Fields]) -> dict[str, Fields]:
    """The trials of --share."""
    first, step = _share()
    return dict(list(named.items())[first::step])


def _share() -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)/(\d+)', SHARE.value)
    if not match or not int(match[1]) < int(match[2]):
        raise cli.UserError(f"--share: '{SHARE.value}' must be I/N with I below N, e.g. 0/2")
    return int(match[1]), int(match[2])


def command() -> None:
    """`fluidjax sweep`."""
    cli.run(main, FLAGS)


if __name__ == '__main__':
    command()
