"""Train and evaluate many configurations or seeds, and put them in one table and picture.

    fluidjax sweep --config=configs/ldm.py:demo --seeds=0,1,2 --workdir=runs/seeds
    fluidjax sweep --config=configs/sweeps/learning_rate.py:demo --workdir=runs/rates --workers=4
    fluidjax sweep ... --tpu=NAME --zone=ZONE --workdir=gs://BUCKET/FOLDER
    fluidjax sweep ... --slurm --sbatch='--gpus=1' --workers=8

The last two run on all hosts of a TPU VM slice, and as a Slurm job array of --workers workers;
--dry-run shows what they would run. What is finished is not done again, and what was begun goes on.
Workers started apart on one --workdir share the trials; the trial of one that dies is taken over.
"""

import re
import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax.base import cli
from fluidjax.base.settings import changed_config
from fluidjax.training import cluster

FLAGS = flags.FlagValues()
FLAGS.append_flag_values(cluster.FLAGS)
CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A configuration, with --seeds, or a file of configs/sweeps.', flag_values=FLAGS
)
WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the sweep, or gs://BUCKET/FOLDER; each trial gets one in it.',
    flag_values=FLAGS,
)
SEEDS = flags.DEFINE_list(
    'seeds', ['0', '1', '2'], 'Of a configuration, comma-separated.', flag_values=FLAGS
)
WORKERS = flags.DEFINE_integer('workers', 1, 'Trials at a time.', lower_bound=1, flag_values=FLAGS)
WAIT = flags.DEFINE_boolean(
    'wait',
    True,
    'Stay until the other workers are done, to take over what one leaves.',
    flag_values=FLAGS,
)
RETRY = flags.DEFINE_boolean('retry', False, 'Try trials that failed again.', flag_values=FLAGS)
SHARE = flags.DEFINE_string(
    'share', '0/1', 'I/N: of the trials every Nth from the Ith on.', flag_values=FLAGS
)
TPU = flags.DEFINE_list('tpu', [], 'Names of TPU VM slices.', flag_values=FLAGS)
ZONE = flags.DEFINE_string('zone', None, 'Their zone.', flag_values=FLAGS)
PROJECT = flags.DEFINE_string(
    'project', '', "Their project; gcloud's own without.", flag_values=FLAGS
)
BRING = flags.DEFINE_string(
    'bring',
    '',
    'gs://BUCKET/FOLDER of scans that each host copies to '
    'the folder scans, for --config.cohort.data_dir=scans.',
    flag_values=FLAGS,
)
SLURM = flags.DEFINE_boolean('slurm', False, 'Submit a job array.', flag_values=FLAGS)
SBATCH = flags.DEFINE_string('sbatch', '', 'Further options of sbatch.', flag_values=FLAGS)
DRY_RUN = flags.DEFINE_boolean(
    'dry-run', False, 'Show what --tpu or --slurm would run.', flag_values=FLAGS
)
ELSEWHERE = ('workers', 'tpu', 'zone', 'project', 'bring', 'slurm', 'sbatch', 'dry-run')


def main() -> None:
    """Read the flags and sweep, here or elsewhere."""
    if CONFIG.value is None or not WORKDIR.value:
        raise cli.UserError(
            'sweep needs --config=FILE and --workdir=DIR, e.g. '
            '--config=configs/ldm.py:demo --workdir=runs/sweep'
        )
    from fluidjax.runs.bucket import is_bucket

    if is_bucket(WORKDIR.value) and (WORKERS.value > 1 or SLURM.value):
        raise cli.UserError('--workdir: several workers share a folder of a disk, not of a bucket')
    if TPU.value or SLURM.value:
        _elsewhere()
    elif DRY_RUN.value:
        raise cli.UserError('--dry-run: shows what --tpu or --slurm would run; give one of them')
    elif WORKERS.value > 1:
        from fluidjax.sweep import worker

        worker.start_workers(WORKERS.value, _own_arguments(), Path(WORKDIR.value).expanduser())
        _sweep_here()  # the table, and what no worker is left to do
    else:
        _sweep_here()


