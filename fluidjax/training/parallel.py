"""Devices and processes: how a batch is distributed over them, and `jax.pmap`.

No other module knows how many there are. The state is on every device; a batch has the devices of
its process as a leading axis. With one process, the usual case, nothing is communicated.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fluidjax.base.errors import UserError

AXIS_NAME = 'device'


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the samples of a step are distributed over the devices.

    Attributes:
        batch_size: samples of a step, over all devices of all processes.
        devices: the devices of this process that are used.
        process: number of this process, from 0.
        processes: number of processes.
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
        """The place in the whole batch of the first sample of each device of this process."""
        start = self.process * self.local_batch
        return start + self.per_device * np.arange(len(self.devices), dtype=np.int32)


def layout_of(batch_size: int, stage: str = '') -> Layout:
    """The layout of a batch on the available devices.

    A single process uses as many of its devices as can share the batch evenly; several processes
    use all of their devices.

    Args:
        batch_size: samples of a step.
        stage: whose batch it is, for the message.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    here, processes = jax.local_devices(), jax.process_count()
    used = len(here)
    if processes == 1:
        fitting = [n for n in range(1, used + 1) if batch_size % n == 0]
        used = max(fitting, default=0)
    if not used or batch_size % (used * processes):
        where = f'config.{stage}.training' if stage else 'config.training'
        raise UserError(
            f'{where}.batch_size: {batch_size} cannot be shared evenly by '
            f'{len(here) * processes} device(s); choose a multiple'
        )
    return Layout(batch_size, tuple(here[:used]), jax.process_index(), processes)


def data_parallel(
    function: Callable[..., Any],
    layout: Layout,
    spread: tuple[bool, ...],
    donated: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Run a function of one device on all devices.

    Args:
        function: called on each device, in a mapped axis named `AXIS_NAME`.
        layout: the devices.
        spread: for each argument whether it has a leading device axis.
        donated: arguments whose buffers are reused for the results.
    """
    # With several processes pmap uses the devices of all of them by default.
    devices = layout.devices if layout.processes == 1 else None
    axes = tuple(0 if each else None for each in spread)
    mapped = jax.pmap(
        function, axis_name=AXIS_NAME, in_axes=axes, donate_argnums=donated, devices=devices
    )
    options = compiler_options(layout.devices[0])
    # What pmap compiles for several processes does not take the arrays of one.
    alone = layout.processes == 1
    return _compiled(mapped, options) if options is not None and alone else mapped


def compiler_options(device: Any) -> dict[str, str] | None:
    """What the compiler is told for programs of training on a device; None: nothing.

    On CPUs XLA takes away the barriers between a forward pass and its recomputation before it looks
    for what is computed twice, and so would keep all that `remat` is to save.
    """
    return {'xla_disable_hlo_passes': 'cse_barrier_expander'} if device.platform == 'cpu' else None


def _compiled(mapped: Callable[..., Any], options: dict[str, str]) -> Callable[..., Any]:
    """The function, compiled with options once for each kind of arguments."""
    programs: dict[Any, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        kind = structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if kind not in programs:
            programs[kind] = mapped.lower(*arguments).compile(options)
        return programs[kind](*arguments)

    return call


def to_devices(tree: Any, layout: Layout) -> Any:
    """Begin to copy host arrays with a leading device axis to the devices, without waiting."""
    mesh = Mesh(np.array(layout.devices), (AXIS_NAME,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS_NAME)))


def replicate(tree: Any, layout: Layout) -> Any:
    """Copy the first process's tree onto every device, with a leading device axis."""
    if layout.processes > 1:
        tree = multihost_utils.broadcast_one_to_all(tree)
    # pmap needs one mapped argument; the tree itself is broadcast. The axis has the name that the
    # step uses: otherwise the step would compile twice, for this sharding and for its output's.
    copy = data_parallel(lambda _, x: x, layout, (True, False))
    return copy(np.zeros(len(layout.devices), np.float32), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of a replicated tree, as numpy arrays on the host.

    They are copies: on a CPU numpy would share a buffer that the next step overwrites.
    """
    for leaf in jax.tree.leaves(tree):
        leaf.addressable_shards[0].data.copy_to_host_async()
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data)[0], tree)


def is_first() -> bool:
    """Whether this process is the first, which alone writes files and messages."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether this process is the only one."""
    return jax.process_count() == 1


def from_first(number: int) -> int:
    """The first process's value of an integer."""
    if is_alone():
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """End all processes if the block fails in one of them.

    Otherwise the others would wait forever for the one that failed. All processes must enter the
    block, and none may use the devices of others within it.

    Raises:
        UserError, OSError: as raised in the block; in the other processes a UserError that says so.
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
                f'stopped because process {int(np.argmax(bad))} of this run failed; it says why'
            )
    if problem is not None:
        raise problem


def text_from_first(text: str) -> str:
    """The first process's value of a text."""
    if is_alone():
        return text
    content = np.frombuffer(text.encode(), np.uint8)
    given = np.zeros(from_first(len(content)), np.uint8)
    if is_first():
        given[:] = content
    return multihost_utils.broadcast_one_to_all(given).tobytes().decode()
