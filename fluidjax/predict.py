"""Find anomalies in scans: `python -m fluidjax.predict SCAN [SCAN...] --workdir=RUN --out=DIR`.

Scans are skull-stripped T1w NIfTI files. See `fluidjax.prediction`.
"""

from pathlib import Path

from absl import flags

from fluidjax import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a trained and evaluated run.')
THRESHOLD = flags.DEFINE_string(
    'threshold', 'dice', 'Which threshold of the run marks a voxel: dice (best on validation), '
    'fpr_1, fpr_5 or fpr_10 (per cent of healthy voxels marked there).')
OUT = flags.DEFINE_string('out', None, 'Folder to write to, one folder a scan.')


def main(scans: list[str]) -> None:
    """Read the flags and predict."""
    from fluidjax import prediction

    if not scans or not WORKDIR.value or not OUT.value:
        raise cli.UserError('predict needs scans, --workdir=RUN and --out=DIR, e.g. python -m '
                            'fluidjax.predict scan.nii.gz --workdir=runs/demo --out=predictions')
    prediction.predict(
        scans, Path(WORKDIR.value).expanduser(), Path(OUT.value).expanduser(),
        THRESHOLD.value)


if __name__ == '__main__':
    cli.run(main, takes_arguments=True)
