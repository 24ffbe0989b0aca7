"""`fluidjax demo`, without the training and the evaluation that it calls."""

from __future__ import annotations

from fluidjax.base import environment
from fluidjax.runs import demo, evaluate, train


def test_it_trains_on_all_cores_for_fewer_steps_and_evaluates(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(environment, 'use_all_cores', lambda: calls.append('all cores'))
    monkeypatch.setattr(train, 'train', lambda config, folder: calls.append((config, folder)))
    monkeypatch.setattr(evaluate, 'run_evaluation', lambda folder: folder / 'report.html')
    monkeypatch.setenv('FLUIDJAX_DEMO_DIR', str(tmp_path / 'demo'))
    demo.FLAGS(['demo'])
    demo.main()
    cores, (config, folder) = calls  # in this order: JAX must not be in use before
    assert cores == 'all cores' and folder == tmp_path / 'demo'
    assert config.method == 'conddiff' and config.diffusion.training.steps == demo.STEPS
    assert str(folder / 'report.html') in capsys.readouterr().out
