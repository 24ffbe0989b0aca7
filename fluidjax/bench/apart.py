"""Calls in a process of their own, which may run out of memory, crash, or take too long.

A process that failed is not used again: what it holds of a device's memory is given back.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from fluidjax.base.errors import UserError

MEMORY = ('RESOURCE_EXHAUSTED', 'out of memory', 'Out of memory', 'OutOfMemory')


class Failed(Exception):
    """A call did not return; the message says why in a few words."""


class Process:
    """A process for calls, started at the first and after every failure."""

    def __init__(self) -> None:
        self._running: tuple[Any, Connection] | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """What a function returns in the process.

        Args:
            function: of a module's top level.
            arguments: that can be pickled, as what it returns.
            seconds: the longest that the call may take.

        Raises:
            Failed: it took longer, raised an error, or ended the process.
            UserError: the function raised one.
        """
        if self._running is None:
            self._running = _start()
        process, connection = self._running
        try:
            connection.send((function, arguments))
            if not connection.poll(max(0.0, seconds)):
                raise Failed(f'more than {seconds:.0f} s')
            kind, result = connection.recv()
        except (EOFError, ConnectionError):
            process.join(5.0)
            self.end()
            raise Failed(f'the process ended with status {process.exitcode}') from None
        except BaseException:
            self.end()
            raise
        if kind == 'result':
            return result
        self.end()
        raise (UserError if kind == 'mistake' else Failed)(result)

    def end(self) -> None:
        """End the process."""
        if self._running is None:
            return
        process, connection = self._running
        self._running = None
        connection.close()
        process.kill()
        process.join()


@contextlib.contextmanager
def process() -> Iterator[Process]:
    """A `Process` that ends with the block."""
    made = Process()
    try:
        yield made
    finally:
        made.end()


def left(deadline: float) -> float:
    """Seconds until a time of `time.monotonic`."""
    return deadline - time.monotonic()


def _start() -> tuple[Any, Connection]:
    spawn = multiprocessing.get_context('spawn')  # a fork would share the device's runtime
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there,))  # no daemon: compilers start processes
    process.start()
    there.close()
    return process, here


def _serve(connection: Connection) -> None:
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = 'result', function(*arguments)
        except UserError as error:
            answer = 'mistake', str(error)
        except Exception as error:
            answer = 'error', _brief(error)
        connection.send(answer)


def _brief(error: Exception) -> str:
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return 'out of memory' if any(word in text for word in MEMORY) else text[:200]
