"""Names of results that the file system takes, and an index beside other programs' files."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError
from fluidjax.detect.reliability import Rising
from fluidjax.predict import files, out_folder, page
from fluidjax.predict.on_scan import Predicted
from fluidjax.predict.reading import Scan
from fluidjax.predict.scans import ScanFile
from fluidjax.runs.thresholds import Certainty

SUMMARY = {
    'name': 'a',
    'page': 'a/a_desc-anomaly.html',
    'marked_ml': 1.0,
    'regions': 1,
    'largest_ml': 1.0,
    'threshold_rule': 'dice',
    'warnings': [],
}


def test_long_names_are_shortened_so_that_every_result_can_be_written(tmp_path):
    name = 'x' * 248
    short = files.short_names(ScanFile(Path(f'{name}.nii.gz'), name, Path(name)))
    assert short.folder == Path(short.name) and short.name.startswith('x' * 200)
    for ending in (*files.OPTIONAL, *files.FORMER, f'{files.TABLE}.json'):
        (tmp_path / f'{short.name}_{ending}').touch()
    bids = ScanFile(Path('x'), f'sub-{name}_ses-1', Path(f'sub-{name}', 'ses-1', 'anat'))
    (tmp_path / files.short_names(bids).folder).mkdir(parents=True)
    plain = ScanFile(Path('a.nii'), 'a', Path('a'))
    assert files.short_names(plain) == plain


def test_the_index_lists_scans_and_passes_over_files_of_others(tmp_path):
    for number, content in enumerate(('[1]', '{"Summary": 3}', '{}', '{"Summary": {"name": 1}}')):
        (tmp_path / f'{number}_{files.TABLE}.json').write_text(content)
    (tmp_path / f'5_{files.TABLE}.json').write_bytes(b'\xff\xfe')
    (tmp_path / f'a_{files.TABLE}.json').write_text(json.dumps({'Summary': SUMMARY}))
    index = out_folder.write_folder_index(tmp_path, []).read_text('utf-8')
    assert index.count('href="a/a_desc-anomaly.html"') == 1 and index.count('<tr>') == 2


def test_a_page_links_to_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b'M\xfcller')
    page.write_index(tmp_path / 'index.html', [{**SUMMARY, 'name': name, 'page': f'{name}.html'}])
    index = (tmp_path / 'index.html').read_text('utf-8')
    assert r'<a href="M%FCller.html">M\xfcller</a>' in index


@pytest.mark.parametrize(
    'name', ['README.md', 'index.html', 'p01_T1w.nii.gz', 'p01/T1.mgz', 'sub-1/anat/sub-1_mask.nii']
)
def test_a_folder_in_use_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f'holds files that .* not .*, as {name}; '):
        out_folder.check_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / 'notes.txt').touch()
    out_folder.check_folder(tmp_path)
    out_folder.describe_folder(tmp_path)
    out_folder.check_folder(tmp_path)


def test_a_folder_with_the_results_of_a_killed_run_is_taken(tmp_path):
    for start in ('p01/p01', '.p01.x0123456789ab.partial/content/p01'):
        (tmp_path / start).parent.mkdir(parents=True)
        for kind in (files.MAP, files.BRAIN_MASK, files.FUSED_MASK, 'desc-healthy_T2w'):
            (tmp_path / f'{start}_{kind}.nii.gz').touch()
    (tmp_path / 'p01' / 'again').symlink_to(tmp_path)
    out_folder.check_folder(tmp_path)


def test_results_of_another_scan_of_that_name_are_kept(tmp_path):
    scans = []
    for site in ('a', 'b'):
        path = tmp_path / site / 'sub-1_T1w.nii'
        path.parent.mkdir()
        path.write_bytes(site.encode())
        scans.append(ScanFile(path, 'sub-1', Path('sub-1', 'anat')))
    out = tmp_path / 'out'
    out_folder.refuse_another_scan(out, scans[0])
    table = out / 'sub-1' / 'anat' / f'sub-1_{files.TABLE}.json'
    table.parent.mkdir(parents=True)
    known = {'scan': str(scans[0].path), 'sha256': files.checksum(scans[0].path)}
    table.write_text(json.dumps({'Summary': known}))
    out_folder.refuse_another_scan(out, scans[0])
    with pytest.raises(UserError, match='holds the results of .* which has the same name'):
        out_folder.refuse_another_scan(out, scans[1])
    scans[1].path.write_bytes(b'a')  # the same scan elsewhere
    out_folder.refuse_another_scan(out, scans[1])
    scans[0].path.write_bytes(b'changed')
    out_folder.refuse_another_scan(out, scans[0])


def test_a_scan_that_cannot_be_read_stops_no_other(tmp_path):
    """It is named when it is read."""
    (tmp_path / 'a.nii').symlink_to(tmp_path / 'gone.nii')
    table = tmp_path / 'out' / 'a' / f'a_{files.TABLE}.json'
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps({'Summary': {'scan': 'b/a.nii', 'sha256': '0'}}))
    scan = ScanFile(tmp_path / 'a.nii', 'a', Path('a'))
    out_folder.refuse_another_scan(tmp_path / 'out', scan)


def written(folder, contrast='t1w', certainty=Certainty()) -> Path:
    """The results of a scan with one marked region, of which most is left out."""
    brain = np.zeros((12, 12, 12), bool)
    brain[2:10, 2:10, 2:10] = True
    found = np.where(brain, 0.1, 0.0).astype(np.float32)
    found[4:7, 4:7, 4:7] = 0.6
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    (folder / 'p1.nii').write_bytes(b'a scan')
    scan = Scan(
        ScanFile(folder / 'p1.nii', 'p1', Path('p1')),
        Volume(found, affine, 'p1.nii'),
        None,
        np.eye(4),
        1.0,
        (),
        'none',
        None,
        contrast,
    )
    predicted = Predicted(found, found, found, found, None, brain, found > 0.5, 1.0, 0.0)
    source = files.Source('run', 'ldm', 1, 'dice', 0.5, certainty=certainty)
    files.write_prediction(folder, scan, predicted, source)
    return folder / 'p1'


@pytest.mark.parametrize('confidence', [None, Rising((0.0, 1.0), (0.2, 0.8))])
def test_page_and_table_say_the_same_of_the_confidence(tmp_path, confidence):
    folder = written(tmp_path, certainty=Certainty(confidence=confidence))
    table = json.loads((folder / f'p1_{files.TABLE}.json').read_text())
    assert ('ranks' in table['confidence']['Description']) == (confidence is None)
    text = (folder / 'p1_desc-anomaly.html').read_text()
    assert html.escape(table['confidence']['Description']) in text


def test_a_counterpart_of_another_contrast_does_not_stay(tmp_path):
    for contrast in ('flair', 't1w'):
        folder = written(tmp_path, contrast)
    left = sorted(path.name for path in folder.glob('*desc-healthy*'))
    assert left == ['p1_desc-healthy_T1w.json', 'p1_desc-healthy_T1w.nii.gz']


def test_pairs_of_files_with_equal_headers_are_other_scans(tmp_path):
    scans = []
    for site in ('a', 'b'):
        path = tmp_path / site / 'p1.hdr'
        path.parent.mkdir()
        path.write_bytes(b'the same header')
        path.with_suffix('.img').write_bytes(site.encode())
        scans.append(path)
    assert files.checksum(scans[0]) != files.checksum(scans[1])
