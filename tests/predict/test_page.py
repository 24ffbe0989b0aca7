"""The page of one scan and the index of many, also in a browser without a network."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import re

import nibabel as nib
import numpy as np
import pytest
from browser import CHROMIUM, Browser

from fluidjax.detect import viewer
from fluidjax.detect.figures import Panel, subject_figure
from fluidjax.predict.page import thinned, write_index, write_scan_page
from fluidjax.predict.regions import columns, regions_of


@pytest.fixture(scope='module')
def panel(make_case):
    case = make_case('sub-<01>', centre=(5, 15, 12))
    found = np.abs(case.image - case.healthy)
    case = dataclasses.replace(case, lesion=None)
    return Panel('predicted', 'ldm', case, case.healthy, found, 0.1)


@pytest.fixture(scope='module')
def page(panel, tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'a b.html'
    mask = panel.anomaly_map >= 0.1
    regions = regions_of(mask, panel.anomaly_map, panel.subject.affine, np.eye(4), 0.1)
    assert len(regions) == 1
    write_scan_page(
        path,
        panel,
        mask,
        subject_figure(panel),
        regions,
        columns(None),
        {'file': '<scan>.nii'},
        ['too <little> overlap'],
        ['the map.nii.gz'],
    )
    return path


def test_the_page_holds_everything_and_loads_nothing(page):
    text = page.read_text()
    assert 'Research use; not for diagnosis' in text and text.count('data:image/png') == 1
    assert 'too &lt;little&gt; overlap' in text and 'sub-&lt;01&gt;' in text
    assert '<little>' not in text and 'sub-<01>' not in text
    assert 'href="the%20map.nii.gz"' in text and text.count('data-go=') == 1
    assert '> mask</label>' in text and 'true lesion' not in text
    assert not re.search(r'(?:src|href)\s*=\s*["\']?https?:', text)


def test_a_scan_without_marks_or_niivue(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, 'find_spec', lambda name: None)
    picture, none = subject_figure(panel), panel.anomaly_map > 9
    write_scan_page(tmp_path / 'a.html', panel, none, picture, [], columns(None), {}, [], [])
    text = (tmp_path / 'a.html').read_text()
    assert 'None: the map stays below' in text and 'viewer-canvas' not in text
    assert 'class="warnings"' not in text


def map_in_viewer(panel) -> nib.Nifti1Image:
    data = viewer.subject_data(panel, 0.5)
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(data['map'])))


def test_a_large_scan_is_thinned_where_it_lies(panel):
    assert thinned(panel) == (1, panel)
    step, small = thinned(panel, most=500)
    assert step > 1 and small.subject.image.shape < panel.subject.image.shape
    full, thin = (map_in_viewer(one) for one in (panel, small))
    peaks = [
        image.affine @ [*np.argwhere(image.get_fdata() >= 0.1).mean(0), 1] for image in (full, thin)
    ]
    np.testing.assert_allclose(*peaks, atol=4.0 * step)


def test_the_index_lists_scans_and_failures(tmp_path):
    scans = [
        {
            'name': 'ä & b',
            'page': 'ä b/ä b_desc-anomaly.html',
            'marked_ml': 12.34,
            'regions': 2,
            'largest_ml': 10.0,
            'threshold_rule': 'dice',
            'warnings': ['x < y'],
        },
        {
            'name': 'c',
            'page': 'c/c.html',
            'marked_ml': 0,
            'regions': 0,
            'largest_ml': 0.0,
            'threshold_rule': 'fpr_1',
            'warnings': [],
        },
    ]
    write_index(tmp_path / 'index.html', scans, ['d.nii: is <empty>; copy it'])
    text = (tmp_path / 'index.html').read_text()
    assert 'href="%C3%A4%20b/%C3%A4%20b_desc-anomaly.html">ä &amp; b</a>' in text
    assert '12.3' in text and 'x &lt; y' in text and 'is &lt;empty&gt;' in text
    write_index(tmp_path / 'index.html', scans)
    assert 'Not done' not in (tmp_path / 'index.html').read_text()


def test_in_a_browser_the_button_moves_the_viewer(page, tmp_path):
    if CHROMIUM is None:
        pytest.skip('no Chromium on this machine')
    browser = Browser(tmp_path)
    try:
        browser.open(page)
        browser.wait('document.getElementById("viewer").dataset.status === "ready"')
        place = 'document.getElementById("viewer-place").textContent'
        browser.run('dispatchEvent(new CustomEvent("fluidjax-go", {detail: [40, 48, 36]}))')
        before = browser.run(place)
        browser.run('document.querySelector("button[data-go]").click()')
        after = browser.run(place)
        places = [[float(v) for v in re.findall(r'-?\d+', text)[:3]] for text in (before, after)]
        np.testing.assert_allclose(places, [[40, 48, 36], [20, 60, 48]], atol=1.5)
        assert browser.problems == []
        assert all(url.startswith(('data:', 'blob:', 'file:')) for url in browser.requests)
    finally:
        browser.close()
