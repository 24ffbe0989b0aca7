"""Which worker does which trial: one folder per trial, and a lock that its worker holds.

A lock ends with the process that holds it. So the trial of a worker that died is free again, and
the next worker continues it from its last checkpoint. The workers share a folder, on one machine or
on a file system with locks between machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ml_collections import ConfigDict

from fluidjax.base import files
from fluidjax.base.errors import UserError
from fluidjax.base.trials import Between, Fields, Sweep


@dataclasses.dataclass
class Claim:
    """A trial that this worker holds until it gives it back.

    Attributes:
        name: of the trial, and of its folder.
        fields: of the configuration that it changes.
        lock: the open lock file.
    """

    name: str
    fields: Fields
    lock: IO[str]

    def give_back(self) -> None:
        """Let other workers take it."""
        self.lock.close()


class TrialStore:
    """Trials that are listed beforehand.

    Args:
        workdir: folder of the sweep.
        trials: for each trial the fields it changes.
    """

    def __init__(self, workdir: Path, trials: dict[str, Fields]) -> None:
        self.workdir, self._trials = workdir, trials

    def names(self) -> list[str]:
        """The trials known so far, in order."""
        return list(self._trials)

    def count(self) -> int:
        """Number of trials when all are known."""
        return len(self._trials)

    def fields(self, name: str) -> Fields:
        """The fields that a trial changes."""
        return self._trials[name]

    def result(self, name: str) -> dict[str, Any] | None:
        """The result of a finished trial, or None.

        It is `{'fields', 'worker', 'score', 'scores'}` or `{'fields', 'worker', 'error'}`.
        """
        path = self.workdir / name / 'trial.json'
        return files.read_json(path, 'delete it to repeat the trial') if path.is_file() else None

    def results(self) -> dict[str, dict[str, Any]]:
        """The results of the finished trials."""
        results = {name: self.result(name) for name in self.names()}
        return {name: result for name, result in results.items() if result is not None}

    def next(self) -> Claim | None:
        """A trial that is not finished and that no worker holds, or None."""
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
        if self.result(name) is not None:  # finished before the lock was taken
            lock.close()
            return None
        return Claim(name, self.fields(name), lock)

    def finish(self, claim: Claim, result: dict[str, Any]) -> None:
        """Write a trial's result, and give the trial back."""
        worker = f'process {os.getpid()} on {socket.gethostname()}'
        files.write_json(
            self.workdir / claim.name / 'trial.json',
            {'fields': dict(claim.fields), 'worker': worker, **result},
        )
        claim.give_back()

    def refuse_another_sweep(self, configure: Callable[[Fields], ConfigDict]) -> None:
        """Check that the results here are of the configurations of this sweep.

        Results of older versions do not say of which they are.

        Raises:
            UserError: one is of another configuration.
        """
        for name, result in self.results().items():
            if result.get('config') not in (None, digest(configure(self.fields(name)))):
                raise UserError(
                    f'{self.workdir / name}: is the trial of another configuration; choose another '
                    '--workdir, or delete this folder to do the trial again'
                )

    def forget_failures(self) -> None:
        """Delete the results of trials that failed, so that they are done again."""
        for name, result in self.results().items():
            if 'error' in result:
                (self.workdir / name / 'trial.json').unlink()


def digest(config: ConfigDict) -> str:
    """Hash of a configuration, ten hexadecimal digits."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class SearchStore(TrialStore):
    """Trials that Optuna proposes from the results so far; the workers share its journal.

    Args:
        workdir: folder of the sweep.
        sweep: with a search.

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
        """The trials proposed so far."""
        return [f'trial-{t.number:03d}' for t in self._study.get_trials(deepcopy=False)]

    def count(self) -> int:
        """Number of trials when all are proposed."""
        return self._sweep.count

    def fields(self, name: str) -> Fields:
        """The fields that Optuna proposed."""
        return self._study.get_trials(deepcopy=False)[self._number(name)].params

    def _number(self, name: str) -> int:
        return int(name.removeprefix('trial-'))

    def next(self) -> Claim | None:
        """A trial whose worker died, else a new one; None when all are proposed."""
        claim = super().next()
        if claim is not None:
            return claim
        with files.locked_in_turn(self.workdir / '.claims' / 'search.lock'):
            if len(self.names()) >= self.count():
                return None
            number = self._study.ask(self._space).number
            return self._claim(f'trial-{number:03d}')

    def finish(self, claim: Claim, result: dict[str, Any]) -> None:
        """Also tell Optuna the result, before other workers see the trial finished."""
        failed = self._optuna.trial.TrialState.FAIL if 'error' in result else None
        # Optuna has the result already where a worker died between the two steps.
        with contextlib.suppress(ValueError):
            self._study.tell(self._number(claim.name), result.get('score'), failed)
        super().finish(claim, result)
