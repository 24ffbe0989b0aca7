"""Find anomalies in scans. For research; not for diagnosis.

    fluidjax predict scan.nii.gz --out=predictions
    fluidjax predict BIDS_DIR --out=derivatives/fluidjax --participant-label 01 02 --n-jobs=4
    fluidjax predict scan.nii.gz --workdir=runs/mine --threshold=fpr_1 --out=predictions

Takes T1w scans (.nii, .nii.gz, .mgz, .mgh) and folders of them, BIDS or plain. Each scan is
answered on its own voxels by files named as BIDS derivatives: the healthy counterpart, anomaly map,
masks, a table of the marked regions, a picture and a page; OUT/index.html lists all scans. Without
--workdir the model that comes with fluidjax is used.
"""

from pathlib import Path

from absl import flags

from fluidjax.base import cli

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string(
    'workdir',
    '',
    'Folder of a trained and evaluated run, or a model package (.zip); without, the '
    'model that comes with fluidjax.',
    flag_values=FLAGS,
)
THRESHOLD = flags.DEFINE_string(
    'threshold',
    'dice',
    'Which threshold of the run marks a voxel: dice (best on validation), '
    'fpr_1, fpr_5 or fpr_10 (per cent of healthy voxels marked there).',
    flag_values=FLAGS,
)
OUT = flags.DEFINE_string(
    'out', None, 'Folder to write to: a folder a scan, and index.html.', flag_values=FLAGS
)
EXTRACTION = flags.DEFINE_enum(
    'extraction',
    'auto',
    ['auto', 'none', 'atlas', 'synthstrip', 'hd-bet'],
    'How the brain of a whole head is found; auto leaves a skull-stripped scan as it is.',
    flag_values=FLAGS,
)
BRAIN = flags.DEFINE_string(
    'brain', '', "Brain mask on the scan's voxels, instead of extraction.", flag_values=FLAGS
)
N4 = flags.DEFINE_boolean('n4', False, "Take out the coil's shading (N4).", flag_values=FLAGS)
REGISTRATION = flags.DEFINE_enum(
    'registration',
    None,
    ['affine', 'none'],
    'To MNI152; none for scans that lie there already. By default as the run was trained.',
    flag_values=FLAGS,
)
QUALITY = flags.DEFINE_boolean(
    'quality', True, 'Draw how the scan was brought onto the atlas.', flag_values=FLAGS
)


def main(scans: list[str]) -> None:
    """Read the flags and predict."""
    from fluidjax.predict import batch
    from fluidjax.runs import package

    if not scans or not OUT.value:
        raise cli.UserError(
            'predict needs scans and --out=DIR, e.g. fluidjax predict scan.nii.gz --out=predictions'
        )
    if not WORKDIR.value:
        cli.tell(
            'model: the one that comes with fluidjax (--workdir=RUN for one of yours); '
            'research use, not for diagnosis'
        )
    options = batch.Options(
        batch.Steps(EXTRACTION.value, N4.value, REGISTRATION.value), BRAIN.value, QUALITY.value
    )
    batch.predict(
        scans,
        Path(WORKDIR.value or package.BUNDLED).expanduser(),
        Path(OUT.value).expanduser(),
        THRESHOLD.value,
        options,
    )


def command() -> None:
    """`fluidjax predict`."""
    cli.run(
        main,
        FLAGS,
        takes_arguments=True,
        interrupted='the scans that were done are in --out; name the others to go on',
    )


if __name__ == '__main__':
    command()
