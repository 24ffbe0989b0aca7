"""Train a method: `python -m fluidjax.main --config=configs/ldm.py:demo --workdir=DIR`.

Runs all stages, skips what is done, resumes what is not, on all devices there are. Asked to stop
(SIGTERM), it saves itself and exits with status 75: the same command goes on. Several processes
train one run where srun, mpirun, a TPU slice or Kubernetes started them, or by --coordinator,
--processes and --process. See `fluidjax.experiment`.
"""

from absl import flags
from ml_collections import config_flags

from fluidjax import cli, cluster

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', lock_config=True)
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run: checkpoints, metrics, and later the evaluation. '
    'gs://BUCKET/FOLDER is fetched first, and what is new is copied there.')
WANDB = flags.DEFINE_string('wandb', '', 'Project of Weights & Biases that is told the metrics too '
                            '(pip install wandb).')
PROFILE = flags.DEFINE_boolean('profile', False, 'Write a trace of ten dispatches of each stage to '
                               'WORKDIR/profile, for TensorBoard or Perfetto.')
PROFILED = 10


def main() -> None:
    """Read the flags and train."""
    if CONFIG.value is None or not WORKDIR.value:
        raise cli.UserError('main needs --config=FILE and --workdir=DIR, e.g. '
                            '--config=configs/ldm.py:demo --workdir=runs/demo')
    cluster.join()
    from fluidjax import experiment  # asks JAX for devices, so after the processes are joined
    from fluidjax.bucket import mirrored_folder

    with mirrored_folder(WORKDIR.value) as (workdir, saved):
        experiment.train(CONFIG.value, workdir, WANDB.value, PROFILED if PROFILE.value else 0,
                         saved)
    if experiment.parallel.is_first():
        cli.tell(f'trained; next: python -m fluidjax.eval --workdir={workdir}')


if __name__ == '__main__':
    cli.run(main)
