"""Paired tests between methods on the same subjects, corrected for multiple comparisons.

The input is rows of scores as `evaluate.score_method` returns them, with `cohort`, for several runs
of a method `seed`, and for several cases of one scan `scan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from fluidjax.base.errors import UserError

Row = Mapping[str, Any]
Comparison = dict[str, float | int | None]
DIGITS = 12  # differences below this are rounding errors


def compare(
    rows_by_method: Mapping[str, Sequence[Row]], score: str, reference: str
) -> dict[str, Comparison]:
    """Compare a reference method with every other method, subject by subject.

    Several seeds or simulated lesions of a scan are not more subjects: a scan's score is averaged
    over them first, then the methods are paired by (cohort, scan). Of two methods only the seeds
    that both have count, because a seed also draws the validation lesions, on which thresholds
    depend.

    Args:
      rows_by_method: {method: rows}. A row has `name`, the score, and may have `cohort`, `seed` and
        `scan`, which is `name` by default.
      score: a key of the rows, such as 'ap'. Subjects without it (None, NaN) are left out.
      reference: the method that the others are compared with.

    Returns:
      {other method: {difference, p, p_holm, n, seeds}}: the mean of reference - method, the
      two-sided p of Wilcoxon's signed-rank test (scipy; 1 if all differences are 0), the same after
      Holm's correction over the methods, the number of pairs, and the number of common seeds. With
      no pair all but `n` and `seeds` are None.

    Raises:
      UserError: the reference is not one of the methods, or a method has a subject twice for one
        seed.
    """
    if reference not in rows_by_method:
        raise UserError(
            f"reference '{reference}': is not one of the methods {', '.join(rows_by_method)}"
        )
    others = {method: rows for method, rows in rows_by_method.items() if method != reference}
    ours = rows_by_method[reference]
    results = {method: _paired(ours, theirs, score) for method, theirs in others.items()}
    corrected = holm([result['p'] for result in results.values()])
    return {
        method: {**result, 'p_holm': p_holm}
        for (method, result), p_holm in zip(results.items(), corrected, strict=True)
    }


def subject_scores(rows: Sequence[Row], score: str) -> dict[tuple, float]:
    """{(cohort, scan): score averaged over seeds and cases}, of the rows that have the score.

    Raises:
      UserError: a case appears twice for one seed.
    """
    seen, values = set(), {}
    for row in rows:
        subject, case = (row.get('cohort'), row.get('scan', row['name'])), row['name']
        seed = row.get('seed')
        if (subject, case, seed) in seen:
            raise UserError(
                f"subject '{row['name']}': appears twice for one seed; "
                'give the rows different cohorts or seeds'
            )
        seen.add((subject, case, seed))
        value = row.get(score)
        if value is not None and math.isfinite(value):
            values.setdefault(subject, []).append(float(value))
    return {subject: float(np.mean(several)) for subject, several in values.items()}


def _paired(ours: Sequence[Row], theirs: Sequence[Row], score: str) -> Comparison:
    seeds = [{row.get('seed') for row in rows} for rows in (ours, theirs)]
    common = seeds[0] & seeds[1]
    first, second = (
        subject_scores([row for row in rows if row.get('seed') in common], score)
        for rows in (ours, theirs)
    )
    pairs = [subject for subject in first if subject in second]
    if not pairs:
        return {'difference': None, 'p': None, 'n': 0, 'seeds': len(common)}
    differences = np.round([first[subject] - second[subject] for subject in pairs], DIGITS)
    p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return {'difference': float(differences.mean()), 'p': p, 'n': len(pairs), 'seeds': len(common)}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; None stays None and does not count as a test."""
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=p_values.__getitem__)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
