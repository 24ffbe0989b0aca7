"""A trace of some steps, for TensorBoard's profile page or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax

# The first dispatches compile; a trace of them would show nothing else.
SKIPPED = 2


class Profile:
    """Traces some dispatches of a stage; use it as a context manager.

    Args:
        folder: where the trace goes.
        dispatches: how many are traced, after the first two; 0: none.
    """

    def __init__(self, folder: Path, dispatches: int) -> None:
        self._folder, self._dispatches = folder, dispatches
        self._seen, self._open = 0, False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before_dispatch(self) -> None:
        """One more dispatch is about to begin."""
        if self._dispatches and self._seen == SKIPPED:
            jax.profiler.start_trace(str(self._folder))
            self._open = True
        if self._seen == SKIPPED + self._dispatches:
            self._stop()
        self._seen += 1

    def _stop(self) -> None:
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
