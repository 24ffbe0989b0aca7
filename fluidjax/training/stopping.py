"""Requests to stop: SIGTERM from a scheduler or a preempted machine, and Ctrl-C."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from jax.experimental import multihost_utils

from fluidjax.base.errors import RESUME_ME, Stopped
from fluidjax.training import parallel

INTERRUPTED = 130
# JAX stops all processes at the call after the largest number that any process has called with, so
# every call takes the next number, over all stages and trials. Orbax calls with the steps that it
# saves; to be unaffected by them, these numbers are larger.
_asked = itertools.count(2**30)


class StopRequest:
    """Listens to signals; use it as a context manager.

    During training steps (`deferred`) a signal is remembered, so that the run can save itself; a
    second Ctrl-C ends it at once. Elsewhere nothing can be lost, and the first signal ends it. With
    several processes JAX's coordination service passes SIGTERM on, so that all stop after the same
    dispatch; Ctrl-C ends a process at once.
    """

    def __init__(self) -> None:
        self._status: int | None = None
        self._deferring = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if parallel.is_alone() and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self._status is not None or not self._deferring):
            raise KeyboardInterrupt
        self._status = RESUME_ME if number == signal.SIGTERM else INTERRUPTED
        if not self._deferring:
            raise Stopped('stopped; the same command goes on from there', RESUME_ME)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Remember signals within the block; `after_dispatch` returns what they ask for."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @property
    def status(self) -> int | None:
        """The exit status that a signal to this process has asked for, or None."""
        return self._status

    def after_dispatch(self) -> int | None:
        """The exit status to stop with now, or None to go on.

        With several processes all must call it equally often.
        """
        if parallel.is_alone():
            return self._status
        return RESUME_ME if multihost_utils.reached_preemption_sync_point(next(_asked)) else None
