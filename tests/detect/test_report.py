"""Pictures the right way round, and a report that holds everything and loads nothing."""

from __future__ import annotations

import dataclasses
import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fluidjax.detect import calibrate, evaluate, figures, slices
from fluidjax.detect.curves import curve_of
from fluidjax.detect.figures import Panel
from fluidjax.detect.histogram import Tally
from fluidjax.detect.report import HEADLINE, best_methods, write_report
from fluidjax.detect.scores import SCORES

SHAPE = (10, 14, 8)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)


def marked(place) -> np.ndarray:
    volume = np.zeros(SHAPE)
    volume[place] = 1.0
    return volume


# A marker at the right, front or top end of the brain, and where it must be seen.
@pytest.mark.parametrize(
    'plane, place, up, across',
    [
        (slices.AXIAL, (9, 2, 4), 'bottom', 'right'),
        (slices.AXIAL, (1, 12, 4), 'top', 'left'),
        (slices.CORONAL, (8, 7, 7), 'top', 'right'),
        (slices.CORONAL, (1, 7, 1), 'bottom', 'left'),
        (slices.SAGITTAL, (5, 13, 1), 'bottom', 'right'),
        (slices.SAGITTAL, (5, 1, 7), 'top', 'left'),
    ],
)
def test_a_marker_is_seen_where_it_is(plane, place, up, across):
    section = slices.cut(marked(place), plane, place)
    assert section.shape == (SHAPE[plane.up], SHAPE[plane.across])
    [[row, column]] = np.argwhere(section)
    assert (row >= section.shape[0] / 2) == (up == 'top')  # origin='lower': high rows are on top
    assert (column >= section.shape[1] / 2) == (across == 'right')


@pytest.mark.parametrize('plane', slices.PLANES)
def test_a_marker_is_drawn_where_it_is(plane):
    place = (8, 12, 6)  # right, front, top: the upper right corner of every plane
    figure = Figure(figsize=(3, 3), facecolor='black')
    axes = figure.add_axes((0, 0, 1, 1))
    view = slices.View(place, tuple(slice(0, n) for n in SHAPE), (1.0, 1.0, 1.0))
    figures.draw_plane(axes, marked(place), plane, view, cmap='gray', vmin=0, vmax=1)
    letters = {text.get_text(): text.get_position() for text in axes.texts}
    for text in list(axes.texts):
        text.remove()
    rows, columns = np.nonzero(pixels(figures.to_png(figure)).sum(axis=2) > 600)
    assert rows.size and rows.max() < 120 and columns.min() > 120  # 240 x 240 pixels
    assert letters[{'x': 'R', 'y': 'A'}['xy'[plane.across]]][0] > 0.9
    assert letters[{'y': 'A', 'z': 'S'}['xyz'[plane.up]]][1] > 0.9


def test_voxels_keep_their_proportions():
    spacing = (1.0, 2.0, 5.0)
    assert [slices.aspect(p, spacing) for p in slices.PLANES] == [2.0, 5.0, 2.5]
    np.testing.assert_allclose(slices.spacing_of(np.diag([1.0, -2.0, 5.0, 1.0])), spacing)


def test_the_planes_go_through_the_lesion_or_the_peak():
    brain, lesion = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)
    lesion[2:5, 3, 6] = True
    assert slices.centre_of(lesion, marked((9, 9, 1)), brain) == (3, 3, 6)
    two = lesion | (marked((9, 9, 1)) > 0)
    assert slices.centre_of(two, np.zeros(SHAPE), brain) == (3, 3, 6)
    assert slices.centre_of(None, marked((9, 9, 1)), brain) == (9, 9, 1)
    assert slices.centre_of(~brain, marked((9, 9, 1)) * np.nan, brain) == (4, 6, 4)
    assert slices.centre_of(None, np.zeros(SHAPE), ~brain) == (5, 7, 4)


def test_the_box_holds_the_region():
    region = np.zeros(SHAPE, bool)
    region[3:6, 1:13, 7] = True
    assert slices.box_around(region) == (slice(1, 8), slice(0, 14), slice(5, 8))
    assert slices.box_around(~region & region) == tuple(slice(0, n) for n in SHAPE)


def test_the_outline_runs_along_the_border_of_the_mask():
    axes = Figure().subplots()
    mask = marked((3, 5, 2)) + marked((4, 5, 2))
    view = slices.View((3, 5, 2), slices.box_around(mask), (1.0, 1.0, 1.0))
    figures.draw_outline(axes, mask, slices.AXIAL, view, 'red')
    [lines] = axes.collections
    edges = {tuple(map(tuple, np.sort(segment, axis=0))) for segment in lines.get_segments()}
    assert edges == {
        ((2.5, 4.5), (2.5, 5.5)),
        ((4.5, 4.5), (4.5, 5.5)),
        ((2.5, 4.5), (3.5, 4.5)),
        ((3.5, 4.5), (4.5, 4.5)),
        ((2.5, 5.5), (3.5, 5.5)),
        ((3.5, 5.5), (4.5, 5.5)),
    }


@pytest.fixture(scope='module')
def panels(make_case):
    case = make_case('sub-<01>')
    unknown = dataclasses.replace(make_case('sub-02'), lesion=None, healthy=None)
    residual = np.abs(case.image - case.healthy)
    strip = {'autoencoder': residual / 2, 'threshold': 1 - case.image}
    return [
        Panel('simulated & small', 'conddiff', case, case.healthy, residual, 0.1, strip),
        Panel('simulated & small', 'conddiff', unknown, None, residual * np.nan, None),
    ]


