"""A run's folder on a Google Cloud bucket: a folder here that is fetched from and copied to it.

A run writes many small files and renames folders, which buckets do not know. So it is trained in
an ordinary folder, and `gcloud storage rsync` carries what is new to the bucket: after a checkpoint
while training goes on, and at the end, however that comes.
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
# What is being written is no use there, and a lock is its process's.
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
    """Whether a folder is one of a bucket."""
    return workdir.startswith(SCHEME)


def local_folder(workdir: str) -> Path:
    """Where a bucket's folder is kept here, $FLUIDJAX_BUCKETS or a cache; others as they are."""
    if not is_bucket(workdir):
        return Path(workdir).expanduser()
    name = workdir.removeprefix(SCHEME).strip('/')
    if not re.fullmatch(r'[\w.\-]+(/[\w.\- =]+)+', name) or '..' in name.split('/'):
        raise UserError(
            f"--workdir: '{workdir}' is no folder of a bucket; write gs://BUCKET/FOLDER"
        )
    home = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'fluidjax' / 'buckets'
    return Path(os.environ.get('FLUIDJAX_BUCKETS', home)) / name


@contextlib.contextmanager
def mirrored_folder(workdir: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder to train in, and what to call when there is something new in it.

    One command of this machine at a time; other machines are not kept from the same folder.

    Raises:
        UserError: the bucket cannot be read, or written at the end.
    """
    folder, remote = local_folder(workdir), workdir.rstrip('/')
    if not is_bucket(workdir):
        yield folder, lambda: None
        return
    with contextlib.ExitStack() as opened:
        with parallel.together():
            if parallel.is_first():
                opened.enter_context(
                    files.locked(
                        folder / '.bucket.lock',
                        (
                            f'another command works on {remote}; wait for it or choose another --workdir'
                        ),
                    )
                )
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
            raise UserError(f'--workdir={workdir}: not all was copied; the same command copies it')


def _fetch(workdir: str, folder: Path) -> None:
    if shutil.which('gcloud') is None:
        raise UserError(
            f'--workdir={workdir}: gcloud is not installed here; install it '
            '(cloud.google.com/sdk) or give a folder of this machine'
        )
    there = subprocess.run(['gcloud', 'storage', 'ls', workdir], capture_output=True, text=True)
    if there.returncode and 'matched no objects' in there.stderr:
        return  # nothing there yet
    done = (
        there
        if there.returncode
        else subprocess.run([*RSYNC, workdir, str(folder)], capture_output=True, text=True)
    )
    if done.returncode:
        raise UserError(f'--workdir={workdir}: cannot be read ({_reason(done.stderr)})')


class _Sender:
    """Copies a folder to a bucket, one copy at a time, and tells what goes wrong.

    Of stages that wrote checkpoints since, those dropped here are dropped there: the folder was
    fetched from the bucket before, so it held all of them. Nothing else is ever deleted.
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
        """Begin to copy what is new, unless a copy is under way; the next one takes it along."""
        if self._running is None or self._running.poll() is not None:
            self._ended_well()
            self._start()

    def finish(self) -> bool:
        """Copy what is new, return when it is there; False where it is not."""
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
        """Wait for the copy under way, and tell why it failed, if so."""
        running, self._running = self._running, None
        if running is None or not running.wait():
            return True
        self._complaints.seek(0)
        cli.tell(
            f'fluidjax: {self._workdir}: not all was copied '
            f'({_reason(self._complaints.read())}); it is in {self._folder}'
        )
        return False


def _reason(text: str) -> str:
    """gcloud's own word for what is wrong: its first error, of which it says more below."""
    lines = text.strip().splitlines() or ['no reason given']
    return next((line for line in lines if 'ERROR' in line), lines[-1])[:200]
