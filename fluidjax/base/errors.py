"""Exceptions that are not bugs: mistakes that a user can correct, and requests to stop."""

from __future__ import annotations

RESUME_ME = 75  # EX_TEMPFAIL of sysexits.h


class UserError(ValueError):
    """A mistake in the input, the configuration or the environment.

    The message is one line that says which file or field, what is wrong with it, and what to do.
    The command lines print it without a traceback and exit with status 2 (`fluidjax.base.cli`).
    """


class DiskError(UserError):
    """A disk that cannot be written to, so that the rest of a command's work would be in vain."""


class Stopped(BaseException):
    """A run was asked to stop and has saved its state; the same command goes on from there.

    Like `KeyboardInterrupt` it is not an `Exception`, so that handlers of errors let it pass.

    Attributes:
        status: exit status of the command: `RESUME_ME` after SIGTERM, which schedulers can be told
            to start again, 130 after Ctrl-C.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
