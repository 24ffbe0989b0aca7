"""Scores per subject, their summary with intervals, and the files they are written to.

numpy; a method is given by a list of anomaly maps and, if it has them, of healthy counterparts.
`metrics.json` is {cohort: {method: {score: {mean, ci_low, ci_high, n}}}} with the scores of
`fluidjax.detect.scores`; undefined values are null.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from fluidjax.base.files import write_text
from fluidjax.base.subject import Subject
from fluidjax.detect import filling, lesions, metrics
from fluidjax.detect.scores import COHORT_SCORES, SCORES

MIN_LESION_ML = 0.1  # smaller predicted components are ignored
LESION_SCORES = ('lesion_precision', 'lesion_recall', 'lesion_f1')
SIZE_EDGES_ML = (10.0, 50.0)
RESAMPLES = 1000
LEVEL = 0.95
Row = dict[str, Any]
Entry = dict[str, float | int | None]


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of a voxel in millilitres."""
    return float(abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3]))) / 1000.0


def region_of(subject: Subject) -> np.ndarray:
    """Where voxels are scored, (x, y, z) bool: the brain, and lesion voxels outside it.

    A brain mask may leave out a lesion as dark as the background; it must count as missed.
    """
    brain = np.asarray(subject.brain).astype(bool)
    return brain if subject.lesion is None else brain | np.asarray(subject.lesion).astype(bool)


def scorable(
    maps: Iterable[np.ndarray], subjects: Iterable[Subject]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, Subject]]:
    """The (map, lesion, region, subject) of the subjects whose lesion is known and whose map is
    finite where it is scored; lesion and region are bool."""
    for anomaly_map, subject in zip(maps, subjects, strict=True):
        one, region = np.asarray(anomaly_map), region_of(subject)
        if subject.lesion is not None and np.isfinite(one[region]).all():
            yield one, np.asarray(subject.lesion).astype(bool), region, subject


def score_map(
    anomaly_map: np.ndarray,
    subject: Subject,
    threshold: float,
    min_lesion_ml: float = MIN_LESION_ML,
) -> Row:
    """Voxel and lesion scores of one map; NaN where undefined (see `metrics`)."""
    truth, region = np.asarray(subject.lesion).astype(bool), region_of(subject)
    inside = (np.asarray(anomaly_map)[region], truth[region])
    usable = np.isfinite(inside[0]).all() and np.isfinite(threshold)
    predicted = (np.asarray(anomaly_map) >= threshold) & region
    return {
        'dice_validated': metrics.dice_at(*inside, threshold),
        'dice_oracle': metrics.best_dice(*inside)[0],
        'ap': metrics.average_precision(*inside),
        'auroc': metrics.auroc(*inside),
        'fpr': metrics.false_positive_rate(*inside, threshold),
        **(
            lesions.lesion_scores(predicted, truth, voxel_ml(subject.affine), min_lesion_ml)
            if usable
            else dict.fromkeys(LESION_SCORES)
        ),
    }


def score_counterpart(counterpart: np.ndarray, subject: Subject) -> Row:
    """Scores of a healthy counterpart (x, y, z); NaN where undefined (see `metrics`).

    l1, psnr, ssim: against the healthy image in the whole brain, or, where that is unknown, against
    the scan outside the lesion. l1_outside, psnr_outside, ssim_outside, healthy_changed and
    sharpness: against the scan outside the lesion. contrast_removed: in the lesion where the
    healthy image is known.
    """
    counterpart, scan = np.asarray(counterpart), np.asarray(subject.image)
    brain, lesion = np.asarray(subject.brain).astype(bool), np.asarray(subject.lesion).astype(bool)
    # Inside the lesion the truth is unknown; equal values there do not change SSIM outside.
    outside = _likeness(counterpart, np.where(lesion, counterpart, scan), brain & ~lesion)
    row = outside | {f'{score}_outside': value for score, value in outside.items()}
    row['healthy_changed'] = metrics.healthy_changed(counterpart, scan, brain & ~lesion)
    row['sharpness'] = metrics.sharpness(counterpart, scan, brain & ~lesion)
    if subject.healthy is None:
        return row | {'contrast_removed': metrics.NAN}
    healthy = np.asarray(subject.healthy)
    # Outside the brain mask counterparts are zero by construction, whatever the model.
    removed = metrics.contrast_removed(counterpart, scan, healthy, brain & lesion)
    return row | _likeness(counterpart, healthy, brain) | {'contrast_removed': removed}


def score_filling(counterpart: np.ndarray, subject: Subject) -> Row:
    """How near the lesion comes to the healthy image, in the counterpart and filled by its mask.

    Args:
        counterpart: (x, y, z).
        subject: one whose healthy image is known.
    """
    brain, lesion = (np.asarray(v).astype(bool) for v in (subject.brain, subject.lesion))
    scan, healthy = np.asarray(subject.image), np.asarray(subject.healthy)
    spacing = tuple(float(size) for size in voxel_sizes(subject.affine))
    mirrored = filling.other_side(scan, brain & ~lesion)
    filled = filling.fill(scan, np.asarray(counterpart), lesion, brain, spacing, mirrored).image
    images = {'inside': np.asarray(counterpart), 'filled': filled}
    return {
        f'{score}_{name}': value
        for name, image in images.items()
        for score, value in _likeness(image, healthy, brain & lesion).items()
    }


def _likeness(image: np.ndarray, reference: np.ndarray, region: np.ndarray) -> Row:
    return {
        score.__name__: score(image, reference, region)
        for score in (metrics.l1, metrics.psnr, metrics.ssim)
    }


