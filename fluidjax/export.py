"""Make a model package: `python -m fluidjax.export RUN --out=model.zip`.

One file to hand on, which `predict` and `eval` take in place of a run's folder
(--workdir=model.zip): weights, configuration, thresholds, scores and a model card. It names no
folder of this machine. See `fluidjax.model_package`.
"""

from pathlib import Path

from absl import flags

from fluidjax import cli

OUT = flags.DEFINE_string('out', None, 'The package to write, a .zip.')
DTYPE = flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'float16'], 'How weights are stored; float16 halves the file, '
    'and anomaly maps differ in the fourth digit.')
NOTE = flags.DEFINE_string('note', '', 'For the model card: what the model saw, in your words.')
LICENCE = flags.DEFINE_string('licence', '', 'For the model card: under which terms you give it.')


def main(runs: list[str]) -> None:
    """Read the flags and export."""
    from fluidjax import model_package

    if len(runs) != 1 or not OUT.value:
        raise cli.UserError('export needs one run and --out=FILE.zip, e.g. python -m '
                            'fluidjax.export runs/demo --out=demo.zip')
    card = model_package.Words(NOTE.value, LICENCE.value)
    print(model_package.export(Path(runs[0]).expanduser(), Path(OUT.value).expanduser(),
                               DTYPE.value == 'float16', card))


if __name__ == '__main__':
    cli.run(main, takes_arguments=True)
