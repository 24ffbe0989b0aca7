"""Pseudo-pathology in scans of your own: `python -m fluidjax.randomize SCAN... --out DIR --n 8`.

Paints lesions, carried along random flows, into healthy skull-stripped scans, and writes for each
scan the healthy and the diseased images, lesion masks and probabilities on the scan's own voxels,
a contact sheet, an animation of one lesion flowing, the distribution of what was drawn, and
draws.json, from which `--replay` makes the same files again. See `fluidjax.scan_pairs`.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax import cli

OUT = flags.DEFINE_string('out', None, 'Folder to write to, one folder a scan.')
N = flags.DEFINE_integer('n', 8, 'Pairs a scan.', lower_bound=1, upper_bound=100_000)
SEED = flags.DEFINE_integer('seed', 0, 'Seed of all draws.', lower_bound=0,
                            upper_bound=2**31 - 1)
LESIONS = flags.DEFINE_string('lesions', None, 'Folder of lesion masks to carry, in MNI space or '
                              'on the voxels of the scan; Perlin noise alone without.')
BRAIN = flags.DEFINE_string('brain', None, "Brain mask on the voxels of the one scan given; the "
                            "scan's own foreground without.")
REPLAY = flags.DEFINE_string('replay', None, 'A draws.json: make its files again.')
VOLUMES = flags.DEFINE_boolean('volumes', True, 'Write NIfTI files; --novolumes for a look at the '
                               'distribution of many draws.')
CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What to draw, configs/fluid.py where none is named; any field as '
    '--config.FIELD=VALUE.', lock_config=True)
DEFAULT_CONFIG = Path(__file__).parents[1] / 'configs' / 'fluid.py'


def main(scans: list[str]) -> None:
    """Read the flags and paint."""
    from fluidjax import scan_pairs
    from fluidjax.config import settings_from
    from fluidjax.fluid.settings import FluidSettings

    if not OUT.value or bool(scans) == bool(REPLAY.value):
        raise cli.UserError('randomize needs healthy scans, or --replay=DRAWS.json, and --out=DIR, '
                            'e.g. python -m fluidjax.randomize scan.nii.gz --out=pairs --n=8')
    out = Path(OUT.value).expanduser()
    if REPLAY.value:
        given = [name for name in ('n', 'seed', 'lesions', 'brain') if flags.FLAGS[name].present]
        if given:
            raise cli.UserError(f'--{given[0]} has no part in --replay: the file says it all')
        page = scan_pairs.replay(Path(REPLAY.value).expanduser(), out, VOLUMES.value)
    else:
        settings = settings_from(FluidSettings, CONFIG.value, '')
        request = scan_pairs.Request(
            scans=tuple(scans), settings=settings, num_pairs=N.value, seed=SEED.value,
            lesions=LESIONS.value, brain=BRAIN.value)
        page = scan_pairs.make(request, out, VOLUMES.value)
    print(page)


if __name__ == '__main__':
    sys.argv = cli.with_config(sys.argv, DEFAULT_CONFIG)
    cli.run(main, takes_arguments=True,
            interrupted='start again with another --out; this one holds a part')
