"""Paint simulated lesions into healthy scans.

    fluidjax randomize scan1.nii.gz scan2.nii.gz --out=pairs --n=8
    fluidjax randomize scan.nii.gz --out=pairs --lesions=MASKS --config.size_ml='(2.0, 30.0)'
    fluidjax randomize --replay=pairs/draws.json --out=again

Lesions are carried along random flows and painted into healthy, skull-stripped scans. For each scan
the healthy image, diseased images, lesion masks and probability maps are written on its own voxels,
with pictures of them; draws.json holds all drawn numbers, and --replay makes the same files again.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fluidjax.base import cli

FLAGS = flags.FlagValues()
OUT = flags.DEFINE_string(
    'out', None, 'Folder to write to, with a folder per scan.', flag_values=FLAGS
)
N = flags.DEFINE_integer(
    'n', 8, 'Pairs per scan.', lower_bound=1, upper_bound=100_000, flag_values=FLAGS
)
SEED = flags.DEFINE_integer(
    'seed', 0, 'Seed of all draws.', lower_bound=0, upper_bound=2**31 - 1, flag_values=FLAGS
)
LESIONS = flags.DEFINE_string(
    'lesions',
    None,
    "Folder of lesion masks to carry, in MNI space or on the scan's voxels; by default lesions "
    'are cut from Perlin noise.',
    flag_values=FLAGS,
)
BRAIN = flags.DEFINE_string(
    'brain',
    None,
    "Brain mask on the voxels of the only scan; by default the scan's own foreground.",
    flag_values=FLAGS,
)
REPLAY = flags.DEFINE_string(
    'replay', None, 'A draws.json whose files to make again.', flag_values=FLAGS
)
VOLUMES = flags.DEFINE_boolean(
    'volumes',
    True,
    'Write NIfTI files; --novolumes to look only at the distribution of many draws.',
    flag_values=FLAGS,
)
CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    'What to draw, by default configs/fluid.py; change any field with --config.FIELD=VALUE.',
    flag_values=FLAGS,
)


def main(scans: list[str]) -> None:
    """Paint the scans, or replay a draws.json."""
    from fluidjax.base.settings import settings_from
    from fluidjax.fluid.settings import FluidSettings
    from fluidjax.randomize import pairs

    if not OUT.value or bool(scans) == bool(REPLAY.value):
        raise cli.UserError(
            'randomize needs healthy scans, or --replay=DRAWS.json, and --out=DIR, '
            'e.g. fluidjax randomize scan.nii.gz --out=pairs --n=8'
        )
    out = Path(OUT.value).expanduser()
    if REPLAY.value:
        given = [name for name in ('n', 'seed', 'lesions', 'brain') if FLAGS[name].present]
        if given:
            raise cli.UserError(f'--{given[0]} cannot be combined with --replay, which has its own')
        page = pairs.replay(Path(REPLAY.value).expanduser(), out, VOLUMES.value)
    else:
        settings = settings_from(FluidSettings, CONFIG.value, '')
        request = pairs.Request(
            scans=tuple(scans),
            settings=settings,
            num_pairs=N.value,
            seed=SEED.value,
            lesions=LESIONS.value,
            brain=BRAIN.value,
        )
        page = pairs.make(request, out, VOLUMES.value)
    print(page)


def command() -> None:
    """`fluidjax randomize`."""
    cli.run(
        main,
        FLAGS,
        takes_arguments=True,
        interrupted='start again with another --out, as this one is incomplete',
        default_config='configs/fluid.py',
    )


if __name__ == '__main__':
    command()
