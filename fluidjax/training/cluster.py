"""Connecting the processes of one run, which a cluster's launcher started or flags name.

JAX recognises Slurm's srun, Open MPI's mpirun, Cloud TPU slices and Kubernetes JobSets. A single
process has nothing to connect to.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from fluidjax.base import cli, environment
from fluidjax.base.errors import UserError


def define_flags(flag_values: cli.Flags) -> None:
    """Define the flags that `join` reads."""
    flag_values.add_text(
        'coordinator',
        None,
        'HOST:PORT of the first process, for several processes of one run that were not started by '
        'a launcher that JAX recognises.',
    )
    flag_values.add_integer('processes', None, 'Number of processes.', least=1)
    flag_values.add_integer('process', None, 'Number of this process, from 0.', least=0)


def launched_by() -> str | None:
    """The launcher that started several processes of this run, or None."""
    for name, count in (('Slurm', 'SLURM_STEP_NUM_TASKS'), ('Open MPI', 'OMPI_COMM_WORLD_SIZE')):
        if int(os.environ.get(count) or 1) > 1:
            return name
    if 'KUBERNETES_SERVICE_HOST' in os.environ and 'JOB_COMPLETION_INDEX' in os.environ:
        return 'Kubernetes'
    chips = [*Path('/dev').glob('accel[0-9]*'), *Path('/dev/vfio').glob('[0-9]*')]
    on_tpu = bool(chips) and importlib.util.find_spec('libtpu') is not None
    # 'localhost' is set on a single host, and to use the hosts of a slice separately.
    if on_tpu and os.environ.get('TPU_WORKER_HOSTNAMES', ',') != 'localhost':
        return 'Cloud TPU'
    return None


def join(flag_values: cli.Flags) -> None:
    """Use all cores, and connect to the other processes; call it before JAX is used.

    Args:
        flag_values: with the flags of `define_flags`, parsed.

    Raises:
        UserError: flags that do not fit together, or the processes cannot connect.
    """
    import jax

    environment.use_all_cores()
    values = {name: flag_values[name].value for name in ('coordinator', 'processes', 'process')}
    given = [name for name, value in values.items() if value is not None]
    launcher = None if given else launched_by()
    if not given and launcher is None:
        return
    if given and len(given) < 3:
        raise UserError(f'--{given[0]}: give all three of --coordinator, --processes and --process')
    if given and values['process'] >= values['processes']:
        advice = f'must be below --processes={values["processes"]}'
        raise UserError(f'--process={values["process"]}: {advice}')
    # The library for sums between processes on CPUs; other backends ignore it.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        jax.distributed.initialize(*values.values())
    except (RuntimeError, ValueError, OSError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'the processes of this run could not connect ({launcher or given[0]}: {reason}); '
            'name them: --coordinator=HOST:PORT --processes=N --process=I'
        ) from error
