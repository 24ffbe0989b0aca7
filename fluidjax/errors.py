"""The one exception that means: the user can mend this."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input, the configuration or the environment.

    The message is one line that says which file or field, what is wrong with it, and what to do.
    The command lines print it without a traceback and exit with status 2 (`fluidjax.cli`).
    """
