"""Model packages: what a run becomes, what comes back, and what a bad file is told."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import ldm
from fluidjax.base.errors import UserError
from fluidjax.runs import evaluate, export, thresholds
from fluidjax.runs import package as package_file
from fluidjax.runs.load import described, load_run, model_for, models_of


@pytest.fixture(scope='module')
def package(smoke_run, tmp_path_factory):
    path = tmp_path_factory.mktemp('packages') / 'model.zip'
    export.export(smoke_run, path)
    return path


def edited(package, path, replace=None, drop=(), add=(), compression=zipfile.ZIP_STORED):
    """A copy of a package with other members."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(path, 'w', compression) as new:
        for name in old.namelist():
            if name not in drop:
                new.writestr(name, (replace or {}).get(name, old.read(name)))
        for name, content in add:
            new.writestr(name, content)
    return path


def with_manifest(package, path, **changes):
    with zipfile.ZipFile(package) as archive:
        manifest = json.loads(archive.read('package.json'))
    return edited(package, path, {'package.json': json.dumps(manifest | changes)})


def test_a_package_holds_the_run(smoke_run, package):
    old, new = load_run(smoke_run), load_run(package)
    assert new.step == old.step and new.name == old.name and new.method == old.method
    jax.tree.map(np.testing.assert_array_equal, new.params, old.params)
    assert thresholds.load(new, 'fpr_1') == 0.1
    changed = load_run(package, {'diffusion.process.sampler_steps': 1})
    assert changed.config.diffusion.process.sampler_steps == 1


@pytest.fixture(scope='module')
def bright(package, tmp_path_factory):
    """A package for T2w and FLAIR scans; its weights are those of the other."""
    with zipfile.ZipFile(package) as archive:
        config = json.loads(archive.read('config.json'))
    made = ldm.get_config('smoke,contrast=any').to_dict()
    made['synthesis']['contrasts'] = ['t2w', 'flair']
    config |= {name: made[name] for name in ('wide', 'variants', 'synthesis')}
    path = tmp_path_factory.mktemp('bright') / 'bright.zip'
    return edited(package, path, {'config.json': json.dumps(config)})


def test_a_package_is_put_into_another(smoke_run, package, bright, tmp_path):
    both, again = tmp_path / 'both.zip', tmp_path / 'again.zip'
    export.export(smoke_run, both, other=bright)
    assert 'with a model for other contrasts' in export.export(package, again, other=bright)
    assert again.read_bytes() == both.read_bytes()
    with pytest.raises(UserError, match='is a package, not a run; name the folder of a run'):
        export.export(package, again)
    with pytest.raises(UserError, match='give nothing but --other and --out'):
        export.export(package, again, half=True, other=bright)
    nested = edited(bright, tmp_path / 'n.zip', add=[('other_contrasts.zip', bright.read_bytes())])
    with pytest.raises(UserError, match='has a model for other contrasts itself'):
        export.export(package, again, other=nested)


def test_a_package_can_hold_one_for_other_contrasts(smoke_run, package, bright, tmp_path):
    path = tmp_path / 'both.zip'
    export.export(smoke_run, path, other=bright)
    run = load_run(path)
    models = models_of(run)
    assert tuple(models) == ('t1w', 't2w', 'flair')
    assert models['t1w'] is run and models['t2w'] is models['flair'] is not run
    jax.tree.map(np.testing.assert_array_equal, models['flair'].params, run.params)
    assert thresholds.load(models['flair'], 'fpr_1') == 0.1
    assert tuple(models_of(load_run(package))) == ('t1w',)
    assert path.stat().st_size > package.stat().st_size + bright.stat().st_size


