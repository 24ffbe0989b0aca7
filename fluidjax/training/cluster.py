"""Joining the processes of one run: those that the cluster's launcher started, or flags name.

JAX finds out by itself under Slurm's srun, Open MPI's mpirun, on Cloud TPU and in Kubernetes
JobSets. One process alone joins nothing.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from absl import flags

from fluidjax.base.errors import UserError

FLAGS = flags.FlagValues()
COORDINATOR = flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of the first process, where several processes train one run '
    'and no launcher that JAX knows started them.',
    flag_values=FLAGS,
)
PROCESSES = flags.DEFINE_integer(
    'processes', None, 'How many processes there are.', lower_bound=1, flag_values=FLAGS
)
PROCESS = flags.DEFINE_integer(
    'process', None, 'Number of this one, from 0.', lower_bound=0, flag_values=FLAGS
)


def launched_by() -> str | None:
    """What started several processes of this run, or None."""
    for name, count in (('Slurm', 'SLURM_STEP_NUM_TASKS'), ('Open MPI', 'OMPI_COMM_WORLD_SIZE')):
        if int(os.environ.get(count) or 1) > 1:
            return name
    if 'KUBERNETES_SERVICE_HOST' in os.environ and 'JOB_COMPLETION_INDEX' in os.environ:
        return 'Kubernetes'
    chips = [*Path('/dev').glob('accel[0-9]*'), *Path('/dev/vfio').glob('[0-9]*')]
    on_tpu = bool(chips) and importlib.util.find_spec('libtpu') is not None
    # A TPU's own name for one alone, and what is set where a slice is to be used one host each.
    if on_tpu and os.environ.get('TPU_WORKER_HOSTNAMES', ',') != 'localhost':
        return 'Cloud TPU'
    return None


def join() -> None:
    """Join the other processes; call it before JAX is used.

    Raises:
        UserError: flags that do not fit together, or processes that do not find each other.
    """
    import jax

    given = [flag.name for flag in (COORDINATOR, PROCESSES, PROCESS) if flag.value is not None]
    by = None if given else launched_by()
    if not given and by is None:
        return
    if given and len(given) < 3:
        raise UserError(f'--{given[0]}: give all three of --coordinator, --processes and --process')
    if given and PROCESS.value >= PROCESSES.value:
        raise UserError(f'--process={PROCESS.value}: must be below --processes={PROCESSES.value}')
    # On CPUs: what carries sums between processes. No other backend reads it.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    except (RuntimeError, ValueError, OSError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'the processes of this run did not find each other ({by or given[0]}: '
            f'{reason}); name them: --coordinator=HOST:PORT --processes=N --process=I'
        ) from error
