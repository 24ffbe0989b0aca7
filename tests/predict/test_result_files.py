"""Names of results that the file system takes, and an index beside other programs' files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fluidjax.base.errors import UserError
from fluidjax.predict import files, page
from fluidjax.predict.scans import ScanFile

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
    index = files.write_folder_index(tmp_path, []).read_text('utf-8')
    assert index.count('href="a/a_desc-anomaly.html"') == 1 and index.count('<tr>') == 2


def test_a_page_links_to_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b'M\xfcller')
    page.write_index(tmp_path / 'index.html', [{**SUMMARY, 'name': name, 'page': f'{name}.html'}])
    index = (tmp_path / 'index.html').read_text('utf-8')
    assert r'<a href="M%FCller.html">M\xfcller</a>' in index


@pytest.mark.parametrize('name', ['README.md', 'index.html', 'p01_T1w.nii.gz'])
def test_a_folder_in_use_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f'holds files that are not of fluidjax, as {name}'):
        files.check_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / 'notes.txt').touch()
    files.check_folder(tmp_path)
    files.describe_folder(tmp_path)
    files.check_folder(tmp_path)


def test_results_of_another_scan_of_that_name_are_kept(tmp_path):
    scans = []
    for site in ('a', 'b'):
        path = tmp_path / site / 'sub-1_T1w.nii'
        path.parent.mkdir()
        path.write_bytes(site.encode())
        scans.append(ScanFile(path, 'sub-1', Path('sub-1', 'anat')))
    out = tmp_path / 'out'
    files.refuse_another_scan(out, scans[0])
    table = out / 'sub-1' / 'anat' / f'sub-1_{files.TABLE}.json'
    table.parent.mkdir(parents=True)
    known = {'scan': str(scans[0].path), 'sha256': files.checksum(scans[0].path)}
    table.write_text(json.dumps({'Summary': known}))
    files.refuse_another_scan(out, scans[0])
    with pytest.raises(UserError, match='holds the results of .* which has the same name'):
        files.refuse_another_scan(out, scans[1])
    scans[1].path.write_bytes(b'a')  # the same scan elsewhere
    files.refuse_another_scan(out, scans[1])
    scans[0].path.write_bytes(b'changed')
    files.refuse_another_scan(out, scans[0])


def test_pairs_of_files_with_equal_headers_are_other_scans(tmp_path):
    scans = []
    for site in ('a', 'b'):
        path = tmp_path / site / 'p1.hdr'
        path.parent.mkdir()
        path.write_bytes(b'the same header')
        path.with_suffix('.img').write_bytes(site.encode())
        scans.append(path)
    assert files.checksum(scans[0]) != files.checksum(scans[1])
