"""The state of a run as one tree, which is what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Params = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes, and the frozen parameters.

    The keys of the random draws are not part of it: they are derived from the seed and the step, so
    that a resumed run continues as if it had never stopped.

    Attributes:
        step: number of steps done, int32 scalar.
        params: the parameter groups in training, by name.
        frozen: the parameter groups that are used but not changed (a trained autoencoder).
        ema: exponential moving average of `params`.
        opt_state: the optimiser's state for `params`.
    """

    step: jax.Array
    params: Params
    frozen: Params
    ema: Params
    opt_state: optax.OptState

    def averaged(self) -> Params:
        """All parameter groups as evaluation uses them: the averages of those that were trained."""
        return {**self.frozen, **self.ema}


def create_state(
    params: Params, trainable: tuple[str, ...], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step.

    Args:
        params: all parameter groups of the method, by name.
        trainable: the names of the groups to train; the others are frozen.
        optimizer: the optimiser of the trained groups.
    """
    trained = {name: params[name] for name in trainable}
    frozen = {name: group for name, group in params.items() if name not in trainable}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        frozen=frozen,
        # A copy: the step donates its input, and two leaves must not share one buffer.
        ema=jax.tree.map(jnp.array, trained),
        opt_state=optimizer.init(trained),
    )


def run_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """`jax.jit(function)(*arguments)`, compiled without optimisation on a CPU.

    For drawing initial parameters: they are hundreds of random number generators that run once, and
    on a CPU optimising them is most of the time of a first run (measured for a small autoencoder:
    23 s to compile, 1.2 s without). The numbers are the same.
    """
    options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    return jax.jit(function).lower(*arguments).compile(options)(*arguments)
