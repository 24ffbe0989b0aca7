"""The one place that knows of devices and processes: how a batch lies on them, and `jax.pmap`.

State is on every device; a batch has a leading axis of the devices of its process. One process
alone, the usual case, pays nothing for the others that could be there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fluidjax.base.errors import UserError

AXIS_NAME = 'device'


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the samples of a step lie on the devices.

    Attributes:
        batch_size: samples of a step, over all devices of all processes.
        devices: those of this process that are used.
        process: number of this process.
        processes: how many there are.
    """

    batch_size: int
    devices: tuple[Any, ...]
    process: int = 0
    processes: int = 1

    @property
    def local_batch(self) -> int:
        """Samples of this process."""
        return self.batch_size // self.processes

    @property
    def per_device(self) -> int:
        """Samples of one device."""
        return self.local_batch // len(self.devices)

    @property
    def first(self) -> np.ndarray:
        """For each device here, the place of its first sample in the whole batch."""
        start = self.process * self.local_batch
        return start + self.per_device * np.arange(len(self.devices), dtype=np.int32)


def layout_of(batch_size: int, parts: int = 1) -> Layout:
    """The layout of a batch on the devices there are.

    One process uses as many of its devices as share the batch evenly; several use all of theirs.

    Args:
        batch_size: samples of a step.
        parts: in how many parts each device goes through its own (`StageSettings.accumulate`).

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    here, processes = jax.local_devices(), jax.process_count()
    used = len(here)
    if processes == 1:
        fitting = [n for n in range(1, used + 1) if batch_size % (n * parts) == 0]
        used = max(fitting, default=0)
    if not used or batch_size % (used * processes * parts):
        where = f'{len(here) * processes} device(s)' + (f' in {parts} parts' if parts > 1 else '')
        raise UserError(
            f'training.batch_size {batch_size} cannot be shared evenly by {where}; '
            'choose a multiple'
        )
    return Layout(batch_size, tuple(here[:used]), jax.process_index(), processes)


def data_parallel(
    function: Callable[..., Any],
    layout: Layout,
    spread: tuple[bool, ...],
    donated: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """A function of one device on all of them.

    Args:
        function: run in a mapped axis of the name `AXIS_NAME`.
        layout: the devices.
        spread: for each argument whether it has a leading device axis.
        donated: arguments whose buffers are reused for the results.
    """
    # Several processes: the axis runs over the devices of all, which pmap takes by itself.
    devices = layout.devices if layout.processes == 1 else None
    axes = tuple(0 if each else None for each in spread)
    return jax.pmap(
        function, axis_name=AXIS_NAME, in_axes=axes, donate_argnums=donated, devices=devices
    )


def to_devices(tree: Any, layout: Layout) -> Any:
    """Host arrays with a leading device axis, on their way to the devices; does not wait."""
    mesh = Mesh(np.array(layout.devices), (AXIS_NAME,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS_NAME)))


def replicate(tree: Any, layout: Layout) -> Any:
    """Copy a tree onto every device, with a leading device axis: the first process's, onto all."""
    if layout.processes > 1:
        tree = multihost_utils.broadcast_one_to_all(tree)
    # pmap wants a mapped argument; the tree itself is broadcast. The axis has the step's name, or
    # the step would compile twice: for this state, and for its own output's sharding.
    copy = data_parallel(lambda _, x: x, layout, (True, False))
    return copy(np.zeros(len(layout.devices), np.float32), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of a replicated tree, as numpy arrays on the host.

    They are copies: on a CPU numpy would look into a buffer that the next step reuses.
    """
    for leaf in jax.tree.leaves(tree):
        leaf.addressable_shards[0].data.copy_to_host_async()
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data)[0], tree)


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


def from_first(number: int) -> int:
    """A whole number as the first process has it."""
    if is_alone():
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What ends one process here ends all of them: nobody waits for the lost.

    All processes must pass through, and none may use the devices of others within.

    Raises:
        UserError, OSError: a process's own; in the others a UserError that there is one.
    """
    problem = None
    try:
        yield
    except (UserError, OSError) as error:
        problem = error
    if not is_alone():
        bad = multihost_utils.process_allgather(np.int32(problem is not None))
        if problem is None and bad.any():
            raise UserError(
                f'stopped with process {int(np.argmax(bad))} of this run, which says why'
            )
    if problem is not None:
        raise problem


def text_from_first(text: str) -> str:
    """A text as the first process has it."""
    if is_alone():
        return text
    content = np.frombuffer(text.encode(), np.uint8)
    given = np.zeros(from_first(len(content)), np.uint8)
    if is_first():
        given[:] = content
    return multihost_utils.broadcast_one_to_all(given).tobytes().decode()
