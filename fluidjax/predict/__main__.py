"""Find anomalies in scans. For research; not for diagnosis.

    fluidjax predict scan.nii.gz --out=predictions
    fluidjax predict BIDS_DIR --out=derivatives/fluidjax --participant-label 01 02 --n-jobs=4
    fluidjax predict scan.nii.gz --workdir=runs/mine --threshold=fpr_1 --out=predictions

Takes T1w scans (.nii, .nii.gz, .mgz, .mgh) and folders of them, BIDS or plain, and scans of other
contrasts if the model is for them. Writes, for each
scan and on its own voxels, files named as BIDS derivatives: the healthy counterpart, the anomaly
map, masks, a table of the marked regions, a picture and a page; OUT/index.html lists all scans.
Without --workdir the model that comes with fluidjax is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fluidjax.base import cli

if TYPE_CHECKING:
    from fluidjax.predict.scans import Selection

FLAGS = cli.Flags()
WORKDIR = FLAGS.add_text(
    'workdir',
    '',
    'Folder of a trained and evaluated run, or a model package (.zip); by default the '
    'model that comes with fluidjax.',
)
THRESHOLD = FLAGS.add_text(
    'threshold',
    'dice',
    'Which threshold of the run marks a voxel: dice (the best on validation subjects), '
    'fpr_1, fpr_5, fpr_10 (1, 5, 10 per cent of their healthy voxels are marked), or '
    'healthy_1ml (at most 1 ml is marked in 90 per cent of healthy scans).',
)
OUT = FLAGS.add_text('out', None, 'Folder to write to: a folder for each scan, and index.html.')
PARTICIPANTS = FLAGS.add_words(
    'participant-label', [], 'BIDS: only these participants, e.g. 01 02 or sub-01.'
)
SESSIONS = FLAGS.add_words('session-label', [], 'BIDS: only these sessions, e.g. pre.')
JOBS = FLAGS.add_integer(
    'n-jobs',
    1,
    'How many scans are preprocessed at once, each in a process of its own; -1 for one per '
    'CPU. The results do not depend on it.',
)
EXTRACTION = FLAGS.add_choice(
    'extraction',
    'auto',
    ['auto', 'none', 'atlas', 'synthstrip', 'hd-bet'],
    'How the brain is found in a whole head; auto leaves a skull-stripped scan as it is.',
)
BRAIN = FLAGS.add_text('brain', '', "Brain mask on the scan's voxels, instead of extraction.")
BIAS_FIELD = FLAGS.add_choice(
    'bias-field',
    'auto',
    ['none', 'auto', 'always'],
    "Divide out the coil's shading; auto where it is strong.",
)
REGISTRATION = FLAGS.add_choice(
    'registration',
    None,
    ['affine', 'none'],
    'To MNI152; none for scans that are registered already. By default as the run was trained.',
)
COUNTERPART = FLAGS.add_choice(
    'counterpart',
    'filled',
    ['filled', 'model'],
    "The healthy image: the scan with its marked voxels filled, or the model's own image.",
)
FUSE = FLAGS.add_switch(
    'fuse',
    False,
    'Use all contrasts that the model is for, and fuse those of a session: the mean of their '
    'probabilities, on the voxels of its T1w scan.',
)
QUALITY = FLAGS.add_switch('quality', True, 'Draw how the scan was brought onto the atlas.')


def _selected(scans: list[str], out: Path, workdir: Path) -> Selection:
    """The scans to predict: T1w ones, or others where there are none, that a model is for."""
    from fluidjax.predict.models import contrasts_of
    from fluidjax.predict.scans import select

    some_folder = any(Path(scan).expanduser().is_dir() for scan in scans)
    # Files are taken whatever they are called.
    contrasts = contrasts_of(workdir) if some_folder else ('t1w',)
    return select(scans, out, PARTICIPANTS.value, SESSIONS.value, contrasts, every=FUSE.value)


def main(scans: list[str]) -> None:
    """Read the flags and predict."""
    import joblib

    from fluidjax.predict import batch
    from fluidjax.predict.on_scan import Steps
    from fluidjax.predict.reading import Options
    from fluidjax.runs import package

    if not scans or not OUT.value:
        raise cli.UserError(
            'predict needs scans and --out=DIR, e.g. fluidjax predict scan.nii.gz --out=predictions'
        )
    jobs = joblib.cpu_count() if JOBS.value == -1 else JOBS.value
    if jobs < 1:
        raise cli.UserError(f'--n-jobs: {jobs} must be 1 or more, or -1 for one per CPU')
    out = Path(OUT.value).expanduser()
    if not WORKDIR.value:
        cli.tell(
            'model: the one that comes with fluidjax (--workdir=RUN for one of yours); '
            'research use, not for diagnosis'
        )
    workdir = Path(WORKDIR.value or package.BUNDLED).expanduser()
    steps = Steps(EXTRACTION.value, BIAS_FIELD.value, REGISTRATION.value)
    batch.predict(
        _selected(scans, out, workdir),
        workdir,
        out,
        THRESHOLD.value,
        Options(steps, BRAIN.value, QUALITY.value),
        jobs,
        COUNTERPART.value,
        FUSE.value,
    )


def command() -> None:
    """`fluidjax predict`."""
    cli.run(
        main,
        FLAGS,
        takes_arguments=True,
        interrupted='finished scans are in --out; give the others to go on',
    )


if __name__ == '__main__':
    command()
