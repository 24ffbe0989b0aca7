"""Compiling a function that runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def run_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """`jax.jit(function)(*arguments)`, compiled without optimisation on a CPU.

    Drawing initial parameters is hundreds of random number generators that run once; on a CPU
    optimising them is most of the time of a first run (measured for a small autoencoder: 23 s to
    compile, 1.2 s without). The numbers are those of the key, as ever.
    """
    options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    return jax.jit(function).lower(*arguments).compile(options)(*arguments)
