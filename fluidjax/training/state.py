"""What a run is at one moment, as one tree: it is what a checkpoint holds, whole."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Params = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything a training step changes, and the frozen parameters beside it.

    Keys of the random draws are not part of it: they are folded from the seed and the step, so a
    run continues as if it had never stopped.

    Attributes:
        step: steps done, int32 scalar.
        params: the parameter groups in training, by name.
        frozen: the parameter groups that are used and never changed (a trained autoencoder).
        ema: exponential moving average of `params`.
        opt_state: the optimiser's state for `params`.
    """

    step: jax.Array
    params: Params
    frozen: Params
    ema: Params
    opt_state: optax.OptState

    def averaged(self) -> Params:
        """All parameter groups as evaluation uses them: averaged where trained."""
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
