"""Train and evaluate the paper's method on the embedded cohort; no scans are needed.

    fluidjax demo
    fluidjax demo --seed=1 --workdir=runs/demo-seed1

It ends with a table of scores and the path of a report that opens in a browser. The training is
shorter than that of its configuration, `fluidjax train --config=configs/ldm.py:demo`; what the
other steps bring is in docs/results.md, "The demo".
"""

from __future__ import annotations

import os
from pathlib import Path

from fluidjax.base import cli, environment
from fluidjax.base.settings import changed_config

FLAGS = cli.Flags()
SEED = FLAGS.add_integer('seed', 0, 'Seed of the run.', least=0)
WORKDIR = FLAGS.add_text(
    'workdir',
    None,
    'Folder of the run; runs/demo (or $FLUIDJAX_DEMO_DIR) by default, with '
    '-seedN for another seed.',
)
CONFIG = 'configs/ldm.py:demo'
STEPS = 600  # of the diffusion stage


def main() -> None:
    """Read the flags, train and evaluate."""
    environment.use_all_cores()
    from fluidjax.runs.evaluate import run_evaluation
    from fluidjax.runs.train import train

    name = os.environ.get('FLUIDJAX_DEMO_DIR', 'runs/demo')
    if SEED.value:
        name += f'-seed{SEED.value}'
    workdir = Path(WORKDIR.value or name).expanduser()
    changes = {'seed': SEED.value, 'diffusion.training.steps': STEPS}
    train(changed_config(CONFIG, changes), workdir)
    print(f'report: {run_evaluation(workdir).absolute()}')


def command() -> None:
    """`fluidjax demo`."""
    cli.run(main, FLAGS)


if __name__ == '__main__':
    command()
