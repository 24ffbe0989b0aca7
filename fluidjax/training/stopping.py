"""Being asked to stop: SIGTERM of a scheduler or a preempted machine, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

RESUME_ME = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130


class StopRequest:
    """Remembers a signal until a step has ended; use it as a context manager.

    The first signal lets the run save itself, a second Ctrl-C ends it at once. In several
    processes JAX's coordination service passes SIGTERM on, so that all stop after the same step;
    Ctrl-C ends a process there at once.
    """

    def __init__(self) -> None:
        self._status: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._status is not None:
            raise KeyboardInterrupt
        self._status = RESUME_ME if number == signal.SIGTERM else INTERRUPTED

    def after(self, step: int) -> int | None:
        """The exit status to stop with after a step, or None to go on.

        In several processes each must ask after the same steps.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return RESUME_ME
        return self._status
