"""The command lines as a user calls them, at the smallest size."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from configs import ldm
from fluidjax.__main__ import VERBS
from fluidjax.base.errors import UserError
from fluidjax.runs import export
from fluidjax.runs.evaluate import run_evaluation
from fluidjax.runs.load import load_run
from fluidjax.runs.train import train

CONFIG = '--config=configs/ldm.py:smoke'


def one_line_error(process):
    """The command failed with exactly one line, ours."""
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    assert process.returncode == 2, process.stderr
    assert lines[-1].startswith('fluidjax: error: '), process.stderr
    assert 'Traceback' not in process.stderr
    return lines[-1]


def test_training_writes_what_it_says(trained):
    workdir, done, _ = trained
    assert json.loads((workdir / 'config.json').read_text())['size'] == 'smoke'
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [(r['stage'], r['step']) for r in records] == [
        (stage, step) for stage in ('autoencoder', 'diffusion') for step in (2, 3, 4, 6)
    ]
    assert all(np.isfinite(r['loss']) and r['seconds_per_step'] > 0 for r in records)
    for stage in ('autoencoder', 'diffusion'):
        assert (workdir / 'checkpoints' / stage / '6').is_dir()
        assert list((workdir / 'tensorboard' / stage).glob('events*'))
    assert 'fluidjax eval' in done.stderr


def test_evaluation_writes_scores_pictures_and_volumes(trained):
    workdir, _, evaluated = trained
    metrics = json.loads((workdir / 'eval' / 'metrics.json').read_text())
    rows = metrics['template_smoke']
    trivial = ['autoencoder', 'mean_brain', 'z_score', 'mirror_image', 'intensity']
    assert list(rows) == ['conddiff', *trivial]
    for scores in rows.values():
        assert set(scores['ap']) == {'mean', 'ci_low', 'ci_high', 'n'}
        assert scores['ap']['n'] == 4 and 0 <= scores['dice_validated']['mean'] <= 1
    with open(workdir / 'eval' / 'subjects.csv') as file:
        assert len(list(csv.DictReader(file))) == 6 * 4
    assert all(row['healthy_ml']['n'] == 4 for row in rows.values())  # without their lesions
    chosen = json.loads((workdir / 'calibration.json').read_text())
    assert set(chosen['recipes']) == set(rows)
    page = (workdir / 'eval' / 'report.html').read_text()
    assert page.count('data:image/png;base64') >= 5
    assert not re.search(r'(?:src|href)\s*=\s*["\']?https?:', page)
    assert 'report.html' in evaluated.stdout and 'mean_brain' in evaluated.stdout


@pytest.mark.slow
def test_a_package_is_evaluated_as_its_run(trained, store, tmp_path, monkeypatch):
    """On the embedded cohort, which a package has no folder of, with the scores of the run."""
    monkeypatch.setenv('FLUIDJAX_STORE', str(store))
    package = tmp_path / 'model.zip'
    export.export(trained[0], package)
    run_evaluation(package, False, tmp_path / 'package', {'name': 'template'})
    scores, expected = (
        json.loads((folder / 'metrics.json').read_text())['template_smoke']
        for folder in (tmp_path / 'package', trained[0] / 'eval')
    )
    for row in (*scores.values(), *expected.values()):
        del row['seconds']
    assert scores == expected


def test_volumes_lie_where_the_scan_lies(trained):
    from data_pipelines.grids import GRIDS

    folders = sorted((trained[0] / 'eval' / 'subjects').iterdir())
    assert len(folders) == 4
    names = {'scan', 'counterpart', 'anomaly_map', 'anomaly_mask', 'lesion'}
    for name in names:
        image = nib.load(folders[0] / f'{name}.nii.gz')
        np.testing.assert_allclose(image.affine, GRIDS['smoke'].affine)
        assert image.shape == GRIDS['smoke'].shape
        assert nib.aff2axcodes(image.affine) == ('R', 'A', 'S')


def test_the_same_command_again_trains_nothing(trained, call):
    workdir, _, _ = trained
    before = (workdir / 'metrics.jsonl').read_text()
    again = call('train', CONFIG, f'--workdir={workdir}')
    assert again.returncode == 0 and 'all stages are done' in again.stderr
    assert (workdir / 'metrics.jsonl').read_text() == before


def test_a_killed_run_ends_in_the_same_numbers(trained, store, tmp_path, monkeypatch):
    """Continued from the third step of the second stage, as if it had been killed after it."""
    monkeypatch.setenv('FLUIDJAX_STORE', str(store))
    workdir, _, _ = trained
    killed = tmp_path / 'killed'
    shutil.copytree(workdir, killed, ignore=shutil.ignore_patterns('eval'))
    shutil.rmtree(killed / 'checkpoints' / 'diffusion' / '6')
    train(ldm.get_config('smoke'), killed)

    def losses(folder):
        records = [json.loads(x) for x in (folder / 'metrics.jsonl').read_text().splitlines()]
        return [(r['stage'], r['step'], r['loss'], r['grad_norm']) for r in records]

    assert losses(killed) == losses(workdir)


@pytest.mark.slow
def test_a_run_killed_with_signal_9_ends_in_the_same_numbers(checkout, store, tmp_path):
    """Killed as soon as its second stage has passed a checkpoint, then started again."""
    import time

    def command(workdir):
        return [
            sys.executable,
            '-m',
            'fluidjax.main',
            CONFIG,
            f'--workdir={workdir}',
            '--config.diffusion.training.steps=60',
            '--config.diffusion.training.checkpoint_every=7',
        ]

    def final(workdir):
        records = [json.loads(x) for x in (workdir / 'metrics.jsonl').read_text().splitlines()]
        return [{k: v for k, v in r.items() if k != 'seconds_per_step'} for r in records]

    env = os.environ | {'FLUIDJAX_STORE': str(store)}
    subprocess.run(command(tmp_path / 'whole'), cwd=checkout, env=env, check=True)
    killed = tmp_path / 'killed'
    process = subprocess.Popen(command(killed), cwd=checkout, env=env)
    while not (killed / 'checkpoints' / 'diffusion' / '14').is_dir():
        assert process.poll() is None, 'it ended before it could be killed'
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert final(killed)[-1]['step'] < 60
    subprocess.run(command(killed), cwd=checkout, env=env, check=True)
    assert final(killed) == final(tmp_path / 'whole')


@pytest.mark.parametrize(
    'name,arguments,message',
    [
        (
            'train',
            ['--config=configs/ldm.py:tiny', '--workdir=x'],
            'size is one of paper, 1mm, 1.5mm, 2mm, 4mm, demo, smoke',
        ),
        ('train', ['--config=configs/none.py', '--workdir=x'], "no file 'configs/none.py'"),
        ('train', [CONFIG, '--config.diffusion.stepz=3', '--workdir=x'], "no field 'stepz'"),
        ('train', [CONFIG, '--config.seed=three', '--workdir=x'], 'seed'),
        ('train', [CONFIG, '--colour=red', '--workdir=x'], 'colour'),
        (
            'train',
            [
                '--config=configs/ldm.py:smoke,cohort=nifti',
                '--workdir={tmp}/n2',
                '--config.cohort.data_dir={tmp}/missing',
            ],
            'missing is not a folder',
        ),
        ('train', [CONFIG, '--workdir=/proc/nowhere'], '/proc/nowhere'),
        ('eval', ['--workdir={tmp}/nothing'], 'no such file'),
        ('eval', ['more', '--workdir=x'], "unexpected argument 'more'"),
        (
            'predict',
            ['a/T1.nii', 'a/T1.nii.gz', '--workdir=x', '--out={tmp}'],
            'overwrite its results',
        ),
    ],
)
def test_a_mistake_is_one_line(call, tmp_path, name, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert message in one_line_error(call(name, *arguments))


@pytest.mark.parametrize(
    'argument,changes,message',
    [
        ('smoke,cohort=nifti', {}, 'data_dir.*must be the folder of your healthy scans'),
        ('smoke,cohort=nifti', {'cohort.data_dir': '{tmp}'}, 'found no scans'),
        ('smoke', {'cohort.data_dir': '{tmp}'}, 'cohort=nifti'),
        ('smoke', {'cohort.name': 'oasis'}, 'neither template nor nifti'),
        ('smoke', {'size': 'huge'}, "'huge' is not one of"),
        ('smoke', {'seed': -1}, 'seed'),
        ('smoke', {'method': 'ldm'}, 'condition'),
        ('smoke', {'method': 'magic'}, "'magic' is not one of"),
        ('smoke', {'detect.map.sign': 'left'}, 'sign'),
        ('smoke', {'diffusion.training.optimizer.clip_norm': -1.0}, 'clip_norm'),
        ('smoke', {'diffusion.training.optimizer.decay': 'linear'}, 'decay'),
    ],
)
def test_a_field_that_cannot_be_is_named_and_nothing_is_written(
    store, tmp_path, monkeypatch, argument, changes, message
):
    monkeypatch.setenv('FLUIDJAX_STORE', str(store))
    config = ldm.get_config(argument)
    for field, value in changes.items():
        config.update_from_flattened_dict(
            {field: value.format(tmp=tmp_path) if isinstance(value, str) else value}
        )
    workdir = tmp_path / 'run'
    with pytest.raises(UserError, match=message):
        train(config, workdir)
    assert not workdir.exists()


def test_a_run_without_a_checkpoint_says_what_to_do(trained, tmp_path):
    (tmp_path / 'config.json').write_text((trained[0] / 'config.json').read_text())
    with pytest.raises(UserError, match='no checkpoint.*fluidjax train'):
        load_run(tmp_path)


def test_another_configuration_does_not_overwrite_a_run(trained, store, monkeypatch):
    monkeypatch.setenv('FLUIDJAX_STORE', str(store))
    config = ldm.get_config('smoke')
    config.diffusion.training.ema_decay = 0.5
    with pytest.raises(UserError, match='diffusion.training.ema_decay'):
        train(config, trained[0])


def test_only_the_map_settings_of_a_finished_run_may_change(
    trained, store, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv('FLUIDJAX_STORE', str(store))
    workdir = tmp_path / 'copy'
    shutil.copytree(trained[0], workdir)
    config = ldm.get_config('smoke')
    config.detect.map.smoothing_mm = 0.0
    train(config, workdir)
    assert 'all stages are done' in capsys.readouterr().err
    saved = json.loads((workdir / 'config.json').read_text())
    assert saved['detect']['map']['smoothing_mm'] == 0.0


def test_a_cohort_that_changed_since_is_noticed(trained, store, tmp_path, monkeypatch):
    monkeypatch.setenv('FLUIDJAX_STORE', str(store))
    workdir = tmp_path / 'copy'
    shutil.copytree(trained[0], workdir)
    (workdir / 'cohort.json').write_text('{"cohort": "nifti_cohort/other/1.0.0", "sizes": {}}')
    with pytest.raises(UserError, match='not those that this run was trained on'):
        train(ldm.get_config('smoke'), workdir)


@pytest.mark.parametrize(
    'content,message',
    [
        ('{"size": "smoke"', 'is not JSON'),
        ('[]', 'JSON object is expected'),
        ('{"size": "smoke"}', 'lacks a field'),
        ('{}', 'size'),
    ],
)
def test_a_damaged_configuration_is_one_line(tmp_path, content, message):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UserError, match=message):
        load_run(tmp_path)


def test_run_sh_knows_its_verbs(checkout):
    listed = subprocess.run(['./run.sh', 'help'], cwd=checkout, capture_output=True, text=True)
    for verb in ('setup', 'test', 'lint', *VERBS):
        assert re.search(rf'^  {verb}\b', listed.stdout, re.M), verb
    wrong = subprocess.run(['./run.sh', 'dance'], cwd=checkout, capture_output=True, text=True)
    assert wrong.returncode == 2 and "no verb 'dance'" in wrong.stderr


def test_package_imports_without_jax_and_tensorflow(checkout):
    code = (
        'import sys, fluidjax, fluidjax.base.cli, fluidjax.base.errors; '
        "assert not {'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, '-c', code], cwd=checkout, check=True)


def test_the_device_path_needs_no_tensorflow(checkout):
    code = (
        "import sys; sys.modules['tensorflow'] = None; "
        "sys.modules['tensorflow_datasets'] = None; "
        'import fluidjax.runs.train, fluidjax.runs.evaluate, fluidjax.predict.batch, '
        'fluidjax.bench.fluid, fluidjax.randomize.pairs'
    )
    subprocess.run([sys.executable, '-c', code], cwd=checkout, check=True)
