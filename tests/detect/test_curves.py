"""Curves against scikit-learn's and the scores of metrics.py."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from fluidjax.detect import figures, metrics
from fluidjax.detect.curves import curve_of


@pytest.fixture(scope='module')
def subjects():
    rng = np.random.default_rng(0)
    truths = [rng.random((12, 12, 12)) < 0.05 for _ in range(3)]
    maps = [(rng.gamma(1.0, 1.0, t.shape) + 1.5 * t).astype(np.float32) for t in truths]
    regions = [rng.random(t.shape) < 0.8 for t in truths]
    return maps, truths, regions


def pooled(volumes, regions):
    return np.concatenate([v[r] for v, r in zip(volumes, regions)])


@pytest.fixture(scope='module')
def tally(subjects, tally_of):
    return tally_of(*subjects)


def test_every_point_is_exact(subjects, tally):
    maps, truths, regions = subjects
    curve = curve_of(tally, points=50)
    scores, truth = pooled(maps, regions), pooled(truths, regions)
    assert {len(values) for values in curve.values()} <= set(range(40, 51))
    for i, threshold in enumerate(curve['threshold']):
        found = scores >= np.float32(threshold)
        assert curve['marked'][i] == pytest.approx(found.mean(), rel=1e-5)
        assert curve['precision'][i] == pytest.approx(truth[found].mean(), rel=1e-5)
        assert curve['recall'][i] == pytest.approx(found[truth].mean(), rel=1e-5)
        assert curve['fpr'][i] == pytest.approx(found[~truth].mean(), rel=1e-5)
        assert curve['dice'][i] == pytest.approx(
            metrics.dice_at(scores, truth, np.float32(threshold)), rel=1e-5
        )


def test_all_points_lie_on_the_curves_of_scikit_learn(subjects, tally):
    maps, truths, regions = subjects
    curve = curve_of(tally, points=10**6)
    scores, truth = pooled(maps, regions), pooled(truths, regions)
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    reached = np.searchsorted(thresholds, np.float32(curve['threshold']))
    np.testing.assert_allclose(curve['precision'], precision[reached], rtol=1e-5)
    np.testing.assert_allclose(curve['recall'], recall[reached], rtol=1e-5)
    fpr, recall, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert np.interp(curve['fpr'], fpr, recall) == pytest.approx(curve['recall'], abs=0.02)
    assert auc(curve['fpr'], curve['recall']) == pytest.approx(auc(fpr, recall), abs=1e-3)


def test_few_points_keep_the_shape(tally):
    few, all_points = curve_of(tally), curve_of(tally, points=10**6)
    assert len(few['recall']) <= 200 < len(all_points['recall'])
    for name in few:
        assert few[name][0] == all_points[name][0] and few[name][-1] == all_points[name][-1]
    assert np.diff(few['threshold']).max() < 0 and np.diff(few['recall']).max() < 0.03
    assert max(few['dice']) == pytest.approx(max(all_points['dice']), abs=0.01)


def test_ties_fall_together(tally_of):
    curve = curve_of(tally_of([np.array([1.0, 1, 0, 0])], [np.array([True, False, False, True])]))
    assert curve['threshold'] == [1.0, 0.0]
    assert curve['precision'] == [0.5, 0.5] and curve['recall'] == [0.5, 1.0]


def test_healthy_subjects_lower_the_precision(subjects, tally_of):
    [one, two, _], [truth, _, _], _ = subjects
    assert curve_of(tally_of([one], [truth & False])) == {} == curve_of(tally_of([], []))
    with_healthy = curve_of(tally_of([one, two], [truth, truth & False]))
    assert with_healthy['precision'][-1] == pytest.approx(truth.mean() / 2)


def test_the_curves_are_drawn(tally):
    curve = curve_of(tally)
    thresholds = {'ours': curve['threshold'][60], 'none': None}
    png = figures.curve_figure({'ours': curve, 'none': curve, 'empty': {}}, thresholds)
    plain = figures.curve_figure({'ours': curve, 'none': curve})
    picture = np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))
    assert picture.shape[1] > 2 * picture.shape[0] and (picture < 100).any() and png != plain
    assert figures.curve_figure({'empty': {}})


def test_a_threshold_is_marked_where_it_falls():
    curve = {'threshold': np.array([0.9, 0.5, 0.1])}
    places = [figures._index_at(curve, t) for t in (0.95, 0.9, 0.6, 0.5, 0.0, None, np.nan)]
    assert places == [None, 0, 0, 1, 2, None, None]
