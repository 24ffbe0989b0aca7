"""The files of a predicted scan, named as BIDS derivatives, and the folder's own description.

A scan's files are written into a hidden folder beside their place and then moved, so that a scan
that fails on the way leaves nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluidjax.base import __version__
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes, write_text
from fluidjax.base.subject import Subject
from fluidjax.detect.evaluate import voxel_ml
from fluidjax.detect.figures import Panel, subject_figure
from fluidjax.predict import regions as lesion_table
from fluidjax.predict.on_scan import Predicted
from fluidjax.predict.page import write_index, write_scan_page
from fluidjax.predict.scans import ScanFile

if TYPE_CHECKING:
    from data_pipelines.volume_io import Volume

BIDS_VERSION = '1.10.0'
TABLE = 'desc-anomaly_lesions'
OPTIONAL = ('desc-uncertainty_map.nii.gz', 'desc-uncertainty_map.json', 'desc-quality.png')


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a prediction comes from: the run's folder, its method and step, the rule of the
    threshold and its value."""

    run: str
    method: str
    step: int
    rule: str
    threshold: float


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan that was read: its file, its voxels, the model's view of it, and what to be warned of.

    Attributes:
        mni_from_world: the scan's world -> MNI152, mm: (4, 4).
        overlap: Dice of its brain with the atlas.
        extraction: how its brain was found.
        quality: PNG of how it was brought onto the model's grid, or None.
    """

    file: ScanFile
    volume: Volume
    case: Subject
    mni_from_world: np.ndarray
    overlap: float
    warnings: tuple[str, ...]
    extraction: str
    quality: bytes | None


def check_folder(out: Path) -> None:
    """See that a folder may be written to: absent, empty of a data set, or ours.

    Raises:
        UserError: it is a file, or another data set.
    """
    path = out / 'dataset_description.json'
    if out.exists() and not out.is_dir():
        raise UserError(f'--out: {out} is a file; name a folder')
    if path.is_file() and _name_of_generator(path) != 'fluidjax':
        raise UserError(
            f'--out: {out} holds another data set (its dataset_description.json is not '
            'of fluidjax); name another folder'
        )


def _name_of_generator(path: Path) -> str | None:
    try:
        return json.loads(path.read_text())['GeneratedBy'][0]['Name']
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def describe_folder(out: Path) -> None:
    """Write `dataset_description.json`."""
    _write_json(
        out / 'dataset_description.json',
        {
            'Name': 'Anomalies in T1w scans',
            'BIDSVersion': BIDS_VERSION,
            'DatasetType': 'derivative',
            'GeneratedBy': [
                {
                    'Name': 'fluidjax',
                    'Version': __version__,
                    'Description': 'Research use; not for diagnosis',
                }
            ],
        },
    )


def write_prediction(out: Path, scan: Scan, found: Predicted, source: Source) -> dict[str, Any]:
    """Write all files of a scan.

    Args:
        out: the output folder; the files go to `out / scan.file.folder`.

    Returns:
        The summary that the table's JSON holds.
    """
    with _all_or_nothing(out, scan.file) as folder:
        regions = lesion_table.regions_of(
            found.mask, found.anomaly_map, scan.volume.affine, scan.mni_from_world, source.threshold
        )
        summary = summary_of(scan, found, regions, source)
        start = f'{scan.file.name}_'
        _write_volumes(folder, start, scan, found, source)
        write_text(folder / f'{start}{TABLE}.tsv', lesion_table.as_tsv(regions))
        _write_json(
            folder / f'{start}{TABLE}.json',
            {
                **lesion_table.COLUMNS,
                'Summary': summary,
                'Lesions': [dataclasses.asdict(region) for region in regions],
            },
        )
        _write_pictures(folder, start, scan, found, source, regions, summary)
    return summary


def summary_of(
    scan: Scan, found: Predicted, regions: Sequence[lesion_table.Region], source: Source
) -> dict[str, Any]:
    """What the index, and a program, want to know of a scan."""
    voxel = voxel_ml(scan.volume.affine)
    return {
        'name': scan.file.name,
        'scan': str(scan.file.path),
        'page': (scan.file.folder / f'{scan.file.name}_desc-anomaly.html').as_posix(),
        'run': source.run,
        'method': source.method,
        'step': source.step,
        'threshold_rule': source.rule,
        'threshold': source.threshold,
        'marked_ml': round(voxel * int(found.mask.sum()), 3),
        'brain_ml': round(voxel * int(found.brain.sum()), 1),
        'regions': len(regions),
        'largest_ml': regions[0].volume_ml if regions else 0.0,
        'atlas_overlap': round(scan.overlap, 3),
        'brain_extraction': scan.extraction,
        'warnings': list(scan.warnings),
    }


def write_folder_index(out: Path, failures: Sequence[str]) -> Path:
    """Write `index.html`: every scan predicted into the folder, now or before."""
    summaries = []
    for path in sorted(out.rglob(f'*_{TABLE}.json')):
        if not any(part.startswith('.') for part in path.relative_to(out).parts):
            with contextlib.suppress(ValueError, KeyError):  # not one of ours
                summaries.append(json.loads(path.read_text())['Summary'])
    write_index(out / 'index.html', summaries, failures)
    return out / 'index.html'


def _write_volumes(folder: Path, start: str, scan: Scan, found: Predicted, source: Source) -> None:
    """NIfTI files on the scan's own voxels, each with its sidecar."""
    from data_pipelines.volume_io import save_like

    common = {'Sources': [str(scan.file.path)], 'SpatialReference': 'orig'}
    cut = f'{source.threshold:.6g} ({source.rule})'
    kinds = {
        'desc-healthy_T1w': (
            found.healthy_in_scan_units,
            {
                'Description': 'Healthy counterpart on the intensity scale of the scan: slope * model '
                '+ offset, which makes the medians of the brain and the background '
                'agree. Zero outside the brain',
                'SkullStripped': True,
                'IntensitySlope': found.slope,
                'IntensityOffset': found.offset,
            },
        ),
        'desc-anomaly_map': (
            found.anomaly_map,
            {
                'Description': 'Anomaly map, larger where scan and counterpart differ more; zero '
                'outside the brain',
                'Units': 'arbitrary',
                'Threshold': source.threshold,
                'ThresholdRule': source.rule,
                'Method': source.method,
            },
        ),
        'desc-anomaly_mask': (
            found.mask,
            {
                'Description': f'Voxels of the brain whose anomaly map is at least {cut}',
                'Type': 'Lesion',
            },
        ),
        'desc-brain_mask': (
            found.brain,
            {'Description': 'The brain that was looked at', 'Type': 'Brain'},
        ),
    }
    if found.uncertainty is not None:
        kinds['desc-uncertainty_map'] = (
            found.uncertainty,
            {
                'Description': 'Standard deviation of the anomaly map over several counterparts',
                'Units': 'arbitrary',
            },
        )
    for kind, (data, sidecar) in kinds.items():
        save_like(folder / f'{start}{kind}.nii.gz', data, scan.volume)
        _write_json(folder / f'{start}{kind}.json', sidecar | common)


