"""Pairs of healthy and pseudo-diseased scans: files, their geometry, replay, and mistakes."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data_pipelines import brain_extraction
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError
from fluidjax.fluid import FluidSettings
from fluidjax.randomize import healthy, pairs, pictures, records

# A smooth flow, which is traced on a coarse mesh.
SETTINGS = FluidSettings(
    diseased_probability=1.0, lesion_count=(1, 2), border_mm=40.0, perlin_periods=(1, 1, 1)
)


def write_brain(path, axcodes='LAS', dtype=np.int16, spacing=(6.5, 7.0, 7.5)):
    """A bright ellipsoid with a dark middle, off-centre, in a file with axes of its own."""
    shape = (26, 28, 24)
    x = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing='ij'))
    brain = (x**2).sum(0) < 0.7
    data = np.where(brain, 400 + 300 * np.sin(4 * x[0]) * np.cos(3 * x[1] + 1), 0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-90, -120, -100)
    image = nib.Nifti1Image(data.astype(dtype), affine)
    image.header['descrip'] = b'scanner 7'
    image.header.set_xyzt_units('mm', 'sec')
    turned = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turned), path)
    return path


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    """A folder of two lesion masks in MNI space."""
    folder = tmp_path_factory.mktemp('masks')
    mask = np.zeros((40, 44, 40), np.uint8)
    mask[10:14, 20:26, 15:22] = 1
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-78, -103, -73)
    for name in ('a', 'b'):
        nib.save(nib.Nifti1Image(mask, affine), folder / f'{name}.nii.gz')
        mask = mask[::-1]
    return folder


@pytest.fixture(scope='module')
def short_animations():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, '_FRAMES', 3)
        yield


@pytest.fixture(scope='module')
def written(masks, short_animations, tmp_path_factory):
    """Two pairs of two scans with a bank of two masks: the folder, and the scans."""
    folder = tmp_path_factory.mktemp('randomize')
    scans = [
        write_brain(folder / 'scans' / 'one.nii.gz'),
        write_brain(folder / 'scans' / 'zwei ü.nii', 'PSR', np.float32),
    ]
    pairs.make(request(*scans, masks=masks, num_pairs=2, seed=5), folder / 'out')
    return folder, scans


def request(*scans, masks, num_pairs=1, **others):
    return pairs.Request(tuple(map(str, scans)), SETTINGS, num_pairs, lesions=str(masks), **others)


def test_it_writes_what_it_says(written):
    folder, _ = written
    assert {p.name for p in (folder / 'out').iterdir()} == {
        'draws.json',
        'distribution.png',
        'one',
        'zwei ü',
    }
    volumes = {
        f'{i:03d}_{kind}.nii.gz' for i in (1, 2) for kind in ('diseased', 'mask', 'probability')
    } | {'healthy.nii.gz'}
    assert {p.name for p in (folder / 'out' / 'one').iterdir()} == volumes | {
        'contact_sheet.png',
        'flow.gif',
    }
    with Image.open(folder / 'out' / 'one' / 'flow.gif') as animation:
        assert animation.n_frames == 3
        first = np.asarray(animation.convert('RGB'), float)
        animation.seek(animation.n_frames - 1)
        assert np.abs(np.asarray(animation.convert('RGB'), float) - first).max() > 50
    record = json.loads((folder / 'out' / 'draws.json').read_text())
    assert record['settings']['lesion_count'] == [1, 2] and len(record['lesions']['files']) == 2
    drawn = [pair for scan in record['scans'] for pair in scan['pairs']]
    assert len(drawn) == 4 and {len(pair['draw']['seeds']) for pair in drawn} == {1, 2}
    assert len({pair['draw']['time'] for pair in drawn}) == 4
    assert any(pair['realised']['from_bank'] for pair in drawn)


def test_volumes_lie_on_the_scan_and_differ_from_it_in_the_lesion_alone(written):
    folder, scans = written
    for path, name in zip(scans, ('one', 'zwei ü')):
        scan = nib.load(path)
        for number in (1, 2):
            load = lambda kind, n=number: nib.load(folder / 'out' / name / f'{n:03d}_{kind}.nii.gz')
            diseased, mask, P = load('diseased'), load('mask'), load('probability')
            for image in (diseased, mask, P):
                np.testing.assert_array_equal(image.affine, scan.affine)
                assert image.shape == scan.shape
                assert image.header['descrip'] == scan.header['descrip']
                assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(scan.affine)
            lesion, weight = mask.get_fdata() > 0, P.get_fdata()
            assert lesion.any() and weight.min() >= 0 and weight.max() <= 1
            assert not weight[scan.get_fdata() <= 0].any()
            change = diseased.get_fdata() - scan.get_fdata()
            assert change[lesion].mean() < -50  # the paper's law: darker
            assert not change[weight == 0].any()
        copy = nib.load(folder / 'out' / name / 'healthy.nii.gz')
        np.testing.assert_array_equal(copy.get_fdata(), scan.get_fdata())


def test_the_json_gives_the_same_files_again(written):
    folder, _ = written
    pairs.replay(folder / 'out' / 'draws.json', folder / 'again')
    for path in sorted((folder / 'out').rglob('*')):
        if path.is_file():
            again = folder / 'again' / path.relative_to(folder / 'out')
            assert again.read_bytes() == path.read_bytes(), path.name


def test_an_edited_draw_is_followed(written, tmp_path):
    folder, _ = written
    record = json.loads((folder / 'out' / 'draws.json').read_text())
    record['scans'] = record['scans'][:1]
    record['scans'][0]['pairs'] = record['scans'][0]['pairs'][:1]
    record['scans'][0]['pairs'][0]['draw'] |= {'diseased': False}
    edited = tmp_path / 'edited.json'
    edited.write_text(json.dumps(record))
    pairs.replay(edited, tmp_path / 'out')
    assert not nib.load(tmp_path / 'out' / 'one' / '001_mask.nii.gz').get_fdata().any()


def test_an_older_record_is_replayed_where_it_gives_the_same_files(written, tmp_path):
    """In format 1 the strength of a lesion did not multiply its spread."""
    record = json.loads((written[0] / 'out' / 'draws.json').read_text()) | {'format': 1}
    older = tmp_path / 'older.json'
    older.write_text(json.dumps(record))
    assert records.load(older)[1] == SETTINGS
    record['scans'][1]['pairs'][0]['draw']['strength'] = 0.5
    older.write_text(json.dumps(record))
    with pytest.raises(UserError, match='format 1'):
        records.load(older)


def test_many_draws_without_volumes_give_their_distribution(written, masks, tmp_path):
    many = request(written[1][0], masks=masks, num_pairs=4, seed=1)
    page = pairs.make(many, tmp_path / 'out', volumes=False)
    assert not list((tmp_path / 'out').rglob('*.nii.gz'))
    assert (tmp_path / 'out' / 'distribution.png').stat().st_size > 5000
    drawn = json.loads(page.read_text())['scans'][0]['pairs']
    volumes = [pair['realised']['volume_ml'] for pair in drawn]
    assert len(set(volumes)) == 4 and min(volumes) > 0


def test_scans_of_one_name_get_folders_that_tell_them_apart():
    scans = [f'/study/{who}/T1w.nii.gz' for who in ('anna', 'ben')]
    assert list(pairs._names(scans).values()) == ['anna_T1w', 'ben_T1w']
    with pytest.raises(UserError, match='rename one'):
        pairs._names(['/study/x.nii', '/study/x.nii.gz'])


def test_a_broken_mask_is_left_out_and_named(masks, tmp_path, capsys):
    folder = tmp_path / 'masks'
    folder.mkdir()
    (folder / 'broken.nii').write_bytes(b'no')
    (folder / 'good.nii.gz').write_bytes((masks / 'a.nii.gz').read_bytes())
    assert len(healthy.MaskFiles(str(folder))) == 1
    assert 'broken.nii' in capsys.readouterr().err
    (folder / 'good.nii.gz').unlink()
    with pytest.raises(UserError, match='no mask in'):
        healthy.MaskFiles(str(folder))


def test_a_scan_that_fails_does_not_stop_the_others(written, masks, tmp_path):
    broken = tmp_path / 'broken.nii.gz'
    broken.write_bytes(b'not a scan')
    with pytest.raises(UserError, match='1 of 2 scans failed: .*broken.nii.gz'):
        pairs.make(request(broken, written[1][0], masks=masks), tmp_path / 'out')
    assert (tmp_path / 'out' / 'one' / '001_mask.nii.gz').is_file()
    assert len(json.loads((tmp_path / 'out' / 'draws.json').read_text())['scans']) == 1


def _save(folder, name, data, affine=None):
    nib.save(
        nib.Nifti1Image(data, np.diag([5.0, 6, 7, 1]) if affine is None else affine), folder / name
    )
    return str(folder / name)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('nan', 'NaN or infinite'),
        ('huge', '32-bit numbers'),
        ('4d', 'single 3-D volume'),
        ('flat', 'constant or darker'),
        ('singular', 'singular'),
        ('missing', 'no such file'),
    ],
)
def test_a_scan_that_cannot_be_used_is_one_line(tmp_path, kind, message):
    data = np.zeros((12, 12, 12))
    data[3:9, 3:9, 3:9] = 5
    if kind == 'nan':
        data[4, 4, 4] = np.nan
    if kind == 'huge':
        data[4, 4, 4] = 1e300
    if kind == '4d':
        data = np.stack([data, data], -1)
    if kind == 'flat':
        data[...] = 5
    path = str(tmp_path / 'x.nii') if kind == 'missing' else _save(tmp_path, 'x.nii', data)
    if kind == 'singular':  # a voxel size of zero; nibabel itself would not write it
        header = nib.load(path).header.copy()
        header['srow_y'] = 0
        header.set_data_dtype(np.float32)
        (tmp_path / 'x.nii').write_bytes(
            header.binaryblock + bytes(4) + data.astype(np.float32).tobytes()
        )
    with pytest.raises(UserError, match=message) as caught:
        pairs.make(pairs.Request((path,), SETTINGS, 1), tmp_path / 'out')
    assert 'x.nii' in str(caught.value) and '\n' not in str(caught.value)
    assert not list((tmp_path / 'out').rglob('*.nii.gz'))


def test_masks_that_cannot_be_used_are_named(tmp_path, capsys):
    _save(tmp_path, 'good.nii', np.ones((4, 4, 4), np.uint8), np.eye(4))
    for name in ('empty.nii', 'x.nrrd', 'p_desc-anomaly_mask.nii'):
        (tmp_path / name).write_bytes(b'')
    assert len(healthy.MaskFiles(str(tmp_path))) == 1
    told = capsys.readouterr().err
    assert '1 of 4 image files are used' in told and 'not used (is an empty file' in told
    assert 'x.nrrd' in told and 'not used (a result of fluidjax)' in told


def test_a_brain_mask_must_lie_on_the_scan(written, masks, tmp_path):
    scan = str(written[1][0])
    image = nib.load(scan)
    small = np.zeros(image.shape, np.uint8)
    small[6:24, 8:26, 5:20] = 1
    with pytest.raises(UserError, match='mask of shape .* lies elsewhere'):
        healthy.load_healthy(scan, _save(tmp_path, 'b.nii', small, np.diag([5, 6, 7, 1])))
    good = _save(tmp_path, 'c.nii', small, image.affine)
    loaded = healthy.load_healthy(scan, good)
    assert loaded.whole(loaded.brain).sum() == small.sum()
    pairs.make(request(scan, masks=masks, brain=good), tmp_path / 'out')
    mask = nib.load(tmp_path / 'out' / 'one' / '001_mask.nii.gz').get_fdata() > 0
    assert mask.any() and not mask[small == 0].any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda r: r.pop('settings'), 'is not a draws.json'),
        (lambda r: r.update(format=99), 'format 99'),
        (lambda r: r['scans'][0].update(sha256='0'), 'has changed'),
        (lambda r: r['scans'][0].update(path='/nowhere/x.nii'), 'no such file'),
        (lambda r: r['scans'][0]['pairs'][0]['draw'].pop('time'), "'time' is unknown or missing"),
        (lambda r: r['scans'][0]['pairs'][0]['draw'].update(time='late'), 'not a draw'),
        (lambda r: r['scans'][0]['pairs'][0]['draw'].update(time=float('nan')), 'not finite'),
        (lambda r: r['scans'][0]['pairs'][0]['draw'].update(seeds=[], count=0), '0 seeds'),
        (lambda r: r['scans'][0]['pairs'][0]['draw'].update(count=9), 'count is 9'),
        (lambda r: r['scans'][0]['pairs'][0]['draw'].update(diseased='no'), 'true or false'),
        (lambda r: r['scans'][0]['pairs'][0]['draw'].update(key_flow=[1, 2, 3]), 'key_flow'),
        (
            lambda r: r['scans'][0]['pairs'][0]['draw']['seeds'][0].update(
                from_bank=True, bank_index=99
            ),
            'bank_index 99',
        ),
        (lambda r: r.pop('seed'), 'is not a draws.json'),
        (lambda r: r['settings'].update(threshold=7), 'threshold'),
    ],
)
def test_a_damaged_json_is_one_line(written, tmp_path, change, message):
    record = json.loads((written[0] / 'out' / 'draws.json').read_text())
    change(record)
    path = tmp_path / 'draws.json'
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        pairs.replay(path, tmp_path / 'out')


def test_what_is_there_is_not_overwritten(written):
    folder, scans = written
    with pytest.raises(UserError, match='holds files already'):
        pairs.make(pairs.Request((str(scans[0]),), SETTINGS, 1), folder / 'out')


def test_a_record_of_a_draw_is_the_draw():
    import jax

    from fluidjax.fluid import draw_pair

    draw = draw_pair(jax.random.key(3), SETTINGS, 4)
    again = records.from_record(json.loads(json.dumps(records.to_record(draw))), SETTINGS, 'here')
    used = int(draw.count)
    for name in draw._fields:
        if name != 'seeds' and not name.startswith('key'):
            np.testing.assert_array_equal(getattr(draw, name), getattr(again, name), name)
    for name in draw.seeds._fields:
        a, b = getattr(draw.seeds, name)[:used], getattr(again.seeds, name)[:used]
        np.testing.assert_array_equal(
            *(jax.random.key_data(v) if name == 'key' else v for v in (a, b)), name
        )


def test_the_brain_of_a_whole_head_is_found_as_in_predict(monkeypatch):
    """Lesions are painted in what brain extraction finds, not in scalp and skull."""
    head = np.random.default_rng(0).uniform(1, 100, (20, 24, 20)).astype(np.float32)
    found = np.zeros(head.shape, bool)
    found[5:15, 6:18, 5:15] = True
    monkeypatch.setattr(
        brain_extraction, 'extract', lambda *_: brain_extraction.Extraction(found, 'atlas', True)
    )
    loaded = healthy.healthy_from(Volume(head, np.diag([8.0, 8, 8, 1]), 'head.nii'))
    np.testing.assert_array_equal(loaded.whole(loaded.brain), found)
    assert not loaded.whole(loaded.image)[~found].any()
