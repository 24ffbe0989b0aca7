"""The slice viewer: what it holds, and the whole report in a browser without a network."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fluidjax.detect import evaluate, viewer
from fluidjax.detect.curves import curves_of
from fluidjax.detect.figures import Panel
from fluidjax.detect.report import write_report

CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
        ),
    ),
    None,
)
FLAGS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-dev-shm-usage',
    '--disable-gpu-sandbox',
    '--use-angle=swiftshader',
    '--enable-unsafe-swiftshader',
    '--window-size=1280,900',
    '--host-resolver-rules=MAP * ~NOTFOUND',
    '--no-first-run',
    '--disable-extensions',
    '--disable-background-networking',
    '--disable-component-update',
    '--mute-audio',
    '--hide-scrollbars',
)
# The protocol's pipes must be the file descriptors 3 and 4.
LAUNCH = (
    'import fcntl, os, sys; '
    'r, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]); '
    'os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])'
)


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


class Browser:
    """A headless Chromium, spoken to by its debugging protocol over pipes."""

    def __init__(self, profile, flags=FLAGS):
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()
        os.set_blocking(self._in, True)
        self._process = subprocess.Popen(
            [
                sys.executable,
                '-c',
                LAUNCH,
                str(from_us),
                str(to_us),
                CHROMIUM,
                *flags,
                f'--user-data-dir={profile}',
                '--remote-debugging-pipe',
            ],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._buffer, self._number, self._session = b'', 0, None
        self.problems, self.requests = [], []

    def call(self, method: str, **params):
        """The result of one command; events that come before it are noted."""
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': params}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == self._number:
                assert 'error' not in answer, answer
                return answer['result']
            self._note(answer.get('method'), answer.get('params', {}))

    def _receive(self) -> dict:
        while b'\0' not in self._buffer:
            piece = os.read(self._in, 1 << 20)
            assert piece, 'the browser has ended'
            self._buffer += piece
        message, self._buffer = self._buffer.split(b'\0', 1)
        return json.loads(message)

    def _note(self, event, params):
        if event == 'Runtime.exceptionThrown':
            self.problems.append(params['exceptionDetails'])
        elif event == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'assert'):
            self.problems.append(params['args'])
        elif event == 'Log.entryAdded' and params['entry']['level'] == 'error':
            self.problems.append(params['entry'])
        elif event == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'][:80])

    def open(self, path):
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)[
            'sessionId'
        ]
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')
        self.call('Page.navigate', url=path.as_uri())
        self.wait('document.readyState === "complete"')

    def run(self, script: str):
        """The value of an expression in the page."""
        answer = self.call(
            'Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def wait(self, condition: str, seconds: float = 25.0):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, (condition, self.problems)
            time.sleep(0.1)

    def picture(self, element: str) -> np.ndarray:
        """RGB pixels of an element."""
        self.run(f'document.querySelector("{element}").scrollIntoView()')
        clip = self.run(
            f'(() => {{ const r = document.querySelector("{element}")'
            '.getBoundingClientRect(); return {x: r.x + scrollX, y: r.y + scrollY, '
            'width: r.width, height: r.height, scale: 1} })()'
        )
        data = self.call('Page.captureScreenshot', clip=clip, captureBeyondViewport=True)['data']
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB')).astype(int)

    def close(self):
        self._session = None
        self._process.terminate()
        self._process.wait(10)
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope='module')
def report(tmp_path_factory, panel):
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
        curves[method] = curves_of([one], [panel.subject.lesion], [panel.subject.brain])
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
    outline = near(picture, viewer.CYAN)
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
    assert near(scan, viewer.CYAN).sum() < 20 < near(start, viewer.CYAN).sum()
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
