"""A run's folder in a Google Cloud bucket, with a local copy.

A run writes many small files and renames folders, which buckets do not support. So it is trained in
a local folder, and `gcloud storage rsync` copies new files to the bucket: after each checkpoint,
while training goes on, and at the end, also after an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from fluidjax.base import cli, files
from fluidjax.base.errors import UserError
from fluidjax.training import parallel

SCHEME = 'gs://'
LOCK = '.bucket.lock'
# Not copied: checkpoints that are not complete yet, and locks, which belong to a process.
LEFT_OUT = r'.*orbax-checkpoint-tmp.*|(.*/)?\.[^/]*lock$|(.*/)?\.claims/.*'
RSYNC = (
    'gcloud',
    'storage',
    'rsync',
    '--recursive',
    '--skip-if-dest-has-newer-mtime',
    f'--exclude={LEFT_OUT}',
)


def is_bucket(workdir: str) -> bool:
    """Whether a folder is in a bucket."""
    return workdir.startswith(SCHEME)


def local_folder(workdir: str) -> Path:
    """The local copy of a bucket's folder, in $FLUIDJAX_BUCKETS or a cache.

    A folder that is not in a bucket is returned as it is.
    """
    if not is_bucket(workdir):
        return Path(workdir).expanduser()
    name = workdir.removeprefix(SCHEME).strip('/')
    if not re.fullmatch(r'[\w.\-]+(/[\w.\- =]+)+', name) or '..' in name.split('/'):
        raise UserError(
            f"--workdir: '{workdir}' is not a folder of a bucket; write gs://BUCKET/FOLDER"
        )
    return Path(os.environ.get('FLUIDJAX_BUCKETS', files.cache_home() / 'buckets')) / name


@contextlib.contextmanager
def mirrored_folder(workdir: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder to train in, and a function to call when it has new files.

    Only one command on this machine can use it at a time; other machines are not locked out.

    Raises:
        UserError: the bucket cannot be read, or cannot be written to at the end.
    """
    folder, remote = local_folder(workdir), workdir.rstrip('/')
    if not is_bucket(workdir):
        yield folder, lambda: None
        return
    with contextlib.ExitStack() as opened:
        with parallel.together():
            if parallel.is_first():
                advice = 'wait for it or choose another --workdir'
                why = f'another command works on {remote}; {advice}'
                opened.enter_context(files.locked(folder / LOCK, why))
                _fetch(remote, folder)
        if not parallel.is_first():
            yield folder, lambda: None
            return
        sender = _Sender(folder, remote)
        try:
            yield folder, sender.send
        except BaseException:
            sender.finish()
            raise
        if not sender.finish():
            raise UserError(f'--workdir={workdir}: not all was copied; run the same command again')


def _fetch(workdir: str, folder: Path) -> None:
    if shutil.which('gcloud') is None:
        raise UserError(
            f'--workdir={workdir}: gcloud is not installed here; install it '
            '(cloud.google.com/sdk) or give a folder of this machine'
        )
    for command in (['gcloud', 'storage', 'ls', workdir], [*RSYNC, workdir, str(folder)]):
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode and 'matched no objects' in process.stderr:
            _tell_of_copy(workdir, folder)
            return  # nothing is there yet
        if process.returncode:
            raise UserError(f'--workdir={workdir}: cannot be read ({_reason(process.stderr)})')


def _tell_of_copy(workdir: str, folder: Path) -> None:
    """Say that a run goes on which is no longer in the bucket."""
    if any(path.name != LOCK for path in folder.iterdir()):
        cli.tell(
            f'{workdir}: is empty; the run goes on from the copy in {folder} (to start anew, '
            'stop and delete that folder)'
        )


class _Sender:
    """Copies a folder to a bucket, one copy at a time, and prints errors.

    In stages with new checkpoints, those deleted here are deleted in the bucket too: the folder was
    fetched from the bucket, so it had all of them. Nothing else is ever deleted.
    """

    def __init__(self, folder: Path, workdir: str) -> None:
        self._folder, self._workdir = folder, workdir
        self._running: subprocess.Popen | None = None
        self._complaints: IO[str] | None = None
        self._fetched = self._checkpoints()

    def _checkpoints(self) -> dict[Path, set[str]]:
        return {
            stage: {step.name for step in stage.iterdir()}
            for stage in sorted(self._folder.rglob('checkpoints/*'))
            if stage.is_dir()
        }

    def _commands(self) -> str:
        lines = [[*RSYNC, str(self._folder), self._workdir]]
        for stage, steps in self._checkpoints().items():
            if steps != self._fetched.get(stage):
                lines.append(
                    [
                        *RSYNC,
                        '--delete-unmatched-destination-objects',
                        str(stage),
                        f'{self._workdir}/{stage.relative_to(self._folder)}',
                    ]
                )
        return ' && '.join(shlex.join(line) for line in lines)

    def send(self) -> None:
        """Begin to copy new files, unless a copy is under way; then the next one includes them."""
        if self._running is None or self._running.poll() is not None:
            self._ended_well()
            self._start()

    def finish(self) -> bool:
        """Copy new files and wait; returns whether that succeeded."""
        self._ended_well()
        self._start()
        return self._ended_well()

    def _start(self) -> None:
        self._complaints = tempfile.TemporaryFile('w+')
        self._running = subprocess.Popen(
            ['sh', '-c', self._commands()],
            stdout=subprocess.DEVNULL,
            stderr=self._complaints,
            start_new_session=True,
        )

    def _ended_well(self) -> bool:
        """Wait for the copy under way; if it failed, print why."""
        running, self._running = self._running, None
        if running is None or not running.wait():
            return True
        self._complaints.seek(0)
        cli.tell(
            f'fluidjax: {self._workdir}: not all was copied '
            f'({_reason(self._complaints.read())}); the run is in {self._folder}'
        )
        return False


def _reason(text: str) -> str:
    """The reason that gcloud gives: its first line with an error."""
    lines = text.strip().splitlines() or ['no reason given']
    return next((line for line in lines if 'ERROR' in line), lines[-1])[:200]
