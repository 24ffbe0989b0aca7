"""Measure fluidjax where it runs: `python -m fluidjax.bench [fluid] [OPTIONS]`.

    bench --config=configs/ldm.py:demo            the parts of both training stages
    bench fluid --shape 160 160 160 --batch 4     carrying a lesion, scheme by scheme
    bench fluid --config=configs/ldm.py           also the share of a training step it takes

Milliseconds are medians; compiling is timed apart. See `fluidjax.timing` and
`fluidjax.fluid_timing`, which say what each column means.
"""

import json
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

SUBJECTS = ('parts', 'fluid')
CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', lock_config=True)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each part.', lower_bound=1)
JSON = flags.DEFINE_string('json', None, 'Also write the numbers to this file.')
SHAPE = flags.DEFINE_list('shape', ['160', '160', '160'], 'fluid: voxels along x, y (, z).')
SPACING = flags.DEFINE_list('spacing', None, 'fluid: voxel size in mm; one that fills 160 mm along '
                            'the first axis without.')
BATCH = flags.DEFINE_integer('batch', 4, 'fluid: volumes a call.', lower_bound=1)
TIME = flags.DEFINE_float('time', 0.9, 'fluid: transport time.', lower_bound=0.0)
QUICK = flags.DEFINE_boolean('quick', False, 'fluid: three of the schemes alone.')


def main(words: list[str]) -> None:
    """Read the flags and measure."""
    from fluidjax.files import write_text

    subject = words[0] if words else 'parts'
    if subject not in SUBJECTS or len(words) > 1:
        raise cli.UserError(f"bench knows {' and '.join(SUBJECTS)}, not '{' '.join(words)}'")
    table = _fluid() if subject == 'fluid' else _parts()
    if JSON.value:
        write_text(Path(JSON.value).expanduser(), json.dumps(table, indent=2) + '\n')


def _parts() -> dict:
    from fluidjax import timing

    if CONFIG.value is None:
        raise cli.UserError('bench needs --config=FILE, e.g. --config=configs/ldm.py:demo, or the '
                            'word fluid')
    return timing.time_all(CONFIG.value, REPEATS.value)


def _fluid() -> dict:
    from fluidjax import fluid_timing, timing
    from fluidjax.fluid.grid import Grid

    shape = cli.numbers('shape', SHAPE.value, int)
    spacing = (cli.numbers('spacing', SPACING.value, float) if SPACING.value
               else (160.0 / max(shape[0], 1),) * len(shape))
    table = fluid_timing.time_fluid(Grid(shape, spacing), BATCH.value, TIME.value, REPEATS.value,
                                    QUICK.value)
    if CONFIG.value is not None:
        table['step'] = timing.time_step_shares(CONFIG.value, REPEATS.value)
    return table


if __name__ == '__main__':
    sys.argv = cli.join_lists(sys.argv, ('shape', 'spacing'))
    cli.run(main, takes_arguments=True, interrupted='nothing was written')
