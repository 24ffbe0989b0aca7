"""Which worker does which trial: one folder a trial, and a lock that its worker holds.

A lock ends with the process that holds it, so the trial of a worker that died is free again, and
whoever takes it goes on from its last checkpoint. Workers share a folder on one machine, or on a
file system with locks between machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from fluidjax.base import files
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_text
from fluidjax.base.trials import Between, Fields, Sweep


@dataclasses.dataclass
class Claim:
    """A trial that is this worker's until it is given back.

    Attributes:
        name: of the trial, and of its folder.
        fields: what it changes.
        lock: the open lock file.
    """

    name: str
    fields: Fields
    lock: IO[str]

    def give_back(self) -> None:
        """Let others take it."""
        self.lock.close()


class TrialStore:
    """Trials listed beforehand.

    Args:
        workdir: the sweep's folder.
        trials: fields by name.
    """

    def __init__(self, workdir: Path, trials: dict[str, Fields]) -> None:
        self.workdir, self._trials = workdir, trials

    def names(self) -> list[str]:
        """All trials known by now, in their order."""
        return list(self._trials)

    def count(self) -> int:
        """How many there will be."""
        return len(self._trials)

    def fields(self, name: str) -> Fields:
        """What a trial changes."""
        return self._trials[name]

    def result(self, name: str) -> dict[str, Any] | None:
        """What a trial came to: `{'fields', 'score', 'scores'}` or `{'fields', 'error'}`."""
        path = self.workdir / name / 'trial.json'
        return json.loads(path.read_text()) if path.is_file() else None

    def results(self) -> dict[str, dict[str, Any]]:
        """The trials that are finished, with what they came to."""
        made = {name: self.result(name) for name in self.names()}
        return {name: result for name, result in made.items() if result is not None}

    def next(self) -> Claim | None:
        """A trial that is neither finished nor another's, or None where there is none now."""
        for name in self.names():
            claim = self._claim(name)
            if claim is not None:
                return claim
        return None

    def _claim(self, name: str) -> Claim | None:
        if self.result(name) is not None:
            return None
        lock = files.take_lock(self.workdir / '.claims' / f'{name}.lock')
        if lock is None:
            return None
        if self.result(name) is not None:  # finished between the two looks
            lock.close()
            return None
        return Claim(name, self.fields(name), lock)

    def finish(self, claim: Claim, made: dict[str, Any]) -> None:
        """Write down what a trial came to, and give it back."""
        whose = f'process {os.getpid()} on {socket.gethostname()}'
        write_text(
            self.workdir / claim.name / 'trial.json',
            json.dumps({'fields': dict(claim.fields), 'worker': whose, **made}, indent=2) + '\n',
        )
        claim.give_back()

    def forget_failures(self) -> None:
        """Let trials that failed be tried again."""
        for name, result in self.results().items():
            if 'error' in result:
                (self.workdir / name / 'trial.json').unlink()


class SearchStore(TrialStore):
    """Trials that Optuna proposes, knowing those before; its journal is the shared store.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, workdir: Path, sweep: Sweep) -> None:
        super().__init__(workdir, {})
        try:
            import optuna
        except ImportError as error:
            raise UserError('sweep: a search needs Optuna: pip install optuna') from error
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        self._sweep, self._optuna = sweep, optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        workdir.mkdir(parents=True, exist_ok=True)
        self._space = {name: self._distribution(where) for name, where in sweep.search}
        with files.locked_in_turn(workdir / '.claims' / 'search.lock'):
            self._study = optuna.create_study(
                study_name='sweep',
                direction='maximize',
                load_if_exists=True,
                storage=JournalStorage(JournalFileBackend(str(workdir / 'optuna.journal'))),
            )

    def _distribution(self, where: Any) -> Any:
        kinds = self._optuna.distributions
        if isinstance(where, Between):
            return kinds.FloatDistribution(where.low, where.high, log=where.log)
        return kinds.CategoricalDistribution(where.values)

    def names(self) -> list[str]:
        """Those proposed by now."""
        return [f'trial-{t.number:03d}' for t in self._study.get_trials(deepcopy=False)]

    def count(self) -> int:
        """How many there will be."""
        return self._sweep.count

    def fields(self, name: str) -> Fields:
        """What Optuna proposed."""
        return self._study.get_trials(deepcopy=False)[int(name.removeprefix('trial-'))].params

    def next(self) -> Claim | None:
        """One whose worker died, else a new one."""
        claim = super().next()
        if claim is not None:
            return claim
        with files.locked_in_turn(self.workdir / '.claims' / 'search.lock'):
            if len(self.names()) >= self.count():
                return None
            number = self._study.ask(self._space).number
            return self._claim(f'trial-{number:03d}')

    def finish(self, claim: Claim, made: dict[str, Any]) -> None:
        """Also tell Optuna, before the others may look."""
        failed = self._optuna.trial.TrialState.FAIL if 'error' in made else None
        with contextlib.suppress(ValueError):  # told by a worker that died just after
            self._study.tell(int(claim.name.removeprefix('trial-')), made.get('score'), failed)
        super().finish(claim, made)
