"""A sweep on other machines: the commands for TPU VMs (gcloud) and for a Slurm cluster (sbatch)."""

from __future__ import annotations

import dataclasses
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
GCLOUD = ('gcloud', 'compute', 'tpus', 'tpu-vm')
UNPACK = f'mkdir -p fluidjax && tar -xzf {ARCHIVE} -C fluidjax && cd fluidjax'


@dataclasses.dataclass(frozen=True)
class Tpus:
    """TPU VM slices that exist already.

    Attributes:
        names: of the TPU VMs.
        zone: of all of them.
        project: of Google Cloud; empty for gcloud's own.
    """

    names: tuple[str, ...]
    zone: str
    project: str = ''

    def start_commands(self, arguments: Sequence[str], bring: str = '') -> list[Command]:
        """Commands that set the slices up and start the sweep on every host of each.

        The hosts of a slice train each trial together. Several slices share the trials out
        beforehand.

        Args:
            arguments: of the sweep: `--config=...`, `--workdir=gs://...`.
            bring: `gs://BUCKET/FOLDER` of scans that each host copies to `scans` in its checkout.
        """
        commands = [['git', 'archive', '--format=tar.gz', f'--output={ARCHIVE}', 'HEAD']]
        for number, name in enumerate(self.names):
            share = [f'--share={number}/{len(self.names)}'] if len(self.names) > 1 else []
            commands += [
                [*GCLOUD, 'scp', ARCHIVE, f'{name}:', '--worker=all', *self._where()],
                self._ssh(name, 'all', f'{UNPACK} && FLUIDJAX_EXTRA=tpu ./run.sh setup'),
            ]
            if bring:
                copy = f'gcloud storage rsync --recursive {shlex.quote(bring)} scans'
                commands.append(self._ssh(name, 'all', f'cd fluidjax && {copy}'))
            commands.append(self._ssh(name, 'all', _in_background([*arguments, *share])))
        return commands

    def follow_commands(self) -> list[Command]:
        """Commands that show the sweep's log while it runs."""
        return [self._ssh(name, '0', 'tail -f fluidjax/sweep.log') for name in self.names]

    def _ssh(self, name: str, worker: str, command: str) -> Command:
        return [
            *(*GCLOUD, 'ssh', name, f'--worker={worker}', *self._where()),
            f'--command={command}',
        ]

    def _where(self) -> list[str]:
        return [f'--zone={self.zone}', *([f'--project={self.project}'] if self.project else [])]


def _in_background(arguments: Sequence[str]) -> str:
    """A shell command that starts the sweep, again after each preemption, and returns at once."""
    sweep = shlex.join(('./run.sh', 'sweep', *arguments))
    loop = f'until {sweep}; do [ $? = {RESUME_ME} ] || exit 1; done'
    # `&&` before `&` would leave a shell that holds the connection until the sweep ends.
    return (
        f'cd fluidjax || exit 1; FLUIDJAX_EXTRA=tpu nohup sh -c {shlex.quote(loop)} '
        '> sweep.log 2>&1 < /dev/null &'
    )


def slurm_script(
    arguments: Sequence[str],
    workdir: Path,
    workers: int,
    options: str,
    python: Path,
    checkout: Path,
) -> str:
    """A job array of workers on one folder, each started again after a preemption.

    Args:
        arguments: of the sweep.
        workdir: its folder, on a file system that all nodes share.
        workers: number of jobs.
        options: further options of sbatch, `--gpus=1 --time=8:00:00`.
        python: the interpreter that has fluidjax.
        checkout: folder to run in.
    """
    lines = [
        '#!/bin/bash',
        '#SBATCH --job-name=fluidjax-sweep',
        f'#SBATCH --array=0-{workers - 1}',
        '#SBATCH --requeue',
        '#SBATCH --open-mode=append',
        '# Two minutes before its time is up a worker is asked to save its trial.',
        '#SBATCH --signal=TERM@120',
        f'#SBATCH --output="{workdir}/slurm-%A_%a.log"',
        *([f'#SBATCH {options}'] if options else []),
        f'cd {shlex.quote(str(checkout))}',
        'srun ' + shlex.join((str(python), '-m', 'fluidjax', 'sweep', *arguments, '--nowait')),
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