def test_a_package_in_a_package_is_checked(smoke_run, package, bright, tmp_path):
    path = tmp_path / 'both.zip'
    with pytest.raises(UserError, match='is for no contrast that the run is not for'):
        export.export(smoke_run, path, other=package)
    with zipfile.ZipFile(bright) as archive:
        config = json.loads(archive.read('config.json'))
    config['synthesis']['contrasts'] = ['t1ce']
    enhanced = edited(bright, tmp_path / 'ce.zip', {'config.json': json.dumps(config)})
    with pytest.raises(UserError, match='after contrast agent, which predict cannot tell from'):
        export.export(smoke_run, path, other=enhanced)
    bare = edited(bright, tmp_path / 'bare.zip', drop=('calibration.json',))
    with pytest.raises(UserError, match='--other: .*bare.zip'):
        export.export(smoke_run, path, other=bare)
    with pytest.raises(UserError, match='--other: .* is not a package'):
        export.export(smoke_run, path, other=smoke_run)
    nested = edited(bright, tmp_path / 'nested.zip', add=[('other_contrasts.zip', b'')])
    twice = edited(
        package, tmp_path / 'twice.zip', add=[('other_contrasts.zip', nested.read_bytes())]
    )
    with pytest.raises(UserError, match='contains another package'):
        models_of(load_run(twice))
    broken = edited(package, tmp_path / 'broken.zip', add=[('other_contrasts.zip', b'PK no')])
    with pytest.raises(UserError, match='is not a model package, or is damaged'):
        models_of(load_run(broken))


def test_the_model_for_a_contrast():
    assert model_for('flair', {'t1w': 1, 'flair': 2}) == 2
    assert model_for('other', {'t1w': 1, 'flair': 2}) == 1
    assert model_for('other', {'t1w': 1, 'flair': 2, 'other': 3}) == 3
    assert model_for('t1w', {'flair': 1, 't1ce': 2}) == 2


def test_the_same_run_gives_the_same_bytes(smoke_run, package, tmp_path):
    again = tmp_path / 'again.zip'
    export.export(smoke_run, again)
    assert again.read_bytes() == package.read_bytes()
    assert not [p for p in tmp_path.iterdir() if p != again]


def test_half_precision_halves_the_file_and_keeps_the_maps(smoke_run, package, tmp_path):
    from fluidjax.base.subject import Subject
    from fluidjax.runs.detector import Detector

    small = tmp_path / 'half.zip'
    line = export.export(smoke_run, small, half=True)
    assert 'float16' in line and small.stat().st_size < 0.7 * package.stat().st_size
    rng = np.random.default_rng(0)
    brain = np.zeros((16, 16, 16), bool)
    brain[4:12, 3:13, 4:12] = True
    case = Subject(
        's',
        (rng.uniform(0.3, 0.9, brain.shape) * brain).astype(np.float32),
        brain,
        None,
        None,
        np.eye(4),
    )
    maps = [Detector(load_run(path)).detect([case]).maps for path in (package, small)]
    assert maps[0].max() > 0.01
    np.testing.assert_allclose(*maps, atol=0.01 * maps[0].max())


def test_a_package_of_own_scans_names_none_to_evaluate_on(package, tmp_path):
    config = json.loads(package_file.open_package(package).texts['config.json'])
    config['cohort']['name'] = 'nifti'
    of_scans = edited(package, tmp_path / 'own.zip', {'config.json': json.dumps(config)})
    with pytest.raises(UserError, match='--data_dir=DIR.*--embedded'):
        evaluate.run_evaluation(of_scans)


