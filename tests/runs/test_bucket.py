"""Runs in a bucket, behind a program that stands for gcloud."""

from __future__ import annotations

import re

import pytest

from fluidjax.base.errors import UserError
from fluidjax.runs import bucket

FAKE_GCLOUD = """#!/bin/sh
# gcloud storage ls|rsync on a folder in place of buckets
echo "$@" >> "$BUCKETS/calls"
shift
case $1 in
  ls) [ -d "$BUCKETS/${2#gs://}" ] || { echo 'URLs matched no objects.' >&2; exit 1; } ;;
  rsync)
    for word; do from=$to; to=$word; done
    case $from in gs://*) from=$BUCKETS/${from#gs://} ;; esac
    case $to in gs://*) to=$BUCKETS/${to#gs://} ;; esac
    [ ! -e "$BUCKETS/closed" ] || { echo 'ERROR: 403 forbidden' >&2; exit 1; }
    case "$*" in *--delete-unmatched*) rm -rf "$to" ;; esac
    mkdir -p "$to" && cp -r "$from/." "$to/" ;;
esac
"""


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    """A folder that stands for all buckets, behind a program called gcloud."""
    (tmp_path / 'bin').mkdir()
    program = tmp_path / 'bin' / 'gcloud'
    program.write_text(FAKE_GCLOUD)
    program.chmod(0o755)
    (tmp_path / 'buckets').mkdir()
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:/usr/bin:/bin')
    monkeypatch.setenv('BUCKETS', str(tmp_path / 'buckets'))
    monkeypatch.setenv('FLUIDJAX_BUCKETS', str(tmp_path / 'here'))
    return tmp_path / 'buckets'


def test_a_bucket_is_fetched_and_what_is_new_sent(buckets):
    with bucket.mirrored_folder('gs://brains/run') as (folder, saved):
        stage = folder / 'checkpoints' / 'diffusion'
        (stage / '2').mkdir(parents=True)
        (stage / '2' / 'state').write_text('two')
        saved()
    there = buckets / 'brains' / 'run'
    assert (there / 'checkpoints' / 'diffusion' / '2' / 'state').read_text() == 'two'

    other = buckets.parent / 'elsewhere'  # another machine
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FLUIDJAX_BUCKETS', str(other))
        with bucket.mirrored_folder('gs://brains/run') as (folder, saved):
            stage = folder / 'checkpoints' / 'diffusion'
            assert (stage / '2' / 'state').read_text() == 'two'
            (stage / '4').mkdir()
            (stage / '2' / 'state').unlink()
            (stage / '2').rmdir()
    assert [path.name for path in (there / 'checkpoints' / 'diffusion').iterdir()] == ['4']


def test_what_is_new_is_sent_when_training_fails(buckets):
    with pytest.raises(KeyError):
        with bucket.mirrored_folder('gs://brains/run') as (folder, _):
            (folder / 'metrics.jsonl').write_text('{}')
            raise KeyError
    assert (buckets / 'brains' / 'run' / 'metrics.jsonl').read_text() == '{}'


def test_what_cannot_be_sent_is_told_and_fails_the_command(buckets, capfd):
    with pytest.raises(UserError, match='not all was copied'):
        with bucket.mirrored_folder('gs://brains/run') as (folder, saved):
            (buckets / 'closed').touch()
            saved()
    assert capfd.readouterr().err.count('403 forbidden') == 2


def test_a_buckets_folder_is_one_commands_at_a_time(buckets):
    with bucket.mirrored_folder('gs://brains/run') as (folder, _):
        (folder / 'metrics.jsonl').write_text('{}')
        with pytest.raises(UserError, match='another command works on gs://brains/run;'):
            with bucket.mirrored_folder('gs://brains/run/'):
                pass
    calls = (buckets / 'calls').read_text().splitlines()
    assert len(calls) == 2 and calls[-1].endswith(' gs://brains/run')  # it fetched nothing


def test_a_bucket_that_was_emptied_is_told_before_it_is_filled_again(buckets, capfd):
    with bucket.mirrored_folder('gs://brains/run') as (folder, _):
        assert 'is empty' not in capfd.readouterr().err  # nothing is here either
        (folder / 'metrics.jsonl').write_text('{}')
    (buckets / 'brains').rename(buckets / 'away')
    with bucket.mirrored_folder('gs://brains/run'):
        told = capfd.readouterr().err
        assert 'gs://brains/run: is empty' in told and str(folder) in told
    assert (buckets / 'brains' / 'run' / 'metrics.jsonl').exists()


@pytest.mark.parametrize(
    ('name', 'left_out'),
    [
        ('.lock', True),
        ('trial-000/.lock', True),
        ('.claims/trial-000.lock', True),
        ('checkpoints/bridge/8.orbax-checkpoint-tmp/state', True),
        ('metrics.jsonl', False),
        ('checkpoints/bridge/8/state', False),
        ('locks.md', False),
    ],
)
def test_locks_and_what_is_being_written_stay_here(name, left_out):
    assert bool(re.match(bucket.LEFT_OUT, name)) == left_out  # as gcloud does


def test_without_gcloud_a_bucket_is_refused(monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(UserError, match='gcloud is not installed'):
        with bucket.mirrored_folder('gs://brains/run'):
            pass


@pytest.mark.parametrize('name', ['gs://', 'gs://bucket', 'gs://b/../../etc', "gs://b/it's"])
def test_what_is_no_folder_of_a_bucket_is_refused(name):
    with pytest.raises(UserError, match='gs://BUCKET/FOLDER'):
        bucket.local_folder(name)
