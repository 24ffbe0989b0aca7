"""The command lines, called as a user calls them, and a run that they leave."""

from __future__ import annotations

import json
import subprocess

import forked
import pytest

from fluidjax.base import files

MODULES = ('main', 'eval')  # called as `python -m fluidjax.main`; the others as `fluidjax VERB`
SMOKE = '--config=configs/ldm.py:smoke'


@pytest.fixture(scope='session')
def command(checkout, tmp_path_factory):
    """Call `fluidjax NAME ARGUMENTS` at the top of the checkout; keywords are variables
    of its environment. Returns the finished process.
    """
    scratch = tmp_path_factory.mktemp('output')

    def call(name, *arguments, timeout=400, **environment):
        module, words = ('fluidjax', [name]) if name not in MODULES else (f'fluidjax.{name}', [])
        return forked.run(
            module,
            *words,
            *arguments,
            folder=checkout,
            scratch=scratch,
            timeout=timeout,
            **environment,
        )

    return call


@pytest.fixture(scope='session')
def everyones(tmp_path_factory, worker_id):
    """A folder that all of pytest's workers share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == 'master' else own.parent) / 'everyones'
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope='session')
def store(everyones):
    """Where cohorts are built."""
    return everyones / 'store'


@pytest.fixture(scope='session')
def trained(command, everyones, store):
    """A smoke run, trained and evaluated, and both commands. Tests must not write into it.

    The worker that comes first makes it; compiling it is what takes longest of all tests.
    """
    workdir, note = everyones / 'smoke', everyones / 'smoke.json'
    with files.locked_in_turn(everyones / 'smoke.lock'):
        if not note.exists():
            done = [
                command(*words, f'--workdir={workdir}', FLUIDJAX_STORE=str(store))
                for words in (('main', SMOKE), ('eval',))
            ]
            note.write_text(json.dumps([vars(process) for process in done]))
    done = [subprocess.CompletedProcess(**kept) for kept in json.loads(note.read_text())]
    for process in done:
        assert process.returncode == 0, process.stderr
    return workdir, *done
