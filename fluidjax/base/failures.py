"""What went wrong with one file of many, as one line, so that the others can go on."""

from __future__ import annotations

import os

from fluidjax.base.disk import line_of
from fluidjax.base.errors import UserError
from fluidjax.base.names import shown


def failure_line(path: str | os.PathLike[str], error: Exception) -> str:
    """What went wrong with a file, as one line that begins with its path."""
    path, text = shown(path), ' '.join(shown(str(error)).split())
    if isinstance(error, OSError):
        text = line_of(error)
    if isinstance(error, (UserError, OSError)):
        return text if text.startswith(path) else f'{path}: {text}'
    if is_of_memory(error):
        return (
            f'{path}: not enough memory ({text[:200]}); close other programs, or work on fewer '
            'scans at once'
        )
    what = f'{type(error).__name__}: {text[:200]}'
    return f'{path}: failed unexpectedly ({what}); look at it in a viewer'


def is_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory, of the computer or of its accelerator."""
    return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)
