"""The one place that knows how many devices there are: replication and `jax.pmap`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fluidjax.training.steps import StepFn

AXIS_NAME = 'device'


def data_parallel(step: StepFn) -> StepFn:
    """The step on every local device: leaves of state and batch have a leading device axis.

    The state is donated: its buffers are reused for the new one.
    """
    return jax.pmap(step, axis_name=AXIS_NAME, in_axes=(0, 0, None), donate_argnums=(0,))


def replicate(tree: Any) -> Any:
    """Copy a tree onto every local device, with a leading device axis."""
    devices = jax.local_device_count()
    # pmap wants a mapped argument; the tree itself is broadcast. The axis has the step's name, or
    # the step would compile twice: for this state, and for its own output's sharding.
    copy = jax.pmap(lambda _, x: x, axis_name=AXIS_NAME, in_axes=(0, None))
    return copy(np.zeros(devices, np.float32), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of a replicated tree, as numpy arrays on the host."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)
