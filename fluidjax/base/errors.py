"""The exceptions that are no bugs: what a user can mend, and what a user asked for."""

from __future__ import annotations

RESUME_ME = 75  # EX_TEMPFAIL of sysexits.h


class UserError(ValueError):
    """A mistake in the input, the configuration or the environment.

    The message is one line that says which file or field, what is wrong with it, and what to do.
    The command lines print it without a traceback and exit with status 2 (`fluidjax.base.cli`).
    """


class Stopped(BaseException):
    """A run that was asked to stop has saved itself; the same command goes on from there.

    No `Exception`, as `KeyboardInterrupt` is none: what mends errors must let it through.

    Attributes:
        status: exit status of the command: `RESUME_ME` after SIGTERM, which schedulers can be told
            to start again, 130 after Ctrl-C.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
