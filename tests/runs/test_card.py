"""The model card of a package: what it says, and the command that trains the model again."""

from __future__ import annotations

import json

import pytest

from configs import ldm
from fluidjax.runs import card as model_card
from fluidjax.runs import export
from fluidjax.runs import package as package_file
from fluidjax.runs.cohort import model_grid
from fluidjax.runs.load import Run
from fluidjax.runs.stages import build_stages


def test_the_card_tells_what_it_saw_and_how_to_make_it_again(smoke_run, tmp_path):
    package = tmp_path / 'model.zip'
    words = export.Words('Fourteen adults.', 'CC0.')
    export.export(smoke_run, package, words=words)
    card = package_file.open_package(package).texts['README.md']
    for text in (
        'not for diagnosis',
        '8 train',
        '0.250 (0.100 to 0.400)',
        'Fourteen adults.',
        'Weights: CC0.',
        '--config=configs/ldm.py:smoke,cohort=template --workdir=RUN',
    ):
        assert text in card, text


@pytest.mark.parametrize(
    'argument',
    [
        'nifti,method=fluidjax',
        'nifti,method=fluidjax,law=wide',
        'nifti,method=fluidjax,contrast=flair',
        'labels,method=cldm,contrast=any',
    ],
)
def test_the_training_command_makes_the_same_configuration(checkout, monkeypatch, argument):
    import shlex
    import sys

    from absl import flags
    from ml_collections import config_flags

    config = ldm.get_config(f'smoke,cohort={argument}')
    config.cohort.data_dir, config.start = '/somewhere', '/somewhere/model.zip'
    config.fluid.lesion_count, config.seed = (1, 3), 5
    saved = ldm.ConfigDict(json.loads(json.dumps(config.to_dict())))
    words = shlex.split(model_card.training_command(saved))
    values = flags.FlagValues()
    flags.DEFINE_string('workdir', '', '', flag_values=values)
    made = config_flags.DEFINE_config_file('config', None, '', flag_values=values)
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(sys, 'argv', words[1:])  # where ml_collections looks for overrides
    values(words[1:])
    assert made.value.to_dict() == {
        **config.to_dict(),
        'start': 'MODEL',
        'cohort': {**config.cohort.to_dict(), 'data_dir': 'HEALTHY'},
    }


def test_the_card_says_for_which_contrasts_a_model_is():
    config = ldm.get_config('smoke,cohort=labels,method=cldm,contrast=flair')
    stage = build_stages(config, model_grid(config))[-1]
    run = Run(config, model_grid(config), stage.method, {}, 6)
    how = {'registration': 'affine', 'version': '1'}
    made = {'parameters': 1, 'weights': 'float32', 'jax': '0', 'preprocessing': how}
    text = model_card.card(run, config, made, {}, {})
    assert 'Turns a FLAIR brain scan' in text and 'Scans must be FLAIR' in text
    assert 'Label maps of the maker' in text and 'T1w' not in text
