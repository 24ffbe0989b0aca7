"""`predict`: from files of any kind to maps, tables and pages on the scans' own voxels."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest

import fluidjax
from configs import ldm
from data_pipelines import grids, mni_template, resampling
from fluidjax.base.errors import UserError
from fluidjax.predict import batch
from fluidjax.predict.reading import Options, read_scans
from fluidjax.predict.scans import ScanFile, name_of, select
from fluidjax.runs import export

KINDS = ('desc-healthy_T1w', 'desc-anomaly_probseg', 'desc-anomaly_mask', 'desc-brain_mask')
ENDINGS = {f'{kind}{end}' for kind in KINDS for end in ('.nii.gz', '.json')} | {
    'desc-anomaly_lesions.tsv',
    'desc-anomaly_lesions.json',
    'desc-anomaly.png',
    'desc-quality.png',
    'desc-anomaly.html',
}


def predict(scans, workdir, out) -> None:
    """Predict in this process, one scan after the other."""
    batch.predict(select(scans, out), workdir, out)


@pytest.fixture(scope='module')
def head():
    """The MNI152 brain on 5 mm voxels with a dark hole on the right, moved and turned a little, as
    (voxels 0..1000, affine)."""
    grid = grids.ModelGrid((38, 46, 38), (5.0, 5.0, 5.0))
    maps = mni_template.load_template(4.0)
    positions = grid.positions()
    data = 1000 * resampling.sample(maps.t1, maps.affine, positions)
    data[resampling.sample(maps.brain, maps.affine, positions) < 0.5] = 0
    data[np.linalg.norm(positions - [30, 20, 20], axis=-1) < 14] *= 0.3
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(0.1, 0.05, -0.08)
    turn[:3, 3] = 6, -5, 4
    return data.astype(np.float32), turn @ grid.affine


def write(path, head, axes='RAS', dtype=np.float32):
    """The head as a file whose axes are stored in another order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(head[0].astype(dtype), head[1])
    start, end = nib.io_orientation(head[1]), nib.orientations.axcodes2ornt(axes)
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    kind = nib.MGHImage if path.suffix == '.mgz' else nib.Nifti1Image
    nib.save(kind(np.asarray(image.dataobj), image.affine), path)
    return path


@pytest.fixture(scope='module')
def predicted(head, smoke_run, command, tmp_path_factory):
    """Good and bad files predicted by the command line: the folder, the scans, the process, and all
    files given."""
    given, out = tmp_path_factory.mktemp('given'), tmp_path_factory.mktemp('out') / 'maps'
    bids = given / 'bids' / 'sub-01' / 'ses-2' / 'anat'
    scans = {
        'sub-01_ses-2': write(bids / 'sub-01_ses-2_T1w.nii.gz', head, 'LPS'),
        'ein Kopf ä': write(given / 'ein Kopf ä.mgz', head, 'PIR'),
        'whole': write(given / 'whole.nii', head, 'RAS', np.int16),
    }
    shutil.copy(scans['sub-01_ses-2'], bids / 'sub-01_ses-2_label-lesion_mask.nii.gz')
    (given / 'text.nii').write_text('nothing')
    files = [
        given / 'bids',
        scans['ein Kopf ä'],
        given / 'text.nii',
        scans['whole'],
        given / 'none.nii.gz',
    ]
    done = command('predict', *files, f'--workdir={smoke_run}', f'--out={out}', '--n-jobs=2')
    return out, scans, done, files


FOLDERS = {'sub-01_ses-2': 'sub-01/ses-2/anat', 'ein Kopf ä': 'ein Kopf ä', 'whole': 'whole'}


def files_of(predicted, name):
    return predicted[0] / FOLDERS[name], predicted[1][name]


def test_failures_are_listed_and_stop_nothing(predicted):
    out, _, done, _ = predicted
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1] == 'fluidjax: error: 2 of 5 scans failed, see above', done.stderr
    assert re.match(r'failed: .*text.nii: is a text file', lines[-3])
    assert re.match(r'failed: .*none.nii.gz: no such file', lines[-2])
    assert {p.name for p in out.iterdir()} == {
        'sub-01',
        'ein Kopf ä',
        'whole',
        'index.html',
        'dataset_description.json',
        'README.md',
        '.bidsignore',
    }
    index = (out / 'index.html').read_text()
    assert index.count('<tr>') == 4 and 'text.nii: is a text file' in index
    for page in re.findall(r'href="([^"]+)"', index):
        assert (out / unquote(page)).is_file()


