"""Time the parts of a configuration: `python -m fluidjax.bench --config=configs/ldm.py:demo`.

Milliseconds a call (median) and seconds to compile, on whatever backend is there, for drawing
pairs, encoding, the gradients of both stages and reconstruction, at the training's batch sizes.
See `fluidjax.timing`.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, e.g. configs/ldm.py:demo.', lock_config=True)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each part.', lower_bound=1)
JSON = flags.DEFINE_string('json', None, 'Also write the table to this file.')


def main() -> None:
    """Read the flags and time."""
    from fluidjax import timing
    from fluidjax.files import write_text

    if CONFIG.value is None:
        raise cli.UserError('bench needs --config=FILE, e.g. --config=configs/ldm.py:demo')
    table = timing.time_all(CONFIG.value, REPEATS.value)
    if JSON.value:
        write_text(Path(JSON.value).expanduser(), json.dumps(table, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