def test_other_scans_are_split_without_the_embedded_subjects_of_the_training(
    package, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(evaluate, 'open_cohort', seen.append)
    monkeypatch.setattr(evaluate, 'own_test_set', lambda config, _: seen.append(config) or 1 / 0)
    config = json.loads(package_file.open_package(package).texts['config.json'])
    config['cohort'] |= {'name': 'nifti', 'embedded': 96}
    of_scans = edited(package, tmp_path / 'own.zip', {'config.json': json.dumps(config)})
    with pytest.raises(ZeroDivisionError):
        evaluate.run_evaluation(of_scans, False, tmp_path / 'out', {'data_dir': 'scans'})
    assert [config.cohort.embedded for config in seen] == [0, 0]


def test_a_package_names_no_folder_of_the_machine(smoke_run, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(smoke_run, run)
    config = json.loads((run / 'config.json').read_text())
    config['cohort'] |= {
        'name': 'nifti',
        'data_dir': '/home/ada/scans',
        'store': '/home/ada/store',
        'lesion_dir': '/home/ada/masks',
    }
    config['autoencoder']['losses']['perceptual_weights'] = ['/home/ada/lpips.pth']
    (run / 'config.json').write_text(json.dumps(config))
    package = tmp_path / 'model.zip'
    export.export(run, package)
    assert b'/home/ada' not in package.read_bytes()
    assert str(tmp_path).encode() not in package.read_bytes()
    load_run(package)


def test_formats_of_other_versions(package, tmp_path, monkeypatch, capsys):
    newer = with_manifest(package, tmp_path / 'new.zip', format=7, reader='3.1.0', fluidjax='3.2.0')
    with pytest.raises(UserError, match='format 7.*install fluidjax 3.1.0 or newer'):
        load_run(newer)
    monkeypatch.setattr(package_file, 'OLDEST', 2)
    monkeypatch.setattr(package_file, 'FORMAT', 2)
    with pytest.raises(UserError, match='format 1, which .* no longer reads'):
        load_run(package)
    monkeypatch.setattr(package_file, 'OLDEST', 1)
    other = with_manifest(package, tmp_path / 'other.zip', preprocessing={'version': 0})
    load_run(other)
    assert 'preprocessed by version 0' in capsys.readouterr().err


@pytest.mark.parametrize(
    'change,message',
    [
        ({'drop': ['config.json']}, 'lacks config.json'),
        ({'drop': ['model.safetensors', 'README.md']}, 'lacks model.safetensors, README.md'),
        ({'add': [('../../evil.py', 'x')]}, "contains '../../evil.py'"),
        ({'add': [('/etc/passwd', 'x')]}, "contains '/etc/passwd'"),
        ({'add': [('weights.pkl', 'x')]}, 'not part of a model package'),
        ({'replace': {'package.json': '[]'}}, 'JSON object is expected'),
        ({'replace': {'package.json': '{"format": "1"}'}}, 'has no format'),
        ({'replace': {'package.json': '{"format": 1}'}}, 'has no field step'),
        ({'replace': {'config.json': '{'}}, 'is not JSON'),
        ({'replace': {'config.json': '{"size": ["smoke"]}'}}, 'config.json'),
        ({'replace': {'config.json': '{"size": "smoke"}'}}, 'lacks a field'),
        ({'replace': {'cohort.json': b'\xff\xfe'}}, 'damaged'),
        ({'replace': {'calibration.json': '{}'}}, None),
        ({'replace': {'model.safetensors': b''}}, 'damaged'),
        ({'replace': {'model.safetensors': b'\x08' + 7 * b'\0' + b'notjson!'}}, 'damaged'),
        ({'replace': {'model.safetensors': struct.pack('<Q', 1 << 60) + b'{}'}}, 'damaged'),
    ],
)
def test_a_bad_package_is_one_line(package, tmp_path, change, message):
    bad = edited(package, tmp_path / 'bad.zip', **change)
    if message is None:  # opens; its thresholds do not
        run = load_run(bad)
        with pytest.raises(UserError, match='has no thresholds'):
            thresholds.load(run)
        return
    with pytest.raises(UserError, match=message) as raised:
        load_run(bad)
    assert str(bad) in str(raised.value) and '\n' not in str(raised.value)
    assert {p.name for p in tmp_path.iterdir()} == {'bad.zip'}


def test_damaged_bytes_are_noticed(package, tmp_path):
    whole = package.read_bytes()
    for name, content in (
        ('cut', whole[: len(whole) // 2]),
        ('text', b'hello'),
        ('none', b''),
        ('flipped', whole[:-20_000] + bytes([whole[-20_000] ^ 1]) + whole[-19_999:]),
    ):
        path = tmp_path / f'{name}.zip'
        path.write_bytes(content)
        with pytest.raises(UserError, match='damaged|not finite'):
            load_run(path)
    with pytest.raises(UserError, match='no such file'):
        load_run(tmp_path / 'missing.zip')


def test_bombs_are_refused_unread(package, tmp_path, monkeypatch):
    bomb = edited(
        package,
        tmp_path / 'bomb.zip',
        {'model.safetensors': bytes(50 << 20)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(UserError, match='would unpack to 52,428,800 bytes'):
        load_run(bomb)
    monkeypatch.setattr(package_file, 'TEXT_LIMIT', 100)
    with pytest.raises(UserError, match='would unpack'):
        load_run(package)


def test_a_recompressed_package_still_opens(package, tmp_path):
    packed = edited(package, tmp_path / 'packed.zip', compression=zipfile.ZIP_DEFLATED)
    load_run(packed)


def test_weights_of_another_network_are_named(package, tmp_path):
    with zipfile.ZipFile(package) as archive:
        config = json.loads(archive.read('config.json'))
    config['diffusion']['network']['channels'] = [16]
    config['diffusion']['network']['num_head_channels'] = 16
    bad = edited(package, tmp_path / 'bad.zip', {'config.json': json.dumps(config)})
    with pytest.raises(UserError, match='has shape .* by the configuration beside it'):
        load_run(bad)
    config['diffusion']['network']['num_res_blocks'] = 2
    bad = edited(package, tmp_path / 'bad.zip', {'config.json': json.dumps(config)})
    with pytest.raises(UserError, match='lacks tensors'):
        load_run(bad)


def test_weights_that_are_not_expected_are_named():
    weights = {'a/kernel': np.ones((2, 3), np.float32), 'a/bias': np.zeros(3, np.float16)}
    shapes = {name: array.shape for name, array in weights.items()}
    content = safetensors.numpy.save(weights)
    back = package_file._decoded(content, shapes, 'file')
    assert all(array.dtype == np.float32 for array in back.values())
    np.testing.assert_array_equal(back['a/kernel'], weights['a/kernel'])
    for changed, message in (
        ({**weights, 'b': np.ones(1, np.float32)}, 'has tensors .* 1 in all, e.g. b'),
        ({'a/kernel': weights['a/kernel']}, 'lacks tensors .*a/bias'),
        ({**weights, 'a/bias': np.zeros(2, np.float32)}, r'shape \[2\].*\[3\]'),
        ({**weights, 'a/bias': np.zeros(3, np.int32)}, 'type int32'),
        ({**weights, 'a/bias': np.full(3, np.nan, np.float32)}, 'not finite'),
    ):
        with pytest.raises(UserError, match=message):
            package_file._decoded(safetensors.numpy.save(changed), shapes, 'file')
    with pytest.raises(UserError, match='damaged'):
        package_file._decoded(content + b'x', shapes, 'file')


def test_what_does_not_fit_float16_stays_float32():
    for values in ([[1e6, 1.0]], [[1e-9, 2e-9]]):
        assert package_file._stored(np.array(values, np.float32), True).dtype == np.float32
    assert package_file._stored(np.ones((2, 2), np.float32), True).dtype == np.float16
    assert package_file._stored(np.ones(2, np.float32), True).dtype == np.float32


@pytest.mark.parametrize('out', ['model.npz', 'folder.zip'])
def test_out_must_be_a_zip(smoke_run, tmp_path, out):
    (tmp_path / 'folder.zip').mkdir()
    with pytest.raises(UserError, match='must be a file that ends in .zip'):
        export.export(smoke_run, tmp_path / out)


@pytest.mark.parametrize(
    'cohort,shared',
    [
        ('nifti_jane_doe', 'nifti'),
        ('nifti_jane_doe-simulated', 'nifti-simulated'),
        ('template_smoke-simulated', 'template_smoke-simulated'),
    ],
)
def test_the_scores_in_a_package_do_not_name_the_folder_of_the_scans(
    smoke_run, tmp_path, cohort, shared
):
    (rows,) = json.loads((smoke_run / 'eval' / 'metrics.json').read_text()).values()
    run = tmp_path / 'run'
    shutil.copytree(smoke_run, run)
    (run / 'eval' / 'metrics.json').write_text(json.dumps({cohort: rows}))
    texts = {}
    assert export._evaluation(described(run), texts) == {shared: rows}
    assert json.loads(texts['metrics.json']) == {shared: rows} and 'jane' not in str(texts)


def test_a_run_that_was_not_evaluated_is_told_so(smoke_run, tmp_path, capsys):
    run = tmp_path / 'run'
    shutil.copytree(smoke_run, run)
    (run / 'calibration.json').unlink()
    export.export(run, tmp_path / 'model.zip')
    assert 'evaluate the run first' in capsys.readouterr().err
    loaded = load_run(tmp_path / 'model.zip')
    with pytest.raises(UserError, match='has no threshold yet'):
        thresholds.load(loaded)
