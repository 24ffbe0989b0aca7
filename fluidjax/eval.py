"""Evaluate a run: `python -m fluidjax.eval --workdir=DIR`. See `fluidjax.evaluation`."""

from pathlib import Path

from absl import flags

from fluidjax import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run of fluidjax.main.')
VOLUMES = flags.DEFINE_bool('volumes', True, 'Also write NIfTI files of every test subject.')


def main() -> None:
    """Read the flags and evaluate."""
    from fluidjax import evaluation

    if not WORKDIR.value:
        raise cli.UserError('eval needs --workdir=DIR, the folder of a trained run')
    report = evaluation.run_evaluation(Path(WORKDIR.value).expanduser(), VOLUMES.value)
    print(f'report: {report.absolute()}')


if __name__ == '__main__':
    cli.run(main)
