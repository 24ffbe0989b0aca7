"""Score a trained run, choose its thresholds, and write a report.

    fluidjax eval --workdir=runs/demo
    fluidjax eval --workdir=model.zip --data_dir=HEALTHY --test_dir=PATIENTS --out=scores
    fluidjax eval --workdir=model.zip --embedded
    fluidjax eval --workdir=runs/any --contrast=flair --data_dir=MAPS --test_dir=SCANS --out=X

`python -m fluidjax.eval` is the same command.
"""

from pathlib import Path

from fluidjax.base import cli

FLAGS = cli.Flags()
WORKDIR = FLAGS.add_text(
    'workdir', None, 'Folder of a trained run, or a model package (fluidjax export).'
)
OUT = FLAGS.add_text(
    'out', None, "Folder to write to; by default the run's own, and NAME-eval beside a package."
)
SCANS = {
    name: FLAGS.add_text(name, '', text)
    for name, text in (
        ('data_dir', 'Folder of healthy scans, instead of those that it was trained on.'),
        ('test_dir', "Folder of patients' scans with lesion masks, with --data_dir."),
        ('lesion_dir', 'Folder of lesion masks in MNI152 space, with --data_dir.'),
        ('store', 'Folder of preprocessed scans, as fluidjax prepare wrote it.'),
    )
}
EMBEDDED = FLAGS.add_switch(
    'embedded',
    False,
    'Evaluate on the embedded cohort, whatever it was trained on; no scans are needed.',
)
CONTRAST = FLAGS.add_text(
    'contrast',
    '',
    'Of a run for several contrasts (t1w, t2w, flair, t1ce): choose recipe and thresholds for this '
    'one, on validation scans made in it, and test on such scans; needs --out.',
)
VOLUMES = FLAGS.add_switch('volumes', True, 'Also write NIfTI files of every test subject.')


def main() -> None:
    """Read the flags and evaluate."""
    from fluidjax.runs import evaluate

    if not WORKDIR.value:
        raise cli.UserError('eval needs --workdir=DIR, the folder of a trained run')
    out = None if OUT.value is None else Path(OUT.value).expanduser()
    scans = {name: flag.value for name, flag in SCANS.items() if flag.value}
    if EMBEDDED.value:
        if set(scans) - {'store'}:
            raise cli.UserError('--embedded: needs no scans; leave out --data_dir and --test_dir')
        scans['name'] = 'template'
    workdir = Path(WORKDIR.value).expanduser()
    report = evaluate.run_evaluation(workdir, VOLUMES.value, out, scans, CONTRAST.value)
    print(f'report: {report.absolute()}')


def command() -> None:
    """`fluidjax eval`."""
    cli.run(main, FLAGS, interrupted='the same command begins anew')


if __name__ == '__main__':
    command()
