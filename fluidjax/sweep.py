"""Train and evaluate one configuration over seeds, and put the scores in one table.

    python -m fluidjax.sweep --config=configs/ldm.py:demo --seeds=0,1,2 --workdir=runs/sweep

A seed that is finished is not computed again. See `fluidjax.seeds`.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep; each seed gets one in it.')
SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds, comma-separated.')


def main() -> None:
    """Read the flags and run the seeds one after another."""
    from fluidjax.seeds import run_seeds

    if CONFIG.value is None or not WORKDIR.value:
        raise cli.UserError('sweep needs --config=FILE and --workdir=DIR, e.g. '
                            '--config=configs/ldm.py:demo --workdir=runs/sweep')
    try:
        seeds = [int(seed) for seed in SEEDS.value]
    except ValueError as error:
        raise cli.UserError(f'--seeds={",".join(SEEDS.value)}: give whole numbers') from error
    table = run_seeds(CONFIG.value, seeds, Path(WORKDIR.value).expanduser())
    print(f'{len(seeds)} seeds, mean and standard deviation:\n{table}')


if __name__ == '__main__':
    cli.run(main)
