"""Scans of a command line whose output folder lies beside, in or around them; CPUs by default."""

from __future__ import annotations

from types import SimpleNamespace

import joblib
import pytest

from data_pipelines import prepare
from data_pipelines.scan_arguments import given_scans
from fluidjax.base.errors import UserError


@pytest.fixture
def study(tmp_path):
    """A folder with a scan in a subfolder."""
    (tmp_path / 'study' / 'p01').mkdir(parents=True)
    (tmp_path / 'study' / 'p01' / 'T1.nii').touch()
    return tmp_path / 'study'


def test_an_output_folder_around_the_scans_is_told(study):
    for out in (study, study.parent, study / 'p01' / '..'):
        with pytest.raises(UserError, match='--out: .* contains the scans in'):
            given_scans([study], out)
    assert given_scans([study], study / 'out').scans


def test_a_folder_of_results_is_told(study):
    with pytest.raises(UserError, match='SCAN: .* holds only the results in'):
        given_scans([study], study / 'p01')
    (study / 'dataset_description.json').write_text('{"GeneratedBy": [{"Name": "fluidjax"}]}')
    for folder, out in ((study, study), (study / 'p01', study)):
        with pytest.raises(UserError, match='SCAN: .* holds only'):
            given_scans([folder], out)


def test_prepare_has_a_worker_for_each_cpu_that_may_be_used(monkeypatch):
    workers = []
    prepare.FLAGS.mark_as_parsed()
    monkeypatch.setattr(prepare, 'OUT', SimpleNamespace(value='store'))
    monkeypatch.setattr(prepare, 'build', lambda request: workers.append(request.workers))
    monkeypatch.setattr(joblib, 'cpu_count', lambda: 77)
    prepare.main(['scans'])
    assert workers == [77]
