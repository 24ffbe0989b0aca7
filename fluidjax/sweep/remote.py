"""A sweep on other machines: the commands for TPU VMs (gcloud) and for a Slurm cluster (sbatch).

Commands are values, shown with `--dry-run` and run one after another without.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fluidjax.base import cli
from fluidjax.base.errors import RESUME_ME, UserError
from fluidjax.base.files import write_text

Command = list[str]
ARCHIVE = 'fluidjax.tar.gz'


def tpu_commands(
    names: Sequence[str], zone: str, arguments: Sequence[str], project: str = '', bring: str = ''
) -> list[Command]:
    """What sets TPU VM slices up and starts the sweep on every host of each.

    The hosts of a slice train each trial together. Several slices share the trials out beforehand.

    Args:
        names: of the TPU VMs, which must be there.
        zone: theirs.
        arguments: of the sweep: `--config=...`, `--workdir=gs://...`.
        project: of Google Cloud; empty: gcloud's own.
        bring: `gs://BUCKET/FOLDER` of scans that each host copies to `scans` in its checkout.
    """
    where = [f'--zone={zone}', *([f'--project={project}'] if project else [])]
    tpu = ['gcloud', 'compute', 'tpus', 'tpu-vm']
    commands = [['git', 'archive', '--format=tar.gz', f'--output={ARCHIVE}', 'HEAD']]
    for number, name in enumerate(names):
        on_all = ['ssh', name, '--worker=all', *where]
        share = [f'--share={number}/{len(names)}'] if len(names) > 1 else []
        unpack = 'mkdir -p fluidjax && tar -xzf fluidjax.tar.gz -C fluidjax && cd fluidjax'
        sweep = ' '.join(shlex.quote(word) for word in ('./run.sh', 'sweep', *arguments, *share))
        loop = f'until {sweep}; do [ $? = {RESUME_ME} ] || exit 1; done'
        # `&&` before `&` would leave a shell that holds the connection until the sweep ends.
        start = (
            f'cd fluidjax || exit 1; FLUIDJAX_EXTRA=tpu nohup sh -c {shlex.quote(loop)} '
            '> sweep.log 2>&1 < /dev/null &'
        )
        commands += [
            [*tpu, 'scp', ARCHIVE, f'{name}:', '--worker=all', *where],
            [*tpu, *on_all, f'--command={unpack} && FLUIDJAX_EXTRA=tpu ./run.sh setup'],
        ]
        if bring:
            commands.append(
                [
                    *tpu,
                    *on_all,
                    '--command=cd fluidjax && gcloud storage rsync '
                    f'--recursive {shlex.quote(bring)} scans',
                ]
            )
        commands.append([*tpu, *on_all, f'--command={start}'])
    return commands


def follow_commands(names: Sequence[str], zone: str, project: str = '') -> list[Command]:
    """What shows a sweep's log while it runs on TPU VMs."""
    where = [f'--zone={zone}', *([f'--project={project}'] if project else [])]
    return [
        [
            'gcloud',
            'compute',
            'tpus',
            'tpu-vm',
            'ssh',
            name,
            '--worker=0',
            *where,
            '--command=tail -f fluidjax/sweep.log',
        ]
        for name in names
    ]


def slurm_script(
    arguments: Sequence[str],
    workdir: Path,
    workers: int,
    options: str,
    python: Path,
    checkout: Path,
) -> str:
    """A job array of workers on one store, each started again when it was preempted.

    Args:
        arguments: of the sweep.
        workdir: its folder, on a file system that all nodes share.
        workers: how many.
        options: further ones of sbatch, `--gpus=1 --time=8:00:00`.
        python: the interpreter that has fluidjax.
        checkout: where to run.
    """
    lines = [
        '#!/bin/bash',
        '#SBATCH --job-name=fluidjax-sweep',
        f'#SBATCH --array=0-{workers - 1}',
        '#SBATCH --requeue',
        '#SBATCH --open-mode=append',
        '# Two minutes before its time is up a worker is asked to save what it does.',
        '#SBATCH --signal=TERM@120',
        f'#SBATCH --output="{workdir}/slurm-%A_%a.log"',
    ]
    lines += [f'#SBATCH {options}'] if options else []
    command = ' '.join(
        shlex.quote(str(word)) for word in (python, '-m', 'fluidjax.sweep', *arguments, '--nowait')
    )
    lines += [
        f'cd {shlex.quote(str(checkout))}',
        f'srun {command}',
        'status=$?',
        f'if [ $status = {RESUME_ME} ]; then',
        '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        'fi',
        'exit $status',
    ]
    return '\n'.join(lines) + '\n'


def run(commands: Sequence[Command], dry_run: bool) -> None:
    """Show commands, and run them one after another unless it is a dry run.

    Raises:
        UserError: a program is not installed, or a command fails.
    """
    for command in commands:
        print(shlex.join(command), flush=True)
        if dry_run:
            continue
        if shutil.which(command[0]) is None:
            raise UserError(f'{command[0]} is not installed here; --dry-run shows the commands')
        status = subprocess.run(command).returncode
        if status:
            raise UserError(f'{command[0]} ended with status {status}; its lines above say why')


def submit(script: str, workdir: Path, dry_run: bool) -> None:
    """Show a job script, and hand it to sbatch unless it is a dry run."""
    print(script)
    path = workdir / 'sweep.sbatch'
    if not dry_run:
        write_text(path, script)
        cli.tell(f'{path} is written')
    run([['sbatch', str(path)]], dry_run)
