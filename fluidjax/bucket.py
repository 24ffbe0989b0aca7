"""A run's folder on a Google Cloud bucket: a folder here that is fetched from and copied to it.

A run writes many small files and renames folders, which buckets do not know. So it is trained in
an ordinary folder, and `gcloud storage rsync` carries what is new to the bucket: after a checkpoint
while training goes on, and at the end, however that comes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fluidjax import cli
from fluidjax.errors import UserError
from fluidjax.training import parallel

SCHEME = 'gs://'
UNFINISHED = r'.*orbax-checkpoint-tmp.*|\.lock$'  # what is being written is no use there


def local_folder(workdir: str) -> Path:
    """Where a bucket's folder is kept here, $FLUIDJAX_BUCKETS or a cache; others as they are."""
    if not workdir.startswith(SCHEME):
        return Path(workdir).expanduser()
    name = workdir.removeprefix(SCHEME).strip('/')
    if not re.fullmatch(r'[\w.\-]+(/[\w.\- =]+)+', name) or '..' in name.split('/'):
        raise UserError(f"--workdir: '{workdir}' is no folder of a bucket; write gs://BUCKET/FOLDER")
    home = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'fluidjax' / 'buckets'
    return Path(os.environ.get('FLUIDJAX_BUCKETS', home)) / name


@contextlib.contextmanager
def mirrored_folder(workdir: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder to train in, and what to call when there is something new in it.

    Raises:
        UserError: the bucket cannot be read, or written at the end.
    """
    folder = local_folder(workdir)
    if not workdir.startswith(SCHEME) or not parallel.is_first():
        yield folder, lambda: None
        return
    if shutil.which('gcloud') is None:
        raise UserError(f'--workdir={workdir}: gcloud is not installed here; install it '
                        '(cloud.google.com/sdk) or give a folder of this machine')
    folder.mkdir(parents=True, exist_ok=True)
    _fetch(workdir, folder)
    sender = _Sender(folder, workdir)
    try:
        yield folder, sender.send
    finally:
        sender.finish()


def _fetch(workdir: str, folder: Path) -> None:
    there = subprocess.run(['gcloud', 'storage', 'ls', workdir], capture_output=True, text=True)
    if there.returncode and 'matched no objects' in there.stderr:
        return  # nothing there yet
    done = there if there.returncode else subprocess.run(
        ['gcloud', 'storage', 'rsync', '--recursive', workdir, str(folder)],
        capture_output=True, text=True)
    if done.returncode:
        raise UserError(f'--workdir={workdir}: cannot be read ({_reason(done.stderr)})')


class _Sender:
    """Copies a folder to a bucket, one copy at a time.

    Of stages that wrote checkpoints since, those dropped here are dropped there: the folder was
    fetched from the bucket before, so it held all of them. Nothing else is ever deleted.
    """

    def __init__(self, folder: Path, workdir: str) -> None:
        self._folder, self._workdir = folder, workdir
        self._running: subprocess.Popen | None = None
        self._since = time.time()

    def _commands(self) -> str:
        copy = ['gcloud', 'storage', 'rsync', '--recursive', f'--exclude={UNFINISHED}']
        lines = [[*copy, str(self._folder), self._workdir]]
        for stage in sorted(self._folder.rglob('checkpoints/*')):
            if stage.is_dir() and stage.stat().st_mtime > self._since:
                lines.append([*copy, '--delete-unmatched-destination-objects', str(stage),
                              f'{self._workdir}/{stage.relative_to(self._folder)}'])
        return ' && '.join(' '.join(f"'{word}'" for word in line) for line in lines)

    def send(self) -> None:
        """Begin to copy what is new, unless a copy is under way; the next one takes it along."""
        if self._running is None or self._running.poll() is not None:
            self._running = subprocess.Popen(
                ['sh', '-c', self._commands()], stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True)

    def finish(self) -> None:
        """Copy what is new and return when it is there."""
        if self._running is not None:
            self._running.wait()
        done = subprocess.run(['sh', '-c', self._commands()], capture_output=True, text=True)
        if done.returncode:
            cli.tell(f'fluidjax: {self._workdir}: not all was copied ({_reason(done.stderr)}); '
                     f'it is in {self._folder}, and the same command copies it')


def _reason(text: str) -> str:
    """gcloud's own word for what is wrong: its first error, of which it says more below."""
    lines = text.strip().splitlines() or ['no reason given']
    return next((line for line in lines if 'ERROR' in line), lines[-1])[:200]