@pytest.mark.parametrize('name', FOLDERS)
def test_everything_is_written_on_the_scans_own_voxels(predicted, name):
    folder, scan = files_of(predicted, name)
    assert {p.name.removeprefix(f'{name}_') for p in folder.iterdir()} == ENDINGS
    original = nib.load(scan)
    images = {kind: nib.load(folder / f'{name}_{kind}.nii.gz') for kind in KINDS}
    for image in images.values():
        assert image.shape == original.shape
        np.testing.assert_allclose(image.affine, original.affine, atol=1e-5)
        assert image.header.get_xyzt_units() == ('mm', 'sec')
    voxels = {kind: image.get_fdata() for kind, image in images.items()}
    truth, brain = original.get_fdata() > 0, voxels['desc-brain_mask'] > 0
    assert 2 * (truth & brain).sum() / (truth.sum() + brain.sum()) > 0.9
    assert not voxels['desc-healthy_T1w'][~brain].any()
    threshold = json.loads((folder / f'{name}_desc-anomaly_probseg.json').read_text())['Threshold']
    np.testing.assert_array_equal(
        voxels['desc-anomaly_mask'] > 0, brain & (voxels['desc-anomaly_probseg'] >= threshold)
    )


def test_axes_and_formats_change_nothing(predicted):
    """The same head in three orders of its axes, as int16, float32 and MGH: the same map."""
    maps = []
    for name in FOLDERS:
        folder, _ = files_of(predicted, name)
        image = nib.load(folder / f'{name}_desc-anomaly_probseg.nii.gz')
        maps.append(nib.as_closest_canonical(image).get_fdata())
    for other in maps[1:]:  # the smoke model draws noise by a scan's place in its batch
        assert np.corrcoef(maps[0].ravel(), other.ravel())[0, 1] > 0.9


def test_tables_and_sidecars(predicted):
    folder, scan = files_of(predicted, 'sub-01_ses-2')
    start = folder / 'sub-01_ses-2_desc-anomaly'
    record = json.loads(start.with_name(start.name + '_lesions.json').read_text())
    rows = list(csv.DictReader(start.with_name(start.name + '_lesions.tsv').open(), delimiter='\t'))
    assert len(rows) == record['Summary']['regions'] == len(record['Lesions'])
    assert set(record['Summary']) >= {'scan', 'marked_ml', 'threshold', 'step', 'warnings'}
    assert record['Summary']['scan'] == str(scan)
    for row, region in zip(rows, record['Lesions']):
        assert float(row['volume_ml']) == region['volume_ml'] >= 0.1
        assert set(row) == set(region) <= set(record)
    about = json.loads((predicted[0] / 'dataset_description.json').read_text())
    assert about['DatasetType'] == 'derivative' and about['GeneratedBy'][0]['Name'] == 'fluidjax'
    healthy = json.loads((folder / 'sub-01_ses-2_desc-healthy_T1w.json').read_text())
    assert healthy['SkullStripped'] is True and healthy['Sources'] == [str(scan)]
    mask = json.loads((folder / 'sub-01_ses-2_desc-brain_mask.json').read_text())
    assert mask['Type'] == 'Brain'
    page = start.with_name(start.name + '.html').read_text()
    assert 'not for diagnosis' in page and 'sub-01_ses-2' in page


def test_the_number_of_processes_changes_no_byte(predicted, smoke_run, tmp_path):
    """And predicting into the same folder again replaces results and keeps all else."""
    before, _, _, files = predicted
    out = tmp_path / 'maps'
    shutil.copytree(before, out)
    old = [
        out / 'whole' / f'whole_desc-{name}.nii.gz'
        for name in ('uncertainty_probseg', 'anomaly_map', 'anomaly_mask')
    ]
    for path in old:
        path.write_bytes(b'old')
    (out / 'whole' / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='2 of 5 scans failed'):
        predict(files, smoke_run, out)
    assert [path.exists() for path in old] == [False, False, True]
    assert (out / 'whole' / 'notes.txt').read_text() == 'mine'
    for path in before.rglob('*'):
        if path.is_file():
            assert (out / path.relative_to(before)).read_bytes() == path.read_bytes(), path


def test_the_index_grows_and_a_single_failure_is_printed_once(
    predicted, smoke_run, tmp_path, capsys
):
    out = tmp_path / 'maps'
    (out / 'whole').mkdir(parents=True)
    table = 'whole_desc-anomaly_lesions.json'
    shutil.copy(predicted[0] / 'whole' / table, out / 'whole' / table)
    predict([predicted[1]['ein Kopf ä']], smoke_run, out)
    assert (out / 'index.html').read_text().count('<tr>') == 3
    capsys.readouterr()
    with pytest.raises(UserError, match='text.nii: is a text file'):
        predict([predicted[3][2]], smoke_run, out)
    assert 'text.nii' not in capsys.readouterr().err