def score_method(
    maps: Sequence[np.ndarray],
    counterparts: Sequence[np.ndarray] | None,
    subjects: Sequence[Subject],
    threshold: float | None,
    seconds: float | Sequence[float] | None = None,
    min_lesion_ml: float = MIN_LESION_ML,
) -> list[Row]:
    """Score one method on one cohort.

    Args:
      maps: an anomaly map (x, y, z) per subject.
      counterparts: the healthy counterparts (x, y, z), or None for a method without.
      subjects: one without a lesion mask gets None for every score but `seconds`.
      threshold: chosen on validation subjects (`calibrate.thresholds`); None or NaN if none could
        be chosen, then the scores at the threshold are None.
      seconds: per scan, or one number for all.
      min_lesion_ml: predicted components below this volume are ignored in the lesion scores.

    Returns:
      A row per subject: name, lesion_ml, and every score but `COHORT_SCORES`; JSON-safe.
    """
    seconds = [seconds] * len(subjects) if seconds is None or np.ndim(seconds) == 0 else seconds
    counterparts = [None] * len(subjects) if counterparts is None else counterparts
    threshold = metrics.NAN if threshold is None else float(threshold)
    rows = []
    for subject, anomaly_map, counterpart, took in zip(
        subjects, maps, counterparts, seconds, strict=True
    ):
        row: Row = {'name': subject.name, 'lesion_ml': None}
        row |= {score: None for score in SCORES if score not in COHORT_SCORES}
        row['seconds'] = took
        if subject.lesion is not None:
            row['lesion_ml'] = float(np.sum(subject.lesion > 0)) * voxel_ml(subject.affine)
            row |= score_map(anomaly_map, subject, threshold, min_lesion_ml)
            if counterpart is not None:
                row |= score_counterpart(counterpart, subject)
                if subject.healthy is not None:
                    row |= score_filling(counterpart, subject)
        rows.append(json_safe(row))
    return rows


def _interval(samples: np.ndarray) -> tuple[float, float]:
    tail = 50.0 * (1.0 - LEVEL)
    return tuple(float(v) for v in np.nanpercentile(samples, [tail, 100.0 - tail]))


def entry_of(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int) -> Entry:
    """A statistic of chosen subjects, (..., n) -> (...), with its bootstrap interval."""
    if n == 0:
        return {'mean': None, 'ci_low': None, 'ci_high': None, 'n': 0}
    mean = float(statistic(np.arange(n)))
    if n == 1:  # one subject says nothing about the spread
        return {'mean': mean, 'ci_low': None, 'ci_high': None, 'n': 1}
    drawn = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    low, high = _interval(statistic(drawn))
    return {'mean': mean, 'ci_low': low, 'ci_high': high, 'n': n}


def bootstrap_mean(values: Iterable[float | None], seed: int = 0) -> Entry:
    """Mean and percentile bootstrap interval (95 %, 1000 resamples of subjects, fixed seed).

    None and NaN are left out and `n` counts the rest; no interval for fewer than two.
    """
    kept = np.array([v for v in values if v is not None and math.isfinite(v)], np.float64)
    return entry_of(lambda chosen: kept[chosen].mean(axis=-1), kept.size, seed)


def summarise(
    rows: Sequence[Row], of_cohort: Mapping[str, Entry] | None = None
) -> dict[str, Entry]:
    """{score: {mean, ci_low, ci_high, n}} over the subjects of one method and cohort.

    Args:
      rows: from `score_method`.
      of_cohort: entries of `COHORT_SCORES`, such as `pooled.global_dice`, which do not follow from
        the rows.
    """
    summary = {score: bootstrap_mean(row.get(score) for row in rows) for score in SCORES}
    return summary | {score: json_safe(dict(entry)) for score, entry in (of_cohort or {}).items()}


def by_size(rows: Sequence[Row], edges_ml: Sequence[float] = SIZE_EDGES_ML) -> dict[str, list[Row]]:
    """Rows by the volume of their lesions: {'below 10 ml': rows, '10 to 50 ml': ..., ...}.

    Args:
      rows: from `score_method`. Rows without a mask or without a lesion are in no stratum.
      edges_ml: ascending, in ml; a volume at an edge belongs to the stratum above it.

    Raises:
      ValueError: no edges, or not ascending.
    """
    if not len(edges_ml) or np.any(np.diff(edges_ml) <= 0):
        raise ValueError(f'edges_ml: {tuple(edges_ml)} must be ascending')
    named = [f'{edge:g}' for edge in edges_ml]
    names = [
        f'below {named[0]} ml',
        *(f'{low} to {high} ml' for low, high in zip(named, named[1:])),
        f'above {named[-1]} ml',
    ]
    strata: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows:
        if row.get('lesion_ml'):
            strata[names[np.searchsorted(edges_ml, row['lesion_ml'], side='right')]].append(row)
    return strata


def json_safe(value: Any) -> Any:
    """The same value in JSON's types: numpy numbers as numbers, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_safe(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_metrics(path: str | Path, results: Mapping[str, Mapping[str, Mapping]]) -> None:
    """Write {cohort: {method: {score: entry}}} as JSON without NaN."""
    write_text(path, json.dumps(json_safe(results), indent=2, allow_nan=False) + '\n')


def write_subjects_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """One line per row; cohort, method and name come first, None is an empty cell."""
    first = ('cohort', 'method', 'name', 'lesion_ml')
    columns = list(dict.fromkeys(key for row in rows for key in row)) or list(first)
    columns.sort(key=lambda key: first.index(key) if key in first else len(first))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n', restval='')
    writer.writeheader()
    writer.writerows(json_safe(row) for row in rows)
    write_text(path, text.getvalue())
