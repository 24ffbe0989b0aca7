"""The slice viewer: what it holds, and the whole report in a browser without a network."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re

import nibabel as nib
import numpy as np
import pytest
from browser import CHROMIUM, FLAGS, Browser

from fluidjax.detect import evaluate, viewer
from fluidjax.detect.curves import curve_of
from fluidjax.detect.figures import Panel
from fluidjax.detect.report import write_report

LESION_COLOUR = [25, 200, 255]  # figures.TRUTH_COLOUR


def nifti_of(data: dict, name: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(data[name])))


@pytest.fixture(scope='module')
def panel(make_case):
    case = make_case('sub-<01>', centre=(5, 15, 12))  # left, front, top of the brain
    affine = np.array([[3.8, 0.4, 0, -40], [-0.4, 3.9, 0, -50], [0, 0, 4.0, -30], [0, 0, 0, 1]])
    case = dataclasses.replace(case, affine=affine)
    return Panel('embedded', 'ldm', case, case.healthy, np.abs(case.image - case.healthy), 0.1)


def test_volumes_keep_their_place_in_the_world(panel):
    data = viewer.subject_data(panel, 0.5)
    lesion = nifti_of(data, 'lesion')
    assert lesion.shape < panel.subject.image.shape  # cropped to the brain
    for volume, affine in (
        (lesion.get_fdata(), lesion.affine),
        (panel.subject.lesion, panel.subject.affine),
    ):
        centre = affine @ [*np.argwhere(volume).mean(axis=0), 1]
        np.testing.assert_allclose(centre[:3], [-15, 6.5, 18], atol=3)
    np.testing.assert_allclose(
        lesion.affine @ [*np.argwhere(lesion.get_fdata()).mean(axis=0), 1],
        panel.subject.affine @ [*np.argwhere(panel.subject.lesion).mean(axis=0), 1],
        atol=1e-4,
    )


def test_volumes_keep_their_values(panel):
    data = viewer.subject_data(panel, 0.5)
    found = nifti_of(data, 'map').get_fdata()
    assert found.max() == pytest.approx(panel.anomaly_map.max(), abs=data['step'])
    scan = nifti_of(data, 'scan').get_fdata()
    assert scan.max() == pytest.approx(panel.subject.image.max(), abs=1 / 255)


@pytest.mark.parametrize('threshold', [0.013, 0.1, 0.37, 0.9])
def test_the_threshold_marks_the_same_voxels_in_8_bits(threshold):
    rng = np.random.default_rng(0)
    volume = rng.gamma(1.0, 0.1, (20, 20, 20)).astype(np.float32)
    volume[0, 0, 0] = threshold = np.float32(threshold)  # a threshold is a voxel's value
    step, level = viewer.map_step(0.5, float(threshold))
    np.testing.assert_array_equal(viewer.quantised(volume, step) >= level, volume >= threshold)
    assert 1 <= level < viewer.LEVELS


def test_a_map_without_a_threshold_or_a_number_is_shown_all_the_same(panel):
    for threshold in (None, float('nan'), 0.0, -1.0):
        assert viewer.map_step(0.5, threshold) == (0.5 / 255, 127)
    empty = dataclasses.replace(
        panel,
        anomaly_map=panel.anomaly_map * np.nan,
        counterpart=None,
        subject=dataclasses.replace(panel.subject, lesion=None),
    )
    data = viewer.subject_data(empty, 1.0)
    assert 'counterpart' not in data and 'lesion' not in data
    assert not nifti_of(data, 'map').get_fdata().any()


def test_one_copy_of_the_viewer_and_as_many_subjects_as_fit(panel):
    page = viewer.viewer_html([panel] * 3)
    assert page.count('id="viewer-code"') == 1 and page.count('<option') == 3
    assert 'sub-&lt;01&gt;' in page and 'sub-<01>' not in page
    one = viewer.viewer_html([panel] * 3, limit=1)
    assert one.count('<option') == 1 and '2 more subjects' in one
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', one, re.S)[1])
    assert len(data) == 1 and data[0]['top'] == pytest.approx(data[0]['step'] * 255)
    assert viewer.viewer_html([]) == ''


def test_without_niivue_the_page_has_its_pictures_alone(panel, monkeypatch):
    assert len(viewer.niivue_code()) > 1e6  # setup.cfg's nilearn carries it
    monkeypatch.setattr(viewer, 'find_spec', lambda name: None)
    assert viewer.viewer_html([panel]) == ''


@pytest.fixture(scope='module')
def report(tmp_path_factory, panel, tally_of):
    path = tmp_path_factory.mktemp('report') / 'report.html'
    other = dataclasses.replace(
        panel,
        subject=dataclasses.replace(panel.subject, name='sub-02', lesion=None),
        counterpart=None,
        threshold=None,
    )
    maps = {
        'ldm': panel.anomaly_map,
        'blank': panel.anomaly_map * 0,
        'half': np.where(panel.subject.lesion, panel.anomaly_map, panel.subject.image),
    }
    scores, curves = {}, {}
    for method, one in maps.items():
        scores[method] = evaluate.summarise(
            evaluate.score_method([one], None, [panel.subject], 0.1, 0.5)
        )
        curves[method] = curve_of(tally_of([one], [panel.subject.lesion], [panel.subject.brain]))
    scores['undefined'] = {}
    write_report(
        path,
        'title',
        {'a': 1},
        {'embedded': scores},
        [],
        [panel, other],
        {'ldm': 0.1},
        curves={'embedded': curves},
        verdicts={'embedded': {'blank': 'blank'}},
    )
    return path


@pytest.fixture(scope='module')
def browser(tmp_path_factory, report):
    if CHROMIUM is None:
        pytest.skip('no Chromium on this machine')
    browser = Browser(tmp_path_factory.mktemp('profile'))
    try:
        browser.open(report)
        yield browser
    finally:
        browser.close()


def ready(browser):
    browser.wait('document.getElementById("viewer").dataset.status === "ready"')


def near(picture: np.ndarray, colour) -> np.ndarray:
    return np.abs(picture - np.array(colour)).sum(axis=2) < 70


def set_value(browser, name: str, value) -> None:
    browser.run(
        f'(() => {{ const e = document.getElementById("viewer-{name}"); '
        f'e.{"checked" if isinstance(value, bool) else "value"} = {json.dumps(value)}; '
        'e.dispatchEvent(new Event("input")); e.dispatchEvent(new Event("change")) })()'
    )


def test_a_click_on_a_header_sorts(browser):
    column = '[...document.querySelectorAll("h2 ~ .scroll table")][0].tBodies[0].rows'
    names = f'[...{column}].map(row => row.cells[0].firstChild.textContent)'
    click = '[...document.querySelectorAll("th[data-better]")].find(e => e.textContent === "AP")'
    start = browser.run(names)
    assert start == ['ldm', 'blank', 'half', 'undefined']
    orders = []
    for _ in range(3):
        browser.run(f'{click}.click()')
        orders.append(browser.run(names))
    assert orders[0][0] == 'ldm' and orders[1][2] == 'ldm'  # best first, then last
    assert orders[0][3] == orders[1][3] == 'undefined'  # dashes last either way
    assert orders[0][:3] == orders[1][:3][::-1] and orders[2] == start


def test_the_slices_are_drawn_the_right_way_round(browser):
    ready(browser)
    picture = browser.picture('#viewer-canvas')
    height, width = picture.shape[:2]
    grey = (np.ptp(picture, axis=2) < 12) & (picture.sum(axis=2) > 200)
    assert grey.mean() > 0.1
    outline = near(picture, LESION_COLOUR)
    assert outline.sum() > 60
    rows, columns = np.nonzero(grey)
    gaps = np.flatnonzero(np.diff(np.unique(columns)) > 8)
    assert gaps.size >= 2  # three planes beside each other
    places = np.unique(columns)
    axial = columns <= places[gaps[0]]
    lesion_rows, lesion_columns = np.nonzero(outline[:, : places[gaps[0]] + 1])
    assert lesion_columns.mean() < columns[axial].mean()  # left
    assert lesion_rows.mean() < rows[axial].mean()  # front


def test_the_wheel_scrolls_and_a_click_moves(browser):
    def place():
        text = browser.run('document.getElementById("viewer-place").textContent')
        return np.array(re.match(r'x y z: (-?\d+) (-?\d+) (-?\d+) mm', text).groups(), int)

    ready(browser)
    browser.run('document.getElementById("viewer").scrollIntoView()')
    x, y, width = browser.run(
        '(() => { const r = document.getElementById("viewer-canvas").getBoundingClientRect(); '
        'return [r.x, r.y, r.width] })()'
    )
    where = {'x': x + 0.2 * width, 'y': y + 150}
    start = place()
    for kind in ('mousePressed', 'mouseReleased'):  # to the middle of the axial plane
        browser.call('Input.dispatchMouseEvent', type=kind, button='left', clickCount=1, **where)
    clicked = place()
    assert clicked[0] > start[0] and clicked[2] == start[2]
    browser.call('Input.dispatchMouseEvent', type='mouseWheel', deltaX=0, deltaY=-100, **where)
    browser.wait(
        f'!document.getElementById("viewer-place").textContent.includes(" {clicked[2]} mm")', 5
    )
    moved = np.abs(place() - clicked)
    assert moved[2] >= 3 and moved[:2].max() < 3  # it steps to a voxel's centre


def test_the_controls_change_what_is_drawn(browser):
    def slices():
        picture = browser.picture('#viewer-canvas')
        return picture[: int(0.84 * len(picture))]  # without the bar of the map's colours

    def hot(picture):
        return int((picture[..., 0] - picture[..., 2] > 80).sum())

    ready(browser)
    start = slices()
    assert hot(start) > 50
    set_value(browser, 'threshold', 255)
    assert hot(slices()) < hot(start) / 5
    set_value(browser, 'threshold', 10)
    assert hot(slices()) > hot(start) / 2
    set_value(browser, 'opacity', 0)
    assert hot(slices()) < hot(start) / 5
    set_value(browser, 'lesion', False)
    scan = slices()
    assert near(scan, LESION_COLOUR).sum() < 20 < near(start, LESION_COLOUR).sum()
    set_value(browser, 'counterpart', True)
    assert np.abs(slices() - scan).sum(axis=2).max() > 100
    set_value(browser, 'subject', '1')  # no counterpart, no lesion, no threshold
    ready(browser)
    assert browser.run('document.getElementById("viewer-counterpart").disabled')
    assert slices().sum() > 0


def test_nothing_is_loaded_and_nothing_goes_wrong(browser, report):
    ready(browser)
    assert browser.problems == []
    assert browser.requests and all(
        url.startswith(('data:', 'blob:')) or url == report.as_uri()[:80]
        for url in browser.requests
    ), browser.requests


def test_without_webgl_the_pictures_are_there(tmp_path, report):
    if CHROMIUM is None:
        pytest.skip('no Chromium on this machine')
    browser = Browser(tmp_path, (*FLAGS, '--disable-3d-apis'))
    try:
        browser.open(report)
        assert browser.run('document.getElementById("viewer").hidden')
        assert browser.run('document.getElementById("viewer-note").textContent').startswith(
            'The slice viewer needs'
        )
        assert browser.run('[...document.images].every(i => i.complete && i.naturalWidth > 0)')
        assert browser.problems == []
    finally:
        browser.close()
