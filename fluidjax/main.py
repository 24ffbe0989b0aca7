"""Train a method, or go on with its training.

    fluidjax train --config=configs/ldm.py:demo --workdir=runs/demo
    fluidjax train --config=configs/ldm.py:demo,method=fluidjax --workdir=runs/mine --config.seed=1
    fluidjax train --config=configs/ldm.py:demo,cohort=nifti --workdir=runs/mine \\
        --config.cohort.data_dir=HEALTHY

Trains all stages on all devices; finished stages are skipped and unfinished ones resumed. On
SIGTERM it saves its state and exits with status 75; the same command goes on. Several processes
train one run if srun, mpirun, a TPU slice or Kubernetes started them, or with --coordinator,
--processes and --process. `python -m fluidjax.main` is the same command.
"""

from fluidjax.base import cli
from fluidjax.training import cluster

FLAGS = cli.Flags()
cluster.define_flags(FLAGS)
CONFIG = FLAGS.add_config('Configuration file, e.g. configs/ldm.py:demo.')
WORKDIR = FLAGS.add_text(
    'workdir',
    None,
    'Folder of the run: checkpoints, metrics, and later the evaluation. '
    'gs://BUCKET/FOLDER is fetched first, and new files are copied there.',
)
WANDB = FLAGS.add_text(
    'wandb', '', 'Project of Weights & Biases to send the metrics to as well (pip install wandb).'
)
PROFILE = FLAGS.add_switch(
    'profile',
    False,
    'Write a trace of ten dispatches of each stage to '
    'WORKDIR/profile, for TensorBoard or Perfetto.',
)
PROFILED = 10


def main() -> None:
    """Read the flags and train."""
    if CONFIG.value is None or not WORKDIR.value:
        raise cli.UserError(
            'train needs --config=FILE and --workdir=DIR, e.g. '
            '--config=configs/ldm.py:demo --workdir=runs/demo'
        )
    cluster.join(FLAGS)  # before JAX is used
    from fluidjax.runs.bucket import mirrored_folder
    from fluidjax.runs.train import train
    from fluidjax.training import parallel

    with mirrored_folder(WORKDIR.value) as (workdir, saved):
        train(CONFIG.value, workdir, WANDB.value, PROFILED if PROFILE.value else 0, saved)
    if parallel.is_first():
        cli.tell(f'trained; next: fluidjax eval --workdir={workdir}')


def command() -> None:
    """`fluidjax train`."""
    cli.run(main, FLAGS)


if __name__ == '__main__':
    command()
