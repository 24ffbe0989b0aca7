"""summary.html of a prepared folder: counts, ages, failures and a picture of each scan."""

from __future__ import annotations

import base64
import io
import statistics
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from data_pipelines import preprocess, records, subject_splits
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.preparation import Outcome
from data_pipelines.quality import LOW_OVERLAP
from fluidjax.base.files import asset
from fluidjax.base.names import shown

THUMBNAIL_PIXELS = 120  # height of a row of slices


def page(
    source: NiftiSource, outcomes: Sequence[Outcome], unused: Sequence[tuple[Path, str]] = ()
) -> str:
    """The page as HTML that needs nothing else.

    Args:
      source: as prepared.
      outcomes: of its scans and masks.
      unused: (file, reason) of the image files that are not used.
    """
    rows = subject_splits.participants(Path(source.data_dir))
    ids = {subject_splits.subject_id(o.item) for o in outcomes if not isinstance(o.item, Path)}
    people, _ = subject_splits.match_subjects(rows, sorted(ids), 'participants.tsv')
    grid = source.grid
    facts = [
        ('scans from', source.data_dir),
        ('test scans from', source.test_dir),
        ('lesion masks from', source.lesion_dir),
        ('grid', f'{" x ".join(map(str, grid.shape))} voxels of {grid.spacing[0]:g} mm'),
        ('registration', source.registration),
    ]
    scans = [outcome for outcome in outcomes if outcome.record and outcome.split != 'lesions']
    return Template(asset('data_pipelines', 'prepared.html')).substitute(
        facts=_table(('', ''), [fact for fact in facts if fact[1]]),
        splits=_splits(outcomes, people),
        failures=_failures(outcomes) + _unused(unused),
        scans='\n'.join(_figure(outcome, source, people) for outcome in scans),
    )


def _failures(outcomes: Sequence[Outcome]) -> str:
    failed = [(_path_of(outcome), outcome.error) for outcome in outcomes if outcome.error]
    if not failed:
        return f'<p>All {len(outcomes)} files could be used.</p>'
    head = f'<h2>Failures: {len(failed)} of {len(outcomes)} files</h2>'
    return f'{head}\n{_table(("file", "why"), failed)}'


def _unused(unused: Sequence[tuple[Path, str]]) -> str:
    if not unused:
        return ''
    rows = [(shown(path), reason) for path, reason in unused]
    return f'<h2>Image files that are not used: {len(rows)}</h2>\n{_table(("file", "why"), rows)}'


def _splits(outcomes: Sequence[Outcome], people: dict) -> str:
    counts = Counter(outcome.split for outcome in outcomes if outcome.record)
    rows = []
    for split, count in counts.items():
        here = [o for o in outcomes if o.record and o.split == split]
        ages = [age for o in here if (age := _age(o, people)) is not None]
        text = (
            f'{min(ages):g} to {max(ages):g}, mean {statistics.fmean(ages):.1f}, of {len(ages)}'
            if ages
            else ''
        )
        subjects = {subject_splits.subject_id(o.item) for o in here if not isinstance(o.item, Path)}
        rows.append((split, str(count), str(len(subjects) or ''), text))
    return _table(('split', 'files', 'subjects', 'age (years)'), rows)


def _age(outcome: Outcome, people: dict) -> float | None:
    if isinstance(outcome.item, Path) or outcome.purpose != 'data_dir':
        return None
    row = people.get(subject_splits.subject_id(outcome.item), {})
    try:
        age = float(row.get('age') or '')
    except ValueError:
        return None
    return age if np.isfinite(age) else None


def _path_of(outcome: Outcome) -> str:
    return str(records.files_of(outcome.item)[0])


def _figure(outcome: Outcome, source: NiftiSource, people: dict) -> str:
    record = records.load(source, outcome.record)
    if record is None:
        return ''
    overlap = preprocess.dice(record['brain'] > 0, preprocess.mni_brain(source.grid))
    age = _age(outcome, people)
    caption = f'{escape(outcome.item.name)}, {outcome.split}' + (f', {age:g} y' if age else '')
    low = ' class="low"' if overlap < LOW_OVERLAP else ''
    picture = base64.b64encode(thumbnail(record)).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{picture}">'
        f'<figcaption>{caption}; <span{low}>overlap with the atlas {overlap:.2f}</span>'
        '</figcaption></figure>'
    )


def thumbnail(record: dict) -> bytes:
    """An axial, a coronal and a sagittal slice side by side, PNG; the lesion tinted."""
    image, lesion, brain = record['image'], record['lesion'] > 0, record['brain'] > 0
    focus = np.argwhere(lesion if lesion.any() else brain)
    middle = np.rint((focus.min(axis=0) + focus.max(axis=0)) / 2).astype(int)
    tiles = []
    for axis in (2, 1, 0):
        grey = np.take(image, middle[axis], axis=axis).T[::-1]
        inside = np.take(lesion, middle[axis], axis=axis).T[::-1, :, None]
        colours = np.repeat(grey[..., None], 3, axis=-1)
        colours = np.where(inside, 0.5 * colours + 0.5 * np.array([1.0, 0.55, 0.1]), colours)
        pixels = Image.fromarray((255 * np.clip(colours, 0, 1)).astype(np.uint8))
        width = max(1, round(THUMBNAIL_PIXELS * grey.shape[1] / grey.shape[0]))
        size = (width, THUMBNAIL_PIXELS)
        tiles.append(np.asarray(pixels.resize(size, Image.Resampling.BILINEAR)))
    content = io.BytesIO()
    Image.fromarray(np.concatenate(tiles, axis=1)).save(content, 'PNG', optimize=True)
    return content.getvalue()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = ''.join(f'<th>{escape(text)}</th>' for text in head)
    body = ''.join(
        '<tr>' + ''.join(f'<td>{escape(str(text))}</td>' for text in row) + '</tr>' for row in rows
    )
    return f'<table><tr>{top}</tr>{body}</table>'
