"""Put a trained run into one file to share.

    fluidjax export runs/demo --out=model.zip
    fluidjax export runs/mine --out=mine.zip --dtype=float16 --note='72 healthy adults, 3 T'
    fluidjax predict SCAN.nii.gz --workdir=model.zip --out=predictions
    fluidjax export model.zip --other=flair.zip --out=both.zip

The file, a model package, contains weights, configuration, thresholds, scores and a model card, but
no folder names of this machine. `predict` and `eval` take it in place of a run's folder.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.grids import GRIDS
from data_pipelines.nifti_source import PREPROCESSING_VERSION
from data_pipelines.preprocess import WHITE_MATTER_INTENSITY
from fluidjax.base import cli
from fluidjax.base.disk import check_output
from fluidjax.base.errors import UserError
from fluidjax.base.files import parse_json
from fluidjax.runs import card, package, thresholds
from fluidjax.runs.cohort import trained_contrasts
from fluidjax.runs.load import Run, load_run

FLAGS = cli.Flags()
OUT = FLAGS.add_text('out', None, 'The package to write, a .zip.')
DTYPE = FLAGS.add_choice(
    'dtype',
    'float32',
    ['float32', 'float16'],
    'How weights are stored; float16 halves the file, and anomaly maps differ in the fourth digit.',
)
OTHER = FLAGS.add_text('other', '', 'A package for scans of other contrasts, to put into this one.')
NOTE = FLAGS.add_text('note', '', 'For the model card: what the model was trained on.')
LICENCE = FLAGS.add_text('licence', '', 'For the model card: the terms of use.')
SIMULATED = '-simulated'  # how `cases.own_test_set` marks test sets with simulated lesions
_FOLDERS = ('data_dir', 'test_dir', 'lesion_dir', 'store')


@dataclasses.dataclass(frozen=True)
class Words:
    """Texts of the maker of a package for the model card; may be empty.

    Attributes:
        note: what the model was trained on.
        licence: terms of use of the weights.
    """

    note: str = ''
    licence: str = ''


def export(
    workdir: Path, out: Path, half: bool = False, words: Words = Words(), other: Path | None = None
) -> str:
    """Write a run as a model package.

    Args:
        workdir: a trained run; if it was evaluated, thresholds and scores are included. Or a
            package, to put another one into it; all else in it stays as it is.
        out: the zip to write; an existing one is replaced.
        half: store weights as float16 where they fit into it.
        words: for the model card.
        other: a package for scans of other contrasts, that is put into this one.

    Returns:
        One line that says what was written.

    Raises:
        UserError: there is no trained run, or its files are damaged.
    """
    if out.suffix.lower() != '.zip' or out.is_dir():
        raise UserError(f'--out: {out} must be a file that ends in .zip')
    check_output(out.parent, '--out')
    run = load_run(workdir)
    inner = None if other is None else _for_other_contrasts(run, other)
    if package.is_package(workdir):
        return _joined(workdir, out, inner, half, words)
    shared = without_folders(run.config)
    texts = {'config.json': _text(shared.to_dict())}
    cohort = _parsed(run, 'cohort.json') or {'cohort': 'unknown', 'sizes': {}}
    texts['cohort.json'] = _text(cohort)
    scores = _evaluation(run, texts)
    manifest = manifest_of(run, half)
    texts[package.CARD] = card.card(
        run, run.config, manifest, cohort, scores, words.note, words.licence
    )
    size = package.write(out, manifest, texts, jax.device_get(run.params), half, inner)
    return (
        f'{out}: {size / 1e6:.1f} MB, {manifest["parameters"]:,} parameters as '
        f'{manifest["weights"]}; try it: fluidjax predict SCAN.nii.gz '
        f'--workdir={out} --out=predictions'
    )


def _joined(workdir: Path, out: Path, inner: bytes | None, half: bool, words: Words) -> str:
    """Write a package with another one in it."""
    if inner is None or half or words != Words():
        raise UserError(
            f'{workdir}: is a package, not a run; name the folder of a run, or give nothing but '
            '--other and --out to put a package for other contrasts into this one'
        )
    size = package.write_with_other(workdir, out, inner)
    return f'{out}: {size / 1e6:.1f} MB, {workdir.name} with a model for other contrasts'


def _for_other_contrasts(run: Run, other: Path) -> bytes:
    """The bytes of a package for other contrasts, which is checked.

    Raises:
        UserError: it is not a package, or has one in it, or cannot be used beside the run.
    """
    if not package.is_package(other):
        raise UserError(f'--other: {other} is not a package; export the run first')
    inner = load_run(other)
    if package.open_package(other).other is not None:
        raise UserError(f'--other: {other} has a model for other contrasts itself; give that one')
    if inner.grid != run.grid:
        raise UserError(f'--other: {other} is of another grid, {inner.grid.shape}')
    more = set(trained_contrasts(inner.config)) - set(trained_contrasts(run.config))
    if not more:
        raise UserError(f'--other: {other} is for no contrast that the run is not for')
    if more == {'t1ce'} and 't1w' in trained_contrasts(run.config):
        raise UserError(
            f'--other: {other} is for T1w after contrast agent, which predict cannot tell from T1w'
        )
    if inner.method.needs_mask:
        raise UserError(f'--other: {other} needs a mask of the lesion, so it cannot find any')
    if _registration(inner.config) != _registration(run.config):
        raise UserError(
            f'--other: {other} was trained with registration {_registration(inner.config)}, the '
            f'other model with {_registration(run.config)}; scans are prepared for both alike'
        )
    try:
        thresholds.load(inner)
    except UserError as error:
        raise UserError(f'--other: {error}') from error
    return other.read_bytes()


def manifest_of(run: Run, half: bool) -> dict[str, Any]:
    """The contents of package.json, except format and version."""
    grid = GRIDS[run.config.size]
    return {
        'jax': jax.__version__,
        'method': run.config.method,
        'step': run.step,
        'parameters': sum(int(leaf.size) for leaf in jax.tree.leaves(run.params)),
        'weights': 'float16' if half else 'float32',
        'preprocessing': {
            'version': PREPROCESSING_VERSION,
            'registration': _registration(run.config),
            'shape': list(grid.shape),
            'spacing_mm': list(grid.spacing),
            'centre_mm': list(grid.centre),
            'white_matter': WHITE_MATTER_INTENSITY,
        },
    }


def _registration(config: ConfigDict) -> str:
    """How scans are brought into MNI152 space."""
    return config.cohort.registration if config.cohort.name == 'nifti' else 'affine'


def without_folders(config: ConfigDict) -> ConfigDict:
    """The configuration without the folders of the machine that it was made on."""
    shared = ConfigDict(config.to_dict())
    shared.cohort.update({name: '' for name in _FOLDERS if name in shared.cohort})
    if shared.cohort.get('labels', '') not in ('', 'freesurfer'):
        shared.cohort.labels = Path(shared.cohort.labels).name
    if shared.get('start'):
        shared.start = ','.join(Path(name.strip()).name for name in shared.start.split(','))
    losses = shared.get('autoencoder', {}).get('losses', {})
    if losses.get('perceptual_weights'):
        losses['perceptual_weights'] = tuple(
            Path(name).name for name in losses['perceptual_weights']
        )
    return shared


def _evaluation(run: Run, texts: dict[str, str]) -> dict[str, Any]:
    """Add the thresholds and the scores of a run to the texts; returns the scores."""
    try:
        thresholds.load(run)
    except UserError as error:
        cli.tell(f'{error}. The package has no thresholds and no scores: predict will refuse it')
        return {}
    texts['calibration.json'] = _text(_parsed(run, 'calibration.json'))
    if thresholds.load_choice(run).spreads:
        texts[thresholds.HEALTHY_FILE] = run.text(thresholds.HEALTHY_FILE)
    scores = _parsed(run, thresholds.SCORES_FILE)
    if not scores:
        cli.tell(
            f'{run.path}: has no scores, so the package has none (was its evaluation '
            f'interrupted?); to add them: fluidjax eval --workdir={run.path}'
        )
        return {}
    shared = {_shared_name(cohort): rows for cohort, rows in scores.items()}
    texts['metrics.json'] = _text(shared)
    return shared


def _shared_name(cohort: str) -> str:
    """The name of a cohort without the folder of its scans: `nifti_FOLDER-simulated`."""
    if not cohort.startswith('nifti_'):
        return cohort
    return 'nifti' + (SIMULATED if cohort.endswith(SIMULATED) else '')


def _parsed(run: Run, name: str) -> dict[str, Any]:
    """The contents of a JSON file of the run; empty if there is no such file."""
    advice = f'evaluate the run again: fluidjax eval --workdir={run.path}'
    text = run.text(name)
    return {} if text is None else parse_json(text, str(run.path / name), advice)


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + '\n'


def main(runs: list[str]) -> None:
    """Read the flags and export."""
    if len(runs) != 1 or not OUT.value:
        raise UserError(
            'export needs one run and --out=FILE.zip, e.g. fluidjax export runs/demo --out=demo.zip'
        )
    print(
        export(
            Path(runs[0]).expanduser(),
            Path(OUT.value).expanduser(),
            DTYPE.value == 'float16',
            Words(NOTE.value, LICENCE.value),
            Path(OTHER.value).expanduser() if OTHER.value else None,
        )
    )


def command() -> None:
    """`fluidjax export`."""
    cli.run(main, FLAGS, takes_arguments=True, interrupted='nothing was written')
