"""Train a method: `python -m fluidjax.main --config=configs/ldm.py:demo --workdir=DIR`.

Runs both stages, skips what is done, resumes what is not. See `fluidjax.experiment`.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', lock_config=True)
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run: checkpoints, metrics, and later the evaluation.')


def main() -> None:
    """Read the flags and train."""
    from fluidjax import experiment  # imports JAX, so after the environment is set

    if CONFIG.value is None or not WORKDIR.value:
        raise cli.UserError('main needs --config=FILE and --workdir=DIR, e.g. '
                            '--config=configs/ldm.py:demo --workdir=runs/demo')
    experiment.train(CONFIG.value, Path(WORKDIR.value).expanduser())
    cli.tell(f'trained; next: python -m fluidjax.eval --workdir={WORKDIR.value}')


if __name__ == '__main__':
    cli.run(main)