def _write_pictures(
    folder: Path,
    start: str,
    scan: Scan,
    found: Predicted,
    source: Source,
    regions: Sequence[lesion_table.Region],
    summary: dict[str, Any],
) -> None:
    """The PNG, and the page that holds it."""
    subject = Subject(scan.file.name, found.image, found.brain, None, None, scan.volume.affine)
    panel = Panel(
        'predicted', source.method, subject, found.healthy, found.anomaly_map, source.threshold
    )
    picture = subject_figure(panel)
    write_bytes(folder / f'{start}desc-anomaly.png', picture)
    facts = {
        'file': scan.file.path,
        'run': f'{source.run}, {source.method}, step {source.step}',
        'threshold': f'{source.threshold:.4g} ({source.rule})',
        'marked': f'{summary["marked_ml"]:.1f} ml of {summary["brain_ml"]:.0f} ml of brain',
        'brain extraction': scan.extraction,
        'overlap with the atlas': f'{scan.overlap:.2f}',
    }
    if scan.quality is not None:
        write_bytes(folder / f'{start}desc-quality.png', scan.quality)
    names = sorted(path.name for path in folder.iterdir())
    write_scan_page(
        folder / f'{start}desc-anomaly.html',
        panel,
        found.mask,
        picture,
        regions,
        facts,
        scan.warnings,
        names,
        scan.quality,
    )


@contextlib.contextmanager
def _all_or_nothing(out: Path, file: ScanFile) -> Iterator[Path]:
    """A folder to write to, whose files move to the scan's own place when all is done."""
    partial = out / f'.{file.name}.{os.getpid()}.partial'
    partial.mkdir(parents=True)
    try:
        yield partial
        target = out / file.folder
        target.mkdir(parents=True, exist_ok=True)
        made = sorted(path.name for path in partial.iterdir())
        for name in made:
            os.replace(partial / name, target / name)
        for name in (f'{file.name}_{end}' for end in OPTIONAL):
            if name not in made:  # of an earlier prediction by another method
                (target / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + '\n')
