"""The part of a batch that a device has, so that results do not depend on the number of devices.

Random numbers belong to the samples of the whole batch. Each device draws only those of its own
samples, so that eight devices train on the same pairs, times and noise as one.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Share:
    """The samples of one device in the batch of a step.

    Attributes:
        first: place of its first sample in the whole batch.
        total: number of samples in the whole batch; None: the device has all of them.
        axis: name of the mapped axis of the devices; None outside of such an axis.
    """

    first: Any = 0
    total: int | None = flax.struct.field(pytree_node=False, default=None)
    axis: str | None = flax.struct.field(pytree_node=False, default=None)

    def keys(self, key: jax.Array, count: int) -> jax.Array:
        """A key per sample `(count,)`; over the whole batch they are `jax.random.split(key)`."""
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, self.first + jnp.arange(count))

    def normal(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Normal numbers of a shape `(count, ...)`, for the samples of this device."""
        return self._own(jax.random.normal, key, shape)

    def uniform(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Numbers in [0, 1) of a shape `(count, ...)`, for the samples of this device."""
        return self._own(jax.random.uniform, key, shape)

    def _own(self, draw: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        count, *rest = shape
        if self.total in (None, count):
            return draw(key, shape)
        numbers = draw(key, (self.total, *rest))
        return jax.lax.dynamic_slice_in_dim(numbers, self.first, count)

    def device_mean(self, value: jax.Array) -> jax.Array:
        """The mean of a value over all devices, e.g. of the denominator of a loss."""
        return value if self.axis is None else jax.lax.pmean(value, self.axis)

    def everyones(self, values: jax.Array) -> jax.Array:
        """The values `(count, ...)` of all devices, in the order of the batch."""
        if self.axis is None:
            return values
        return jax.lax.all_gather(values, self.axis, tiled=True)

    def predecessors(self, values: jax.Array) -> jax.Array:
        """For each sample `(count, ...)` the one before it in the batch; for the first the last.

        If a step goes through its samples in parts, the batch is the current part of all devices.
        """
        if self.axis is None:
            return jnp.roll(values, 1, axis=0)
        devices = jax.lax.axis_size(self.axis)
        around = [(i, (i + 1) % devices) for i in range(devices)]
        return jnp.concatenate([jax.lax.ppermute(values[-1:], self.axis, around), values[:-1]])


WHOLE = Share()


def sample_keys(key: jax.Array, count: int) -> jax.Array:
    """Keys `(count,)` of a batch: `key` split, or `key` itself if it has one key per sample."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed and key.shape == (count,) else jax.random.split(key, count)
