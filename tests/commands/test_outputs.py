"""What every command checks before it works: its output folder, and the words it is given."""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
import zipfile

import pytest

from fluidjax.__main__ import VERBS
from fluidjax.runs.package import BUNDLED

SMOKE = '--config=configs/ldm.py:smoke'
OUTPUTS = {
    'predict': ('scan.nii', '--out={out}'),
    'prepare': ('scans', '--out={out}'),
    'train': (SMOKE, '--workdir={out}'),
    'eval': ('--workdir=runs/none', '--out={out}'),
    'export': ('runs/none', '--out={out}/model.zip'),
    'convert': ('weights.npz', '--out={out}'),
    'sweep': (SMOKE, '--workdir={out}'),
    'benchmark': ('--scale=smoke', '--workdir={out}'),
    'bench': ('fluid', '--json={out}/table.json'),
    'demo': ('--workdir={out}',),
}


@pytest.mark.parametrize('verb', OUTPUTS)
def test_a_full_disk_is_one_line_before_any_work(verb, call, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(tempfile, 'TemporaryFile', full)
    out = tmp_path / 'out'
    done = call(verb, *(word.format(out=out) for word in OUTPUTS[verb]))
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f': {out}' in last and 'not enough space left on the disk' in last, done.stderr
    assert not out.exists()


@pytest.mark.parametrize('verb', ['predict', 'prepare', 'export', 'convert', 'randomize'])
def test_a_file_that_looks_like_an_option_is_named(verb, call, tmp_path, monkeypatch):
    done = call(verb, '-x.nii.gz', f'--out={tmp_path / "out"}')
    assert done.returncode == 2
    assert done.stderr == (
        "fluidjax: error: '-x.nii.gz' looks like an option; if it is a file write ./-x.nii.gz\n"
    )
    done = call(verb, '-folder')
    assert "Unknown command line flag 'folder'" in done.stderr
    with monkeypatch.context() as patch:
        patch.setattr(os.path, 'lexists', lambda path: str(path) == '-folder')
        assert 'write ./-folder' in call(verb, '-folder').stderr


def test_a_list_without_values_is_one_line(call):
    seen = set()
    for verb, (module, _) in VERBS.items():
        flags = getattr(importlib.import_module(module), 'FLAGS', None) or {}
        for name in [name for name in flags if hasattr(flags[name], 'several_words')]:
            advice = f'write --{name}=A,B, or leave the option out\n'
            for word in (f'--{name}=', f'--{name}'):
                done = call(verb, word)
                assert done.returncode == 2
                assert done.stderr == f'fluidjax: error: --{name}: has no value; {advice}'
            done = call(verb, f'--{name}=1,,2')
            assert done.returncode == 2
            assert done.stderr == f"fluidjax: error: --{name}: '1,,2' has an empty value; {advice}"
            seen.add((verb, name))
    assert {('sweep', 'seeds'), ('benchmark', 'cells'), ('bench', 'shape')} <= seen


def test_an_unpacked_package_is_recognised(call, tmp_path):
    folder = tmp_path / 'model'
    with zipfile.ZipFile(BUNDLED) as package:
        package.extractall(folder)
    for verb, *words in (
        ('predict', 'scan.nii', f'--workdir={folder}', f'--out={tmp_path / "out"}'),
        ('eval', f'--workdir={folder}'),
        ('export', folder, f'--out={tmp_path / "new.zip"}'),
    ):
        done = call(verb, *words)
        assert done.returncode == 2 and f'{folder}: is an unpacked model package' in done.stderr
