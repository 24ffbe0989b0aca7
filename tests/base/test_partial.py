"""Files and folders under hidden names: complete or absent, and removed when their writer died."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from fluidjax.base import partial

WRITER = """
import pathlib, sys
from fluidjax.base.partial import partial_folder, written_beside
target = pathlib.Path(sys.argv[1])
with partial_folder(target, 'scan') as folder, written_beside(target / 'map.nii.gz') as file:
    (folder / 'part').touch()
    print('writes', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process that is writing a folder and a file in `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, '-c', WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'writes\n'
    yield process
    process.kill()
    process.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_another_process_writes_stays_and_what_a_dead_one_left_goes(
    other, tmp_path, monkeypatch
):
    written = names(tmp_path)
    assert len(written) == 2 and all(name.startswith('.') for name in written)
    partial.clean(tmp_path)
    assert names(tmp_path) == written
    other.kill()
    other.wait()
    monkeypatch.setattr(partial, '_cleaned', set())  # as in another process
    with partial.written_beside(tmp_path / 'other.nii.gz') as file:
        file.write_text('x')
    assert names(tmp_path) == ['other.nii.gz']


def test_the_names_of_former_versions_are_removed_and_no_others(tmp_path):
    (tmp_path / '.base.1.partial' / 'deep').mkdir(parents=True)
    (tmp_path / '.map.77.partial.nii.gz').touch()
    kept = ['.base.1', '.base.partial', '.base.x1.partial', 'base.1.partial']
    for name in kept:
        (tmp_path / name).mkdir()
    partial.clean(tmp_path)
    assert names(tmp_path) == kept


def test_a_folder_that_was_created_a_moment_ago_may_go_but_not_one_with_files(tmp_path):
    """Its writer has not locked it yet, and takes another name then."""
    empty, full = (tmp_path / f'.a.x{digit * 12}.partial' for digit in '12')
    empty.mkdir()
    full.mkdir()
    (full / 'file').touch()
    partial.clean(tmp_path)
    assert names(tmp_path) == [full.name]


def test_two_writers_of_one_name_do_not_meet(tmp_path):
    path = tmp_path / 'map.nii.gz'
    with partial.written_beside(path) as first, partial.written_beside(path) as second:
        assert first != second and first.name.endswith('.nii.gz')
        first.write_text('1')
        second.write_text('2')
    assert path.read_text() == '1' and names(tmp_path) == ['map.nii.gz']
    with partial.partial_folder(tmp_path, 'a') as one, partial.partial_folder(tmp_path, 'a') as two:
        assert one != two
    assert names(tmp_path) == ['map.nii.gz']


@pytest.mark.parametrize('name', ['x' * 248 + '.nii.gz', 'ä' * 124 + '.nii.gz', 'y' * 255])
def test_the_longest_names_can_be_written(name, tmp_path):
    with partial.written_beside(tmp_path / name) as file:
        file.write_text('x')
    with partial.new_folder(tmp_path / 'in' / name):
        pass
    assert names(tmp_path) == sorted(['in', name])


def test_an_error_without_a_file_gets_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError) as raised, partial.written_beside(tmp_path / 'map.nii'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert raised.value.filename == str(tmp_path / 'map.nii') and not names(tmp_path)
