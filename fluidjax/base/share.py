"""Which samples of a step's batch are here, so that the number of devices changes no result.

Random numbers belong to the samples of the whole batch: each device draws those of its own samples
alone, and eight devices train on the same pairs, times and noise as one.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Share:
    """One device's samples among those of a step.

    Attributes:
        first: place of its first sample in the whole batch.
        total: samples of the whole batch; None: these are all.
        axis: the mapped axis of the devices; None outside of one.
    """

    first: Any = 0
    total: int | None = flax.struct.field(pytree_node=False, default=None)
    axis: str | None = flax.struct.field(pytree_node=False, default=None)

    def keys(self, key: jax.Array, count: int) -> jax.Array:
        """A key for each sample here, `(count,)`: of the whole batch they are `split(key)`."""
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, self.first + jnp.arange(count))

    def normal(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Normal numbers for the samples here, `(count, ...)`."""
        return self._own(jax.random.normal, key, shape)

    def uniform(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Numbers in [0, 1) for the samples here, `(count, ...)`."""
        return self._own(jax.random.uniform, key, shape)

    def _own(self, draw: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        count, *rest = shape
        if self.total in (None, count):
            return draw(key, shape)
        everybodys = draw(key, (self.total, *rest))
        return jax.lax.dynamic_slice_in_dim(everybodys, self.first, count)

    def device_mean(self, value: jax.Array) -> jax.Array:
        """The mean of a device's value over all devices; for what a loss is divided by."""
        return value if self.axis is None else jax.lax.pmean(value, self.axis)

    def everyones(self, values: jax.Array) -> jax.Array:
        """The values `(count, ...)` of all devices, in the order of the batch."""
        if self.axis is None:
            return values
        return jax.lax.all_gather(values, self.axis, tiled=True)

    def predecessors(self, values: jax.Array) -> jax.Array:
        """For each sample here `(count, ...)` the one before it in the batch, the first's the last.

        Where a step's samples are gone through in parts, the batch is the devices' current part.
        """
        if self.axis is None:
            return jnp.roll(values, 1, axis=0)
        devices = jax.lax.axis_size(self.axis)
        around = [(i, (i + 1) % devices) for i in range(devices)]
        return jnp.concatenate([jax.lax.ppermute(values[-1:], self.axis, around), values[:-1]])


WHOLE = Share()


def sample_keys(key: jax.Array, count: int) -> jax.Array:
    """Keys `(count,)` of a batch: `key` split, or as it is where it is one a sample."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed and key.shape == (count,) else jax.random.split(key, count)