@pytest.mark.slow
def test_the_bids_validator_finds_no_error(predicted):
    beside = Path(sys.executable).with_name('bids-validator-deno')
    validator = shutil.which('bids-validator-deno') or (beside if beside.is_file() else None)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed (setup.cfg's extra 'dev')")
    words = [str(validator), str(predicted[0]), '--format', 'json']
    report = json.loads(subprocess.run(words, capture_output=True, text=True, timeout=300).stdout)
    issues = report['issues']['issues']
    assert [issue for issue in issues if issue['severity'] == 'error'] == []
    assert {issue['code'] for issue in issues} <= {'TOO_FEW_AUTHORS'}
    assert report['summary']['subjects'] == ['01']


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)

    def __fspath__(self):
        return 'deadly.nii'

    __str__ = __fspath__


def test_a_scan_that_kills_its_process_stops_no_other(tmp_path):
    paths = [tmp_path / f'{name}.nii' for name in 'abc']
    for path in paths:
        path.write_text('nothing')
    files = [ScanFile(path, path.stem, Path(path.stem)) for path in paths]
    files.insert(1, ScanFile(Deadly(), 'deadly', Path('deadly')))
    lines = list(read_scans(files, grids.GRIDS['smoke'], Options(), jobs=2))
    assert [line.partition(': ')[0] for line in lines] == [str(file.path) for file in files]
    assert 'was killed' in lines[1] and all('is a text file' in lines[i] for i in (0, 2, 3))


def test_a_failure_while_writing_leaves_nothing(predicted, smoke_run, tmp_path, monkeypatch):
    from fluidjax.predict import files

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files.page, 'write_scan_page', full)
    with pytest.raises(UserError, match='not enough space left on the disk'):
        predict([predicted[1]['whole']], smoke_run, tmp_path / 'out')
    assert not list((tmp_path / 'out').rglob('*'))


def test_several_counterparts_give_an_uncertainty(predicted, smoke_run, tmp_path):
    config = json.loads((smoke_run / 'config.json').read_text())
    config['diffusion']['process']['num_samples'] = 2
    workdir, out = tmp_path / 'run', tmp_path / 'out'
    shutil.copytree(smoke_run, workdir)
    (workdir / 'config.json').write_text(json.dumps(config))
    predict([predicted[1]['whole']], workdir, out)
    spread = nib.load(out / 'whole' / 'whole_desc-uncertainty_probseg.nii.gz')
    assert spread.shape == nib.load(predicted[1]['whole']).shape and spread.get_fdata().max() > 0


def test_another_data_set_is_not_written_into(tmp_path):
    (tmp_path / 'dataset_description.json').write_text('{"Name": "mine"}')
    with pytest.raises(UserError, match='another data set'):
        predict(['scan.nii'], tmp_path / 'run', tmp_path)
    with pytest.raises(UserError, match='is a file'):
        predict(['scan.nii'], tmp_path / 'run', tmp_path / 'dataset_description.json')


def test_participants_and_sessions_are_chosen_by_label(tmp_path):
    for name in ('sub-01_ses-pre', 'sub-01_ses-post', 'sub-02_ses-pre', 'sub-10_acq-x'):
        path = tmp_path / name.partition('_')[0] / f'{name}_T1w.nii.gz'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'x')

    def names(participants, sessions=()):
        return [
            one.name for one in select([tmp_path], tmp_path / 'o', participants, sessions).files
        ]

    assert names(['01'], ['ses-pre']) == ['sub-01_ses-pre']
    assert names(['sub-02', '10']) == ['sub-02_ses-pre', 'sub-10_acq-x']
    assert names([], ['pre']) == ['sub-01_ses-pre', 'sub-02_ses-pre']
    with pytest.raises(UserError, match="participant-label: no scan of '1'; there are 01, 02, 10$"):
        names(['1'])
    with pytest.raises(UserError, match="session-label: no scan of 'pre'; no scan has ses-LABEL"):
        names(['10'], ['pre'])


def test_the_command_reads_labels_and_jobs(predicted, smoke_run, command, tmp_path):
    words = ('predict', predicted[3][0], f'--workdir={smoke_run}', f'--out={tmp_path / "out"}')
    for extra, message in (
        (('--participant-label', '02', '03'), "no scan of '02'; there are 01"),
        (('--participant-label', 'sub-01', '--session-label=1'), "no scan of '1'; there are 2"),
        (('--n-jobs=0',), '--n-jobs: 0 must be 1 or more'),
    ):
        done = command(*words, *extra)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'path,name',
    [
        ('sub-01_ses-2_desc-preproc_T1w.nii.gz', 'sub-01_ses-2'),
        ('p 1_T1w.mgz', 'p 1'),
        ('sub-01_space-MNI_T1w.nii', 'sub-01_space-MNI'),
        ('T1.mgz', 'T1'),
        ('_T1w.nii', '_T1w'),
        ('sub-01_ses-2_run-1_FLAIR.nii.gz', 'sub-01_ses-2_acq-FLAIR_run-1'),
        ('sub-01_acq-3d_T2w.nii', 'sub-01_acq-3dT2w'),
        ('p01_flair.nii', 'p01_flair'),
        ('sub-a+b_ses-1+2_FLAIR.nii', 'sub-a+b_ses-1+2_acq-FLAIR'),
    ],
)
def test_names(path, name):
    assert name_of(path) == name