@pytest.fixture(scope='module')
def report(tmp_path_factory, panels):
    path = tmp_path_factory.mktemp('report') / 'report.html'
    rows, results, curves = [], {}, {}
    subjects, maps = [p.subject for p in panels], [p.anomaly_map for p in panels]
    for method, factor in (('conddiff', 1.0), ('mean brain', 0.5), ('threshold', 0.0)):
        scored = evaluate.score_method([m * factor for m in maps], None, subjects, 0.1, 0.5)
        core = {'mean': 0.5, 'ci_low': None, 'ci_high': None, 'n': 1234}  # voxels, not subjects
        results[method] = evaluate.summarise(scored, {'core_found': core})
        rows += [row | {'method': method, 'cohort': 'simulated & small'} for row in scored]
        tally = Tally()
        calibrate.count(tally, [m * factor for m in maps], subjects)
        curves[method] = curve_of(tally)
    write_report(
        path,
        'A <title>',
        {'a': {'rate': 1e-4}, 'grid': (40, 48, 40)},
        {'simulated & small': results},
        rows,
        panels,
        {'conddiff': 0.125, 'threshold': None},
        {'seed': '<7>'},
        curves={'simulated & small': curves},
        verdicts={'simulated & small': {'threshold': 'blank <', 'mean brain': ''}},
    )
    return path.read_text()


def test_the_report_holds_every_method_and_subject(report):
    for text in (
        'conddiff',
        'mean brain',
        'threshold',
        'autoencoder',
        'sub-&lt;01&gt;',
        'sub-02',
        'A &lt;title&gt;',
        '&lt;7&gt;',
        'simulated &amp; small',
        '0.12500',
        '&quot;rate&quot;: 0.0001',
    ):
        assert text in report, text
    for score in SCORES.values():
        assert score.label in report
    assert re.search(r'Subjects with a mask: 1\D', report)
    assert report.count('<img ') == 5  # bars, curves, two subjects, one strip
    for raw in ('A <title>', 'sub-<01>', '<7>', 'simulated & small', 'blank <'):
        assert raw not in report, raw


def test_the_report_loads_nothing(report):
    # A test in test_viewer.py watches a browser; here the page itself names no other place.
    text = re.sub(r'[A-Za-z0-9+/=]{200,}', '', report)
    assert not re.search(r'https?:|//[a-z]|@import|<link|<script[^>]* src|url\(|import\(', text)
    sources = re.findall(r'src="([^"]*)"', report)
    assert sources and all(s.startswith('data:image/png;base64,') for s in sources)
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', report)
    assert policy.startswith("default-src 'none';") and '*' not in policy
    assert policy.index(';') and report.index('Content-Security-Policy') < report.index('<style>')


def test_a_report_without_the_optional_parts(tmp_path):
    write_report(tmp_path / 'report.html', 'plain', {}, {'c': {'m': {}}}, [], [], {})
    text = (tmp_path / 'report.html').read_text()
    assert '<figcaption' not in text and 'class="verdict"' not in text and '<canvas' not in text
    assert text.count('<img ') == 1  # bars


def test_a_verdict_stands_beside_its_method(report):
    assert report.count('threshold<span class="verdict">blank &lt;</span>') == 2  # and folded
    assert report.count('class="verdict"') == 2


def test_few_scores_stand_open_and_the_rest_is_folded(report):
    open_part, folded = report.split('<details>')[:2]
    for name, score in SCORES.items():
        head = f'>{score.label}</th>'
        assert (head in open_part, head in folded) == (name in HEADLINE, name not in HEADLINE)


def test_the_best_of_a_column_is_bold(report):
    first = report.split('<tbody>')[2]
    row = r'<tr><td>([a-z ]+)(?:<span.*?</span>)?</td>(.*?)</tr>'
    rows = {m: r for m, r in re.findall(row, first, re.S)}
    assert rows['conddiff'].startswith('<td class="best">1.000')
    assert 'best">1.000' not in rows['threshold'].split('</td>')[0]


def test_best_methods():
    methods = {
        'a': {'ap': {'mean': 0.2}, 'fpr': {'mean': 0.2}, 'seconds': {'mean': 1.0}},
        'b': {'ap': {'mean': 0.3}, 'fpr': {'mean': 0.3}},
        'c': {'ap': {'mean': None}},
    }
    assert best_methods(methods, 'ap') == {'b'} and best_methods(methods, 'fpr') == {'a'}
    assert best_methods(methods, 'seconds') == set() and best_methods(methods, 'l1') == set()


def test_subject_figure_shows_the_lesion(panels):
    picture = pixels(figures.subject_figure(panels[0], scale=0.5))
    height, width = picture.shape[:2]
    truth = np.array([0x19, 0xC8, 0xFF])
    near = np.abs(picture - truth).sum(axis=2) < 60
    rows, columns = np.nonzero(near[: int(height * 0.93)])  # without the legend
    assert rows.size > 30 and columns.min() > width * 0.7  # in the last column alone
    unmarked = pixels(figures.subject_figure(panels[1]))
    assert not (np.abs(unmarked - truth).sum(axis=2) < 60)[: int(height * 0.93)].any()


def test_maps_of_all_subjects_share_a_scale(panels):
    louder = dataclasses.replace(panels[0], anomaly_map=panels[0].anomaly_map * 3)
    assert figures.map_scale([panels[0], louder]) == figures.map_scale([louder])
    assert figures.map_scale([panels[1]]) == 1.0  # nothing finite to scale by
    quiet, loud = (pixels(figures.subject_figure(p, scale=2.0)).sum() for p in (panels[0], louder))
    assert loud > quiet
