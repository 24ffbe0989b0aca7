"""File names as texts, and names that a file system accepts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fluidjax.base import files
from fluidjax.base.names import short_name, shown

LATIN1 = os.fsdecode(b'M\xfcller.nii.gz')


def test_bytes_that_are_not_utf8_are_shown_in_hexadecimal():
    assert shown(LATIN1) == shown(Path(LATIN1)) == shown(b'M\xfcller.nii.gz') == r'M\xfcller.nii.gz'
    assert shown('Müller') == 'Müller'


def test_texts_with_such_names_are_written(tmp_path):
    files.write_text(tmp_path / 'a.html', f'{LATIN1} ä')
    assert (tmp_path / 'a.html').read_text('utf-8') == r'M\xfcller.nii.gz ä'
    files.write_json(tmp_path / 'a.json', {'scan': LATIN1, 'ä': 'ä'})
    assert files.read_json(tmp_path / 'a.json', '') == {'scan': LATIN1, 'ä': 'ä'}
    assert 'ä' in (tmp_path / 'a.json').read_text('utf-8')


def test_a_name_is_shortened_only_where_it_must_be():
    assert short_name('x' * 222, 222) == 'x' * 222
    one, other = (short_name('x' * 222 + end, 222) for end in 'ab')
    assert one != other and one.startswith('x' * 213 + '-') and len(one) == len(other) == 222
    assert one == short_name('x' * 222 + 'a', 222)


@pytest.mark.parametrize('name', ['ä' * 200, 'xä' * 100, LATIN1 * 20])
def test_room_is_counted_in_bytes_and_characters_stay_whole(name):
    short = short_name(name, 100)
    assert 90 <= len(os.fsencode(short)) <= 100
    json.dumps(short).encode('ascii')
    assert short.encode('utf-8').decode('utf-8') == short