def _own_arguments() -> list[str]:
    """The words of this command, without those that say where and how often it runs."""
    words, rest = [], list(sys.argv[1:])
    while rest:
        word = rest.pop(0)
        name, given, _ = word.lstrip('-').partition('=')
        if name in ELSEWHERE:
            if not given and name not in ('slurm', 'dry-run') and rest:
                rest.pop(0)
            continue
        words.append(word)
    return words


def _elsewhere() -> None:
    from fluidjax.runs.bucket import is_bucket
    from fluidjax.sweep import remote

    if SLURM.value:
        workdir = Path(WORKDIR.value).expanduser().absolute()
        script = remote.slurm_script(
            _own_arguments(), workdir, WORKERS.value, SBATCH.value, Path(sys.executable), Path.cwd()
        )
        remote.submit(script, workdir, DRY_RUN.value)
        return
    if not ZONE.value:
        raise cli.UserError('--tpu: name its zone too, --zone=us-central2-b')
    if not is_bucket(WORKDIR.value):
        raise cli.UserError(
            f"--workdir: '{WORKDIR.value}' would end with the TPU VM; give gs://BUCKET/FOLDER"
        )
    remote.run(
        remote.tpu_commands(TPU.value, ZONE.value, _own_arguments(), PROJECT.value, BRING.value),
        DRY_RUN.value,
    )
    cli.tell(
        'to follow it: '
        + '; '.join(
            shlex.join(command)
            for command in remote.follow_commands(TPU.value, ZONE.value, PROJECT.value)
        )
    )


def _sweep_here() -> None:
    cluster.join()
    from fluidjax.runs.bucket import mirrored_folder
    from fluidjax.sweep import report as sweep_report
    from fluidjax.sweep import seeds, worker
    from fluidjax.training import parallel

    config = CONFIG.value
    with mirrored_folder(WORKDIR.value) as (workdir, saved):
        if 'sweep' in config:
            store, score = _store(config.sweep, workdir), config.sweep.score
            configure = lambda fields: changed_config(config.sweep.base, fields)
        else:
            store, score = seeds.store(workdir, _seeds(), *_share()), 'dice_validated'
            configure = lambda fields: seeds.config_of(config, fields)
        if RETRY.value and parallel.is_first():
            store.forget_failures()
        worker.work(store, configure, score, WAIT.value, saved)
        if not parallel.is_first():
            return
        results = store.results()
        report = sweep_report if 'sweep' in config else seeds
        table = report.write(workdir, results, score)
    print(f'{len(results)} of {store.count()} trials:\n{table}')
    failed = [f'{name}: {made["error"]}' for name, made in results.items() if 'error' in made]
    if failed:
        raise cli.UserError(
            f'{len(failed)} of {store.count()} trials failed, of which '
            f'{failed[0]}; --retry tries them again'
        )


def _store(sweep: 'trials.Sweep', workdir: Path) -> 'trial_store.TrialStore':  # noqa: F821
    from fluidjax.sweep.store import SearchStore, TrialStore

    place, places = _share()
    if sweep.search:
        if places > 1:
            raise cli.UserError(
                '--share: an Optuna search needs one store; run it on one machine '
                'or on a shared folder'
            )
        return SearchStore(workdir, sweep)
    named = {f'trial-{number:03d}': fields for number, fields in enumerate(sweep.trials)}
    return TrialStore(workdir, dict(list(named.items())[place::places]))


def _share() -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)/(\d+)', SHARE.value)
    if not match or not int(match[1]) < int(match[2]):
        raise cli.UserError(f"--share: '{SHARE.value}' must be I/N with I below N, e.g. 0/2")
    return int(match[1]), int(match[2])


def _seeds() -> list[int]:
    try:
        return [int(seed) for seed in SEEDS.value]
    except ValueError as error:
        raise cli.UserError(f'--seeds={",".join(SEEDS.value)}: give whole numbers') from error


def command() -> None:
    """`fluidjax sweep`."""
    cli.run(main, FLAGS)


if __name__ == '__main__':
    command()