def test_scans_of_one_name_are_told_apart(tmp_path):
    given = [tmp_path / x for x in ('a/mri/T1.mgz', 'b/mri/T1.mgz', 'c/T1.nii', 'd/other.nii')]
    names = [one.name for one in select([*given, given[0]], tmp_path / 'out').files]
    assert names == ['a', 'b', 'T1', 'other']  # the first two are FreeSurfer's
    given = [tmp_path / x for x in ('a/x/T1.mgz', 'b/x/T1.mgz', 'c/T1.nii')]
    names = [one.name for one in select(given, tmp_path / 'out').files]
    assert names[2] == 'c_T1' and [name[-6:] for name in names[:2]] == ['a_x_T1', 'b_x_T1']
    with pytest.raises(UserError, match='overwrite its results'):
        select([tmp_path / 'T1.nii', tmp_path / 'T1.mgz'], tmp_path / 'out')


def test_a_folder_is_searched_but_for_masks_and_results(tmp_path):
    for name in ('p1.nii.gz', 'p1_lesion.nii.gz', 'q_orphan_lesion.nii', 'out/p0/p0_map.nii.gz'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    assert [one.name for one in select([tmp_path], tmp_path / 'out').files] == ['p1']
    bids = tmp_path / 'bids' / 'sub-1' / 'anat' / 'sub-1_T1w.nii.gz'
    bids.parent.mkdir(parents=True)
    bids.write_bytes(b'x')
    [one] = select([tmp_path / 'bids'], tmp_path / 'out').files
    assert str(one.folder) == 'sub-1/anat' and one.name == 'sub-1'
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='found no scans'):
        select([tmp_path / 'empty'], tmp_path / 'out')
    with pytest.raises(UserError, match='--out: .* contains the scans in'):
        select([tmp_path / 'bids'], tmp_path / 'bids')


def test_each_scan_has_the_model_of_its_contrast(head, smoke_run, tmp_path):
    """A package with a second model, for bright lesions: the same weights, another threshold."""
    plain, other, both = (tmp_path / f'{name}.zip' for name in ('plain', 'other', 'both'))
    export.export(smoke_run, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(other, 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            if name == 'config.json':
                made = ldm.get_config('smoke,contrast=flair').to_dict()
                made['synthesis']['contrasts'] = ['t2w', 'flair']
                sections = {part: made[part] for part in ('wide', 'variants', 'synthesis')}
                content = json.dumps(json.loads(content) | sections)
            new.writestr(name, content)
    export.export(smoke_run, both, other=other)
    data, affine = head
    turned = np.where(data > 0, np.maximum(1200 - data, 1), 0).astype(np.float32)
    scans = [
        write(tmp_path / 'sub-1_T1w.nii.gz', head),
        write(tmp_path / 'sub-1_T2w.nii.gz', (turned, affine)),
    ]
    predict(scans, both, tmp_path / 'out')
    summaries = {}
    for path in (tmp_path / 'out').rglob('*_desc-anomaly_lesions.json'):
        summary = json.loads(path.read_text())['Summary']
        summaries[summary['contrast']] = summary
    assert summaries['t1w']['run'] == 'both.zip' and summaries['t1w']['name'] == 'sub-1'
    assert summaries['t2w']['run'] == 'both.zip (other contrasts)'
    assert not any('contrast' in line for line in summaries['t2w']['warnings'])
    folder = tmp_path / 'out' / 'sub-1' / 'anat'
    assert (folder / 'sub-1_acq-T2w_desc-healthy_T2w.nii.gz').is_file()
    found = fluidjax.load(both).detect(scans[1])
    assert found.contrast == 't2w' and not any('contrast' in line for line in found.warnings)
    predict(scans[1:], plain, tmp_path / 'alone')
    (path,) = (tmp_path / 'alone').rglob('*_desc-anomaly_lesions.json')
    (warning,) = (w for w in json.loads(path.read_text())['Summary']['warnings'] if 'contrast' in w)
    assert 'T1w' in warning
