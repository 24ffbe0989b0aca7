"""Paired comparison of methods: known p-values, Holm by hand, and what is no pair."""

from __future__ import annotations

import pytest

from fluidjax.base.errors import UserError
from fluidjax.sweep.compare import compare, holm


def rows(values, **more):
    return [{'name': f's{i}', 'ap': v, 'cohort': 'x', **more} for i, v in enumerate(values)]


OURS = rows([0.3, 0.5, 0.7, 0.9, 1.1, 1.3])


def test_a_method_that_is_better_everywhere():
    worse = rows([0.29, 0.48, 0.67, 0.86, 1.05, 1.24])
    [(name, result)] = compare({'a': OURS, 'b': worse}, 'ap', 'a').items()
    assert name == 'b' and result['n'] == 6
    assert result['difference'] == pytest.approx(0.035)
    assert result['p'] == result['p_holm'] == pytest.approx(2 / 2**6)  # exact: all six one way
    back = compare({'a': OURS, 'b': worse}, 'ap', 'b')['a']
    assert back['difference'] == pytest.approx(-0.035) and back['p'] == result['p']


def test_equal_methods():
    # 0.1 + 0.2 is not 0.3 in floating point, but it is no difference either.
    same = compare({'a': rows([0.3, 0.5]), 'b': rows([0.1 + 0.2, 0.5])}, 'ap', 'a')['b']
    assert same == {'difference': 0.0, 'p': 1.0, 'p_holm': 1.0, 'n': 2, 'seeds': 1}


def test_subjects_are_paired_by_cohort_and_name():
    shuffled = [dict(row, ap=row['ap'] - 0.1) for row in reversed(OURS)]
    elsewhere = [dict(row, cohort='y', ap=9.0) for row in OURS]
    result = compare({'a': OURS, 'b': shuffled + elsewhere}, 'ap', 'a')['b']
    assert result['difference'] == pytest.approx(0.1) and result['n'] == 6


def test_missing_scores_are_no_pairs():
    holes = rows([0.2, None, float('nan'), 0.8, 1.0]) + [{'name': 's5', 'cohort': 'x'}]
    result = compare({'a': OURS, 'b': holes}, 'ap', 'a')['b']
    assert result['n'] == 3 and result['difference'] == pytest.approx(0.1)
    nothing = {'difference': None, 'p': None, 'p_holm': None, 'n': 0, 'seeds': 1}
    assert compare({'a': OURS, 'b': rows([None] * 6)}, 'ap', 'a')['b'] == nothing
    assert compare({'a': OURS, 'b': []}, 'ap', 'a')['b'] == {**nothing, 'seeds': 0}
    assert compare({'a': OURS}, 'ap', 'a') == {}


def test_one_pair_proves_nothing():
    assert compare({'a': rows([0.9]), 'b': rows([0.1])}, 'ap', 'a')['b'] == {
        'difference': pytest.approx(0.8),
        'p': 1.0,
        'p_holm': 1.0,
        'n': 1,
        'seeds': 1,
    }


def test_seeds_are_averaged_before_pairing():
    seeded = rows([0.2, 0.4, 0.6], seed=0) + rows([0.0, 0.4, None], seed=1)
    ours = rows([0.3, 0.5, 0.7], seed=0) + rows([0.3, 0.5, 0.7], seed=1)
    result = compare({'a': ours, 'b': seeded}, 'ap', 'a')['b']
    assert result['n'] == 3 and result['seeds'] == 2  # not six pairs
    assert result['difference'] == pytest.approx((0.2 + 0.1 + 0.1) / 3)


def test_cases_of_one_scan_are_averaged_before_pairing():
    ours = [{'name': f's{i}-{k}', 'scan': f's{i}', 'ap': 0.5} for i in range(3) for k in range(2)]
    theirs = [{**row, 'ap': 0.3 + 0.1 * int(row['name'][-1])} for row in ours]
    result = compare({'a': ours, 'b': theirs}, 'ap', 'a')['b']
    assert result['n'] == 3 and result['difference'] == pytest.approx(0.15)


def test_only_seeds_that_both_have_are_compared():
    ours = rows([0.3, 0.5, 0.7], seed=0) + rows([9.0, 9.0, 9.0], seed=1)
    result = compare({'a': ours, 'b': rows([0.2, 0.4, 0.6], seed=0)}, 'ap', 'a')['b']
    assert result['seeds'] == 1 and result['difference'] == pytest.approx(0.1)
    apart = compare({'a': ours, 'b': rows([0.2], seed=2)}, 'ap', 'a')['b']
    assert apart['seeds'] == 0 and apart['p'] is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_the_correction_spans_the_methods():
    better = rows([0.29, 0.48, 0.67, 0.86, 1.05, 1.24])
    results = compare({'a': OURS, 'b': better, 'c': OURS, 'd': rows([None])}, 'ap', 'a')
    assert list(results) == ['b', 'c', 'd']
    assert results['b']['p_holm'] == pytest.approx(2 * 2 / 2**6)
    assert results['c']['p_holm'] == 1.0 and results['d']['p_holm'] is None


def test_mistakes_are_named():
    with pytest.raises(UserError, match="reference 'z': is not one of the methods a, b"):
        compare({'a': OURS, 'b': OURS}, 'ap', 'z')
    with pytest.raises(UserError, match="subject 's0': appears twice"):
        compare({'a': OURS, 'b': OURS + rows([0.1])}, 'ap', 'a')
