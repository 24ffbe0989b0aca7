"""The order in which parts of a large sum are computed on a CPU.

XLA prepares the inputs of all parts at first and keeps them: of a convolution at 160^3 that is
several GB. So each part waits for the sum of those before it.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import jax
from jax import lax

T = TypeVar('T')
WORTH_WAITING = 2**28  # bytes; smaller values fit beside each other


def is_large(values: Any) -> bool:
    """Whether arrays are worth an order of their own."""
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(values))
    return size >= WORTH_WAITING


def one_after_another(values: T) -> T:
    """The same values: what is computed from them waits for all of them, if they are large."""
    return lax.optimization_barrier(values) if is_large(values) else values
