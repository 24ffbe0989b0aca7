"""Paint simulated lesions into healthy scans.

    fluidjax randomize scan1.nii.gz scan2.nii.gz --out=pairs --n=8
    fluidjax randomize scan.nii.gz --out=pairs --lesions=MASKS --config.size_ml='(2.0, 30.0)'
    fluidjax randomize --replay=pairs/draws.json --out=again

Lesions are carried along random flows and painted into the brains of healthy scans: files of brains
or whole heads, or folders of them. For each scan the healthy image, diseased images, lesion masks
and probability maps are written on its own voxels, with pictures of them; draws.json holds all
drawn numbers, and --replay makes the same files again.
"""

from pathlib import Path
from typing import Any

from fluidjax.base import cli
from fluidjax.base.errors import UserError
from fluidjax.base.settings import settings_from

FLAGS = cli.Flags()
OUT = FLAGS.add_text('out', None, 'Folder to write to, with a folder per scan.')
N = FLAGS.add_integer('n', 8, 'Pairs per scan.', least=1, most=100_000)
SEED = FLAGS.add_integer('seed', 0, 'Seed of all draws.', least=0, most=2**31 - 1)
LESIONS = FLAGS.add_text(
    'lesions',
    None,
    "Folder of lesion masks to carry, in MNI space or on the scan's voxels; by default lesions "
    'are cut from Perlin noise.',
)
BRAIN = FLAGS.add_text(
    'brain', None, 'Brain mask of the only scan; by default the brain is found as in predict.'
)
REPLAY = FLAGS.add_text('replay', None, 'A draws.json whose files to make again.')
VOLUMES = FLAGS.add_switch(
    'volumes',
    True,
    'Write NIfTI files; --novolumes to look only at the distribution of many draws.',
)
CONFIG = FLAGS.add_config(
    'What to draw, by default configs/fluid.py; change any field with --config.FIELD=VALUE.'
)


def main(scans: list[str]) -> None:
    """Paint the scans, or replay a draws.json."""
    from fluidjax.randomize import pairs

    if not OUT.value or bool(scans) == bool(REPLAY.value):
        raise UserError(
            'randomize needs healthy scans, or --replay=DRAWS.json, and --out=DIR, '
            'e.g. fluidjax randomize scan.nii.gz --out=pairs --n=8'
        )
    out = Path(OUT.value).expanduser()
    if REPLAY.value:
        given = [name for name in ('n', 'seed', 'lesions', 'brain') if FLAGS[name].present]
        if given:
            raise UserError(f'--{given[0]} cannot be combined with --replay, which has its own')
        page = pairs.replay(Path(REPLAY.value).expanduser(), out, VOLUMES.value)
    else:
        settings = _settings()
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


def _settings() -> Any:
    """The settings of the configuration, which here is not a section `fluid` of a larger one."""
    from fluidjax.fluid.settings import FluidSettings

    try:
        return settings_from(FluidSettings, CONFIG.value, '')
    except UserError as error:
        raise UserError(str(error).replace('config.fluid.', 'config.')) from error


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
