"""What results say about the model that they come from, and how scans are read for it."""

from __future__ import annotations

from types import SimpleNamespace

import joblib
import nibabel as nib
import numpy as np
import pytest

from data_pipelines.grids import GRIDS
from fluidjax.base.errors import UserError
from fluidjax.detect.reliability import Rising
from fluidjax.predict import __main__ as command
from fluidjax.predict import batch, models
from fluidjax.predict.reading import Options, read_scan
from fluidjax.predict.scans import ScanFile
from fluidjax.runs.thresholds import Certainty


@pytest.mark.parametrize('rule', ['dice', 'fpr_1', 'healthy_1ml'])
def test_a_confidence_is_known_only_at_its_threshold(monkeypatch, rule):
    known = Certainty(Rising((0.0, 1.0), (0.0, 0.5)), Rising((0.2, 1.0), (0.1, 0.9)))
    monkeypatch.setattr(models.thresholds, 'load', lambda run, rule: 0.3)
    monkeypatch.setattr(models.thresholds, 'load_choice', lambda run: None)
    monkeypatch.setattr(models.thresholds, 'load_certainty', lambda run: known)
    monkeypatch.setattr(models, 'Detector', lambda *_: None)
    run = SimpleNamespace(config=SimpleNamespace(method='ldm'), step=1)
    found = models._model(run, 'run', rule, 'filled').source.certainty
    assert found.probability == known.probability
    assert found.confidence == (known.confidence if rule == 'dice' else None)


def test_a_brain_mask_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / 'a.nii')
    file = ScanFile(tmp_path / 'a.nii', 'a', tmp_path)
    with pytest.raises(UserError, match=f'{tmp_path}/brain.nii: no such file'):
        read_scan(file, GRIDS['smoke'], Options(brain='~/brain.nii'))


def test_one_job_is_for_each_cpu_that_may_be_used(monkeypatch):
    jobs = []
    command.FLAGS.mark_as_parsed()
    monkeypatch.setattr(command, 'OUT', SimpleNamespace(value='out'))
    monkeypatch.setattr(command, 'JOBS', SimpleNamespace(value=-1))
    monkeypatch.setattr(command, '_selected', lambda *_: None)
    monkeypatch.setattr(batch, 'predict', lambda *given: jobs.append(given[5]))
    monkeypatch.setattr(joblib, 'cpu_count', lambda: 77)
    command.main(['scan.nii'])
    assert jobs == [77]
