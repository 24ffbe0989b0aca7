"""The loop of predict where something fails: one scan, a batch, or the disk."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fluidjax.base.errors import DiskError, UserError
from fluidjax.predict import batch
from fluidjax.predict.reading import Scan
from fluidjax.predict.scans import ScanFile, Selection

LATIN1 = os.fsdecode(b'M\xfcller')


def scan(name):
    file = ScanFile(Path(f'/in/{name}.nii'), name, Path(name))
    return Scan(file, None, name, None, 1.0, (), 'none', None)


class Detector:
    """Fails for batches with any of some scans, and for those of more than `most`."""

    def __init__(self, bad=(), most=9, size=2):
        self.bad, self.most, self.batch_size = bad, most, size

    def with_batch(self, size):
        return Detector(self.bad, size, size)

    def detect(self, cases):
        if len(cases) > self.most:
            raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')
        if set(cases) & set(self.bad):
            raise ZeroDivisionError(f'cannot divide by {LATIN1}')
        return list(cases)


def one_model(detector):
    model = SimpleNamespace(detector=detector, source=None)
    return SimpleNamespace(for_contrast=lambda contrast: model)


@pytest.fixture
def work(monkeypatch, tmp_path):
    """Call the loop on scans; returns its outcome and the cases that were written."""

    def call(names, detector, fails=lambda name: None):
        written = []

        def write(out, scan, output, number, source):
            fails(scan.file.name)
            written.append(output[number])

        monkeypatch.setattr(batch, '_write', write)
        models = one_model(detector)
        outcome = batch._predict_all(map(scan, names), len(names), models, tmp_path)
        return outcome, written

    return call


def test_scans_of_a_batch_have_one_model():
    dark, bright = Detector(size=2), Detector(size=3)
    models = SimpleNamespace(
        for_contrast=lambda contrast: SimpleNamespace(
            detector=bright if contrast == 'flair' else dark
        )
    )
    kinds = {'a': 't1w', 'b': 'flair', 'c': 't1w', 'd': 'flair', 'e': 't1w'}
    scans = [dataclasses.replace(scan(name), contrast=kind) for name, kind in kinds.items()]
    made = [
        (detector, ''.join(one.case for one in some))
        for detector, some in batch._batches(iter(scans), models)
    ]
    assert made == [(dark, 'ac'), (bright, 'bd'), (dark, 'e')]


def test_a_scan_that_fails_in_its_batch_is_a_line_and_the_others_go_on(work):
    outcome, written = work('abcd', Detector(bad='b'))
    assert written == ['a', 'c', 'd'] and not outcome.problem
    (line,) = outcome.failures
    assert line.startswith('/in/b.nii: failed unexpectedly (ZeroDivisionError: cannot divide by M')
    assert r'M\xfcller' in line


def test_a_batch_that_needs_too_much_memory_is_tried_one_by_one(work):
    outcome, written = work('abc', Detector(most=1))
    assert written == ['a', 'b', 'c'] and not outcome.failures
    outcome, written = work('a', Detector(most=0, size=1))
    assert not written and 'not enough memory' in outcome.failures[0]


def test_results_that_cannot_be_drawn_or_written_are_a_line(work):
    def fails(name):
        if name == 'a':
            raise ValueError('no such glyph')
        if name == LATIN1:
            raise OSError(errno.EACCES, 'Permission denied', f'/out/{LATIN1}')

    outcome, written = work(['a', LATIN1, 'c'], Detector(), fails)
    assert written == ['c']
    assert outcome.failures == [
        '/in/a.nii: failed unexpectedly (ValueError: no such glyph); look at it in a viewer',
        r'/in/M\xfcller.nii: /out/M\xfcller: Permission denied; check the path, its permissions '
        'and the free space',
    ]


def test_a_full_disk_stops_the_run_and_the_others_are_named(work, tmp_path, capsys, monkeypatch):
    tried = []

    def fails(name):
        tried.append(name)
        if name == 'b':
            raise OSError(errno.ENOSPC, 'No space left on device')

    outcome, written = work('abcd', Detector(), fails)
    assert written == ['a'] and tried == ['a', 'b'] and not outcome.failures
    monkeypatch.setattr(batch, 'write_folder_index', lambda out, lines: print(*lines, sep='\n'))
    with pytest.raises(DiskError, match='not enough space.*; 3 of 4 scans are not done'):
        batch._report(outcome, Selection(tuple(scan(name).file for name in 'abcd')), tmp_path)
    told = capsys.readouterr()
    assert told.out.splitlines() == [f'/in/{name}.nii: not done' for name in 'bcd']
    assert [line for line in told.err.splitlines() if line.startswith('not done')] == [
        f'not done: /in/{name}.nii' for name in 'bcd'
    ]


def test_an_index_that_does_not_fit_is_the_fault_of_the_disk(tmp_path, monkeypatch):
    def full(out):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(batch, 'describe_folder', full)
    outcome = batch._Outcome([scan('a').file])
    with pytest.raises(UserError, match='not enough space'):
        batch._report(outcome, Selection((scan('a').file,)), tmp_path)


@pytest.fixture
def fusing(tmp_path, monkeypatch):
    """Predict two contrasts of a session, which need no model; call with a folder to write to."""
    files = [scan(f'sub-1_{contrast}').file for contrast in ('T1w', 'FLAIR')]
    models = SimpleNamespace(run=None, contrasts=('t1w', 'flair'))
    done = batch._Outcome(files)
    monkeypatch.setattr(batch, 'load_models', lambda *_: models)
    monkeypatch.setattr(batch, 'grid_of', lambda run: None)
    monkeypatch.setattr(batch, 'read_scans', lambda *_: (yield))
    monkeypatch.setattr(batch, '_predict_all', lambda *_: done)
    options = SimpleNamespace(brain='', of_run=lambda *_: None)

    def call(out):
        batch.predict(Selection(tuple(files)), Path('run'), out, options=options, fuse=True)

    return call


def test_a_session_that_is_not_fused_is_a_failure(fusing, tmp_path, capsys):
    with pytest.raises(UserError, match='not fused: 1 of the sessions, see above'):
        fusing(tmp_path)  # the results are not there
    assert 'not fused: /in/sub-1_T1w.nii: ' in capsys.readouterr().err
    assert 'not fused: /in/sub-1_T1w.nii: ' in (tmp_path / 'index.html').read_text()


def test_a_disk_that_fills_up_while_fusing_hides_no_scan(fusing, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(batch, 'fuse_sessions', full)
    with pytest.raises(DiskError, match='--out: .*not enough space left'):
        fusing(tmp_path)
    assert (tmp_path / 'index.html').is_file()
