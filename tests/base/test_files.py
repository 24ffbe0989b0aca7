"""Files that are complete or absent, JSON objects, locks, and configuration files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fluidjax.base import files, partial, settings
from fluidjax.base.errors import UserError


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / 'deep' / 'text.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(TypeError):
        files.write_json(path, {'a': object()})
    assert files.read_json(path, 'write it again') == {'a': 1}
    assert [entry.name for entry in path.parent.iterdir()] == ['text.json']


def test_a_new_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / 'deep' / 'run'
    with partial.new_folder(target) as folder:
        (folder / 'part').write_text('one')
        assert not target.exists() and target.parent in folder.parents
    assert (target / 'part').read_text() == 'one'
    assert [entry.name for entry in target.parent.iterdir()] == ['run']


def test_an_error_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError):
        with partial.new_folder(tmp_path / 'run') as folder:
            (folder / 'part').write_text('one')
            raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'text,message',
    [
        ('{"a": 1', r'notes\.json: is not JSON .*; write it again'),
        ('[1, 2]', r'notes\.json: contains list where a JSON object is expected; write it again'),
        ('[' * 100_000, 'is not JSON'),
        ('', 'is not JSON'),
    ],
)
def test_a_json_text_that_is_no_object_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as raised:
        files.parse_json(text, 'notes.json', 'write it again')
    assert '\n' not in str(raised.value)


def test_a_json_object_is_read():
    assert files.parse_json(b'{"a": [1, null]}', 'x', 'y') == {'a': [1, None]}


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        'import sys, pathlib; from fluidjax.base import files; '
        'lock = files.take_lock(pathlib.Path(sys.argv[1])); print(lock is not None, flush=True); '
        'sys.stdin.read()'
    )
    command = [sys.executable, '-c', code, str(tmp_path / '.lock')]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'True\n'
    assert files.take_lock(tmp_path / '.lock') is None
    with pytest.raises(UserError, match=rf'in use \(process {process.pid} on'):
        with files.locked(tmp_path / '.lock', 'in use'):
            pass
    process.kill()
    process.wait()
    with files.locked(tmp_path / '.lock', 'in use'):
        pass


def test_a_configuration_file_is_taken_from_here_first_then_from_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings.config_file('configs/ldm.py') == settings.INSTALLED / 'configs' / 'ldm.py'
    own = tmp_path / 'configs' / 'ldm.py'
    own.parent.mkdir()
    own.touch()
    assert settings.config_file('configs/ldm.py').samefile(own)
    assert settings.config_file(str(own)) == own


def test_a_missing_configuration_file_suggests_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'did you mean configs/regression\.py\?'):
        settings.config_file('configs/regresion.py')
    with pytest.raises(UserError, match=r'try configs/ldm\.py:demo'):
        settings.config_file('/nowhere/at/all')
