"""Find anomalies in scans: `python -m fluidjax.predict SCAN [SCAN...] --out=DIR [--workdir=RUN]`.

SCAN is a T1w scan (.nii, .nii.gz, .mgz, .mgh) or a folder of them, BIDS or plain. Each is answered
in its own space, voxel for voxel, by files named as BIDS derivatives: the healthy counterpart,
anomaly map, masks, a table of the marked regions, a picture and a page; DIR/index.html lists all
scans. Without --workdir the model that comes with fluidjax is used. See `fluidjax.prediction`.
Research use; not for diagnosis.
"""

from pathlib import Path

from absl import flags

from fluidjax import cli

WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Folder of a trained and evaluated run, or a model package (.zip); without, the '
    'model that comes with fluidjax.')
THRESHOLD = flags.DEFINE_string(
    'threshold', 'dice', 'Which threshold of the run marks a voxel: dice (best on validation), '
    'fpr_1, fpr_5 or fpr_10 (per cent of healthy voxels marked there).')
OUT = flags.DEFINE_string('out', None, 'Folder to write to: a folder a scan, and index.html.')
EXTRACTION = flags.DEFINE_enum(
    'extraction', 'auto', ['auto', 'none', 'atlas', 'synthstrip', 'hd-bet'],
    'How the brain of a whole head is found; auto leaves a skull-stripped scan as it is.')
BRAIN = flags.DEFINE_string('brain', '', "Brain mask on the scan's voxels, instead of extraction.")
N4 = flags.DEFINE_boolean('n4', False, "Take out the coil's shading (N4).")
REGISTRATION = flags.DEFINE_enum(
    'registration', None, ['affine', 'none'], 'To MNI152; none for scans that lie there already. '
    'By default as the run was trained.')
QUALITY = flags.DEFINE_boolean('quality', True, 'Draw how the scan was brought onto the atlas.')


def main(scans: list[str]) -> None:
    """Read the flags and predict."""
    from fluidjax import prediction, run_files

    if not scans or not OUT.value:
        raise cli.UserError('predict needs scans and --out=DIR, e.g. python -m fluidjax.predict '
                            'scan.nii.gz --out=predictions')
    if not WORKDIR.value:
        cli.tell("model: the one that comes with fluidjax (--workdir=RUN for one of yours); "
                 'research use, not for diagnosis')
    options = prediction.Options(
        prediction.Steps(EXTRACTION.value, N4.value, REGISTRATION.value), BRAIN.value,
        QUALITY.value)
    prediction.predict(
        scans, Path(WORKDIR.value or run_files.BUNDLED).expanduser(), Path(OUT.value).expanduser(),
        THRESHOLD.value, options)


if __name__ == '__main__':
    cli.run(main, takes_arguments=True,
            interrupted='the scans that were done are in --out; name the others to go on')
