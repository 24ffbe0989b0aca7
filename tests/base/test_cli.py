"""Command lines: help, flags, errors in one line, exit statuses."""

from __future__ import annotations

import sys

import pytest
from ml_collections import config_flags

import fluidjax.__main__ as fluidjax_command
from fluidjax.base import cli
from fluidjax.base.errors import RESUME_ME, Stopped, UserError


@pytest.fixture
def flag_values():
    """The flags of a small command."""
    values = cli.Flags()
    values.add_text('workdir', None, 'Folder of the run.')
    values.add_integer('n-jobs', 1, 'Scans at once.', least=1)
    values.add_words('shape', ['16', '16', '16'], 'Voxels.')
    return values


@pytest.fixture
def call(monkeypatch, flag_values):
    """Run a command with some words; returns its exit status."""

    def run(*words, main=lambda: None, **options):
        monkeypatch.setattr(sys, 'argv', ['fluidjax test', *words])
        with pytest.raises(SystemExit) as ended:
            cli.run(main, flag_values, **options)
        return ended.value.code

    return run


def test_help_shows_the_docstring_and_only_the_flags_of_the_command(call, capsys):
    assert call('--help') == 0
    text = capsys.readouterr().out
    assert text.startswith(__doc__) and '--workdir' in text and '--n-jobs' in text
    assert '--logtostderr' not in text and '--config' not in text


@pytest.mark.parametrize(
    'words,shape',
    [
        (['--shape', '8', '16', '24'], ('8', '16', '24')),
        (['--shape=8,16,24'], ('8', '16', '24')),
        (['--shape', '8', '16', '24', '--workdir=x'], ('8', '16', '24')),
        ([], ('16', '16', '16')),
    ],
)
def test_flags_of_several_words(call, flag_values, words, shape):
    assert call(*words) == 0
    assert tuple(flag_values['shape'].value) == shape


@pytest.mark.parametrize('word', ['--n_jobs=3', '--n-jobs=3', '-n_jobs=3'])
def test_hyphens_and_underscores_in_flags_are_the_same(call, flag_values, word):
    assert call(word) == 0
    assert flag_values['n-jobs'].value == 3


@pytest.mark.parametrize(
    'words,message',
    [
        (['--workdri=x'], "Unknown command line flag 'workdri'. Did you mean: workdir"),
        (['--n-jobs=0'], 'n-jobs'),
        (['--n-jobs=two'], 'two'),
        (['more', '--workdir=x'], "unexpected argument 'more'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_suggests_the_nearest(call, capsys, words, message):
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith('fluidjax: error: ') and error.count('\n') == 1
    assert message in error


def raises(error):
    """A command that ends with an exception."""

    def main():
        raise error

    return main


@pytest.mark.parametrize(
    'error,status,message',
    [
        (UserError('scan.nii: is empty; copy it again'), 2, 'scan.nii: is empty'),
        (PermissionError(13, 'Permission denied', '/nowhere'), 2, '/nowhere: Permission denied'),
        (Stopped('stopped after step 3', RESUME_ME), 75, 'stopped after step 3'),
        (KeyboardInterrupt(), 130, 'interrupted; the same command'),
    ],
)
def test_each_end_has_its_exit_status(call, capsys, error, status, message):
    assert call(main=raises(error)) == status
    assert message in capsys.readouterr().err


def test_words_that_are_no_flags_are_passed_to_the_command(call):
    words = []
    main = lambda arguments: words.extend(arguments)
    assert call('a.nii', 'b.nii', main=main, takes_arguments=True) == 0
    assert words == ['a.nii', 'b.nii']


def test_numbers_of_a_flag(flag_values):
    assert cli.numbers('shape', ['8', '9'], int) == (8, 9)
    with pytest.raises(UserError, match="--shape: '8,wide' must be"):
        cli.numbers('shape', ['8', 'wide'], int)


@pytest.mark.parametrize(
    'words,field',
    [
        (['--config=configs/regression.py:smoke'], ('method', 'regression')),
        (['--config', 'configs/vae.py:demo', '--config.seed=4'], ('seed', 4)),
        (['--config.seed=4', '--config=configs/vae.py:demo'], ('seed', 4)),
        ([], ('method', 'conddiff')),
    ],
)
def test_configuration_files_and_their_fields(call, flag_values, words, field):
    config = config_flags.DEFINE_config_file('config', None, '', flag_values)
    assert call(*words, default_config='configs/ldm.py') == 0
    assert config.value[field[0]] == field[1]


@pytest.mark.parametrize(
    'words,message',
    [
        (['--config=configs/ldn.py'], 'did you mean configs/ldm.py?'),
        (['--config=configs/ldm.py:tiny'], 'size is one of paper, 1mm, 1.5mm, 2mm, 4mm, demo'),
        (['--config=configs/ldm.py', '--config.sead=3'], "no field 'sead'; did you mean seed?"),
        (['--config=configs/ldm.py', '--config.seed=three'], 'seed'),
    ],
)
def test_a_wrong_configuration_is_one_line(call, capsys, flag_values, words, message):
    config_flags.DEFINE_config_file('config', None, '', flag_values)
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_verbs_are_listed_with_a_sentence_each(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['fluidjax', '--help'])
    fluidjax_command.main()
    lines = capsys.readouterr().out.splitlines()
    for verb, (_, sentence) in fluidjax_command.VERBS.items():
        assert any(line.split()[:1] == [verb] and sentence in line for line in lines), verb


def test_a_wrong_verb_suggests_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['fluidjax', 'predikt'])
    with pytest.raises(SystemExit) as ended:
        fluidjax_command.main()
    assert ended.value.code == 2
    assert "no verb 'predikt'; did you mean predict?" in capsys.readouterr().err
