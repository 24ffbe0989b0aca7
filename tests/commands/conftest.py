"""The command lines, called as a user calls them, and a run that they leave."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import forked
import jax
import pytest

from fluidjax.__main__ import VERBS
from fluidjax.base import files

MODULES = ('main', 'eval')  # called as `python -m fluidjax.main`; the others as `fluidjax VERB`
SMOKE = '--config=configs/ldm.py:smoke'


@pytest.fixture(scope='session', autouse=True)
def one_device():
    """JAX is in use here before a command of this process makes a device of every core."""
    jax.devices()


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


@pytest.fixture
def call(checkout, store, monkeypatch, capfd):
    """Call `fluidjax VERB ARGUMENTS` in this process, without a process's imports.

    For commands that end before any work: mistakes, and runs that are finished. Flags keep their
    values, so each call has a module of its own.
    """
    monkeypatch.chdir(checkout)
    monkeypatch.setenv('FLUIDJAX_STORE', str(store))

    def run(verb, *arguments):
        name = VERBS[verb][0]
        importlib.import_module(name)  # where the command looks for its help
        spec = importlib.util.find_spec(name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        words = [f'fluidjax {verb}', *map(str, arguments)]
        monkeypatch.setattr(sys, 'argv', words)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            module.command()
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope='session')
def trained(command, everyones, store):
    """A smoke run of one device, trained and evaluated, and both commands; not to be written into.

    The first worker makes it, the others wait for it: nothing in the tests takes longer to compile.
    """
    workdir, note = everyones / 'smoke', everyones / 'smoke.json'
    with files.locked_in_turn(everyones / 'smoke.lock'):
        if not note.exists():
            done = [
                command(
                    *words,
                    f'--workdir={workdir}',
                    FLUIDJAX_STORE=str(store),
                    JAX_NUM_CPU_DEVICES='1',
                )
                for words in (('main', SMOKE), ('eval',))
            ]
            note.write_text(json.dumps([vars(process) for process in done]))
    done = [subprocess.CompletedProcess(**kept) for kept in json.loads(note.read_text())]
    for process in done:
        assert process.returncode == 0, process.stderr
    return workdir, *done
