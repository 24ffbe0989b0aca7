"""The model card of a package: its training data, scores, use, and how to train it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fluidjax.base import __version__
from fluidjax.base.errors import UserError
from fluidjax.base.settings import config_file, differences, field_of, read_config_file
from fluidjax.runs.cohort import trained_contrasts
from fluidjax.runs.load import Run

# Replace the folders of the machine that it was trained on.
STAND_INS = {'data_dir': 'HEALTHY', 'test_dir': 'PATIENTS', 'lesion_dir': 'MASKS'}
# What trains as the versions did that had no such field.
NOT_THEN = {
    'head': ('head.training.steps', 0),
    'detect.head': ('detect.head', 'none'),
    'detect.search': ('detect.search', False),
    'diffusion.process.lesion_weight': ('diffusion.process.lesion_weight', 0.0),
    'restoration.losses.lesion_weight': ('restoration.losses.lesion_weight', 0.0),
}
CONTRAST_NAMES = {'t1w': 'T1w', 't2w': 'T2w', 'flair': 'FLAIR', 't1ce': 'T1w after contrast agent'}
_SCORES = {
    'dice_validated': 'Dice, threshold from validation',
    'dice_oracle': 'Dice, best per scan',
    'ap': 'AP',
    'auroc': 'AUROC',
    'psnr': 'PSNR (dB)',
}


def card(
    run: Run,
    config: ConfigDict,
    manifest: Mapping[str, Any],
    cohort: Mapping[str, Any],
    scores: Mapping[str, Any],
    note: str = '',
    licence: str = '',
) -> str:
    """The card as Markdown.

    Args:
        run: the trained run.
        config: the configuration that it was trained with.
        manifest: the contents of package.json.
        cohort: the contents of cohort.json: name of the cohort and sizes of its splits.
        scores: the contents of eval/metrics.json; may be empty.
        note: the maker's text about the training data.
        licence: the maker's terms for the weights.
    """
    grid = ' x '.join(map(str, run.grid.shape))
    sizes = ', '.join(f'{n} {split}' for split, n in cohort.get('sizes', {}).items())
    embedded = config.cohort.name == 'template'
    deformed = 'deformations of one template (MNI152) with simulated contrast'
    data = f'The embedded cohort: {deformed}. No real scans.'
    if not embedded:
        data = _data_of_the_maker(config)
    if beside := config.cohort.get('embedded', 0):
        data += f' Beside them {beside} subjects of the embedded cohort: {deformed}.'
    contrast = ' or '.join(CONTRAST_NAMES[name] for name in trained_contrasts(config))
    terms = licence or (
        'Not stated by the maker of this file. '
        + (
            'It was trained only on the MNI152 template that comes with nilearn.'
            if embedded
            else 'Ask before you pass it on: the terms of the training scans may apply to it.'
        )
    )
    return f"""# fluidjax model: {run.name}

**Research use only. Not a medical device, not for diagnosis.**

Turns a {contrast} brain scan into its healthy counterpart; the difference is the anomaly.
Method `{config.method}`, {manifest['parameters']:,} parameters (stored as {manifest['weights']}), \
{run.step} steps, on {grid} voxels of {run.grid.spacing[0]:g} mm.

## Training data

{data} Cohort `{cohort.get('cohort', 'unknown').split('/')[0]}`: {sizes or 'sizes unknown'}.
{note}

## Scores

{_scores(scores)}

## Use

    fluidjax predict SCAN.nii.gz --workdir=THIS.zip --out=predictions

or in Python

    import fluidjax
    detection = fluidjax.load('THIS.zip').detect('SCAN.nii.gz')
    detection.mask.to_filename('mask.nii.gz')

Scans must be {contrast}, best skull-stripped; in a scan of a whole head the brain is found first. \
Registration is `{manifest['preprocessing']['registration']}`, \
preprocessing version {manifest['preprocessing']['version']}.

## How to train it again

    {training_command(config)}
    fluidjax eval --workdir=RUN

with fluidjax {__version__} and JAX {manifest['jax']}.

## Licence

Weights: {terms} Code: fluidjax, Apache-2.0. Cite arXiv:2506.10233 and arXiv:2501.13370.
"""


def training_command(config: ConfigDict) -> str:
    """The command that trains a configuration: its file, and all fields that differ from it."""
    labels = bool(config.cohort.get('labels'))
    name = f'configs/{config.method}.py:{config.size},'
    name += f'cohort={"labels" if labels else config.cohort.name}'
    try:
        config_file(f'configs/{config.method}.py')
    except UserError:  # the latent methods share a file
        method = f',method={config.method}' if config.method != 'conddiff' else ''
        name = name.replace(config.method, 'ldm', 1) + method
    if 'synthesis' in config:
        name += f',contrast={_made_contrast(config)}'
    elif 'wide' in config:
        name += ',law=wide'
    try:
        default = read_config_file(name)
    except UserError:  # a size or a method of another version
        return f'fluidjax train --config={config.method}'
    command = ['fluidjax train', f'--config={name}']
    for field in differences(ConfigDict(default.to_dict()), config):
        value = field_of(config, field)
        if value is None:
            if field not in NOT_THEN:  # its default does what older versions did
                continue
            if field_of(default, field) == 'auto':  # which does what they did
                continue
            field, value = NOT_THEN[field]
        section, _, last = field.rpartition('.')
        if section == 'cohort' and last == 'store':
            continue
        if section == 'cohort' and last in STAND_INS:
            value = STAND_INS[last]
        if section == 'cohort' and last == 'labels' and value not in ('', 'freesurfer'):
            value = 'LABELS.json'
        if field == 'start' and value:
            value = 'MODEL'
        if last == 'perceptual_weights':
            value = tuple(name.replace('\\', '/').rpartition('/')[2] for name in value)
        value = tuple(value) if isinstance(value, list) else value
        command.append(shlex.quote(f'--config.{field}={value}'))
    return ' '.join([*command, '--workdir=RUN'])


def _data_of_the_maker(config: ConfigDict) -> str:
    if config.cohort.get('labels'):
        return "Label maps of the maker's own, from which scans were made."
    if 'synthesis' in config:
        return "Scans made from the tissue of skull-stripped T1w scans of the maker's own."
    return "Skull-stripped T1w scans of the maker's own."


def _made_contrast(config: ConfigDict) -> str:
    """The argument of the configuration file that makes the same contrasts, or most of them."""
    made = config.synthesis.contrasts
    return made[0] if len(made) == 1 else 'any'


def _scores(scores: Mapping[str, Any]) -> str:
    """A table per cohort: the method first, then the trivial rows."""
    if not scores:
        return 'It was not evaluated.'
    tables = []
    for cohort, rows in scores.items():
        shown = [entries.get(score) or {} for entries in rows.values() for score in _SCORES]
        counts = [entry.get('n') or 0 for entry in shown]
        cases = max(counts, default=0)
        lines = [
            f'On `{cohort}`, {cases} cases (mean, 95 % interval):',
            '',
            '| method | ' + ' | '.join(_SCORES.values()) + ' |',
            '|' + '---|' * (1 + len(_SCORES)),
        ]
        lines += [
            f'| {row} | ' + ' | '.join(_cell(entries.get(s)) for s in _SCORES) + ' |'
            for row, entries in rows.items()
        ]
        tables.append('\n'.join(lines))
    return '\n\n'.join(tables)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry.get('mean') is None:
        return '-'
    text = f'{entry["mean"]:.3f}'
    if entry.get('ci_low') is not None:
        text += f' ({entry["ci_low"]:.3f} to {entry["ci_high"]:.3f})'
    return text
