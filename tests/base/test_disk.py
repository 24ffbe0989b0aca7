"""Whether a folder can be written to, and what is said where it cannot."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest

from fluidjax.base import disk
from fluidjax.base.errors import DiskError, UserError


def test_nothing_is_left_in_a_folder_that_can_be_written_to(tmp_path):
    disk.check_output(tmp_path / 'a' / 'b', '--out')
    assert not list(tmp_path.iterdir())
    disk.check_output(tmp_path, '--out')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'number,words',
    [
        (errno.ENOSPC, r'not enough space left on the disk \([\d.]+ .B free of [\d.]+ .B, mounted'),
        (errno.EDQUOT, 'your quota on the disk is used up'),
        (errno.EROFS, 'the disk is read-only'),
        (errno.EACCES, 'no permission to write in'),
        (errno.EIO, 'does not work'),
    ],
)
def test_a_disk_that_cannot_be_written_to_is_named(number, words, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, 'TemporaryFile', fail)
    with pytest.raises(DiskError, match=words) as raised:
        disk.check_output(tmp_path / 'a' / 'b', '--out')
    assert str(raised.value).startswith(f'--out: {tmp_path}/a/b: ')
    assert '\n' not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_not_the_fault_of_the_disk(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file', tmp_path / 'file' / 'deep'):
        with pytest.raises(UserError, match='/file is a file; name a folder') as raised:
            disk.check_output(path, '--out')
        assert not disk.is_of_disk(raised.value)
    with pytest.raises(UserError, match='longer than 255 bytes'):
        disk.check_output(tmp_path / ('x' * 300), '--out')


def test_a_full_disk_is_told_from_a_file_that_cannot_be_read():
    full = OSError(errno.ENOSPC, 'No space left on device', '/out/map.nii')
    assert disk.is_of_disk(full) and disk.line_of(full).startswith('/out/map.nii: not enough space')
    hidden = PermissionError(errno.EACCES, 'Permission denied', '/in/scan.nii')
    assert not disk.is_of_disk(hidden)
    assert disk.line_of(hidden).startswith('/in/scan.nii: Permission denied; check')
