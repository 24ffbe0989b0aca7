"""The files of a predicted scan, named as BIDS derivatives.

A scan's files are written into a hidden folder beside their place and then moved, so that a scan
that fails on the way leaves nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.image_files import checksum
from data_pipelines.volume_io import save_like
from fluidjax.base.files import write_bytes, write_json, write_text
from fluidjax.base.names import LONGEST, short_name, shown
from fluidjax.base.partial import partial_folder
from fluidjax.base.subject import Subject
from fluidjax.detect.evaluate import voxel_ml
from fluidjax.detect.figures import Panel, subject_figure
from fluidjax.predict import page, regions
from fluidjax.predict.on_scan import Predicted
from fluidjax.predict.reading import Scan
from fluidjax.predict.regions import Region
from fluidjax.predict.scans import ScanFile
from fluidjax.runs.card import CONTRAST_NAMES
from fluidjax.runs.thresholds import Certainty

TABLE = 'desc-anomaly_lesions'
# BIDS has no suffix for anomaly maps; of those it has, a soft segmentation comes closest.
MAP, UNCERTAINTY = 'desc-anomaly_probseg', 'desc-uncertainty_probseg'
PROBABILITY = 'desc-probability_probseg'
COUNTERPART_OF = {
    't1w': 'desc-healthy_T1w',
    't2w': 'desc-healthy_T2w',
    'flair': 'desc-healthy_FLAIR',
}
BRAIN_MASK = 'desc-brain_mask'
FUSED, FUSED_MASK = 'desc-fused_probseg', 'desc-fused_mask'
# Bytes that a scan's name may have, so that the longest of the names of its results is possible.
ROOM = LONGEST - len(f'_{UNCERTAINTY}.nii.gz')
HEALTHY = {
    'filled': 'The scan with its marked voxels and an edge of some mm around them replaced by the '
    'healthy counterpart, brought to the level and texture of the tissue around. Zero outside the '
    'brain',
    'model': 'Healthy counterpart on the intensity scale of the scan: slope * model + offset, so '
    'that the medians of the brain and the background agree. Zero outside the brain',
}
OPTIONAL = (  # not written for every scan by every model
    *(
        f'{kind}{ending}'
        for kind in (*COUNTERPART_OF.values(), UNCERTAINTY, PROBABILITY, FUSED, FUSED_MASK)
        for ending in ('.nii.gz', '.json')
    ),
    'desc-quality.png',
)
FORMER = tuple(  # names of fluidjax 0.1.0
    f'desc-{kind}_map{ending}'
    for kind in ('anomaly', 'uncertainty')
    for ending in ('.nii.gz', '.json')
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a prediction comes from.

    Attributes:
        run: name of the run's folder or package.
        method: of the run.
        step: of its checkpoint.
        rule: by which the threshold was chosen, see `runs.thresholds`.
        threshold: its value.
        counterpart: what the healthy image is, one of `on_scan.COUNTERPARTS`.
        certainty: what the map means.
    """

    run: str
    method: str
    step: int
    rule: str
    threshold: float
    counterpart: str = 'filled'
    certainty: Certainty = Certainty()

    @property
    def threshold_probability(self) -> float | None:
        """The probability of a lesion where the map is at the threshold, or None if not known."""
        level = np.full((1, 1, 1), self.threshold)
        found = self.certainty.probability_of(level, np.ones((1, 1, 1), bool))
        return None if found is None else float(found[0, 0, 0])


def write_prediction(out: Path, scan: Scan, predicted: Predicted, source: Source) -> dict[str, Any]:
    """Write all files of a scan.

    Args:
        out: the output folder; the files go to `out / scan.file.folder`, with names that are
            shortened where the file system would not take them (`short_names`).

    Returns:
        The summary that the table's JSON holds.
    """
    scan = dataclasses.replace(scan, file=short_names(scan.file))
    with _all_or_nothing(out, scan.file) as folder:
        marked = regions.regions_of(
            predicted.mask,
            predicted.anomaly_map,
            scan.volume.affine,
            scan.mni_from_world,
            source.threshold,
            confidence=source.certainty.confidence,
        )
        summary = _summary_of(scan, predicted, marked, source)
        start = f'{scan.file.name}_'
        for kind, (data, sidecar) in _volumes(scan, predicted, source).items():
            save_like(folder / f'{start}{kind}.nii.gz', data, scan.volume)
            write_json(folder / f'{start}{kind}.json', sidecar)
        write_text(folder / f'{start}{TABLE}.tsv', regions.as_tsv(marked))
        write_json(
            folder / f'{start}{TABLE}.json',
            {
                **regions.columns(source.certainty.confidence),
                'Summary': summary,
                'Lesions': [dataclasses.asdict(region) for region in marked],
            },
        )
        _write_pictures(folder, start, scan, predicted, source, marked, summary)
    return summary


def short_names(file: ScanFile) -> ScanFile:
    """A scan whose results have names of at most 255 bytes."""
    name = short_name(file.name, ROOM)
    folder = (name if part == file.name else short_name(part) for part in file.folder.parts)
    return dataclasses.replace(file, name=name, folder=Path(*folder))


def _summary_of(
    scan: Scan, predicted: Predicted, marked: Sequence[Region], source: Source
) -> dict[str, Any]:
    """A scan's facts for the index and for programs."""
    voxel = voxel_ml(scan.volume.affine)
    return {
        'name': scan.file.name,
        'scan': shown(scan.file.path),
        'sha256': checksum(scan.file.path),
        'contrast': scan.contrast,
        'page': (scan.file.folder / f'{scan.file.name}_desc-anomaly.html').as_posix(),
        'run': source.run,
        'method': source.method,
        'step': source.step,
        'threshold_rule': source.rule,
        'threshold': source.threshold,
        'threshold_probability': source.threshold_probability,
        'marked_ml': round(voxel * int(predicted.mask.sum()), 3),
        'brain_ml': round(voxel * int(predicted.brain.sum()), 1),
        'regions': len(marked),
        'largest_ml': marked[0].volume_ml if marked else 0.0,
        'atlas_overlap': round(scan.overlap, 3),
        'brain_extraction': scan.extraction,
        'warnings': list(scan.warnings),
    }


def _volumes(
    scan: Scan, predicted: Predicted, source: Source
) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """The volumes that are written, each with its sidecar."""
    threshold = f'{source.threshold:.6g} ({source.rule})'
    volumes = {
        COUNTERPART_OF.get(scan.contrast, COUNTERPART_OF['t1w']): (
            predicted.healthy_in_scan_units,
            {
                'Description': HEALTHY[source.counterpart],
                'SkullStripped': True,
                'IntensitySlope': predicted.slope,
                'IntensityOffset': predicted.offset,
            },
        ),
        MAP: (
            predicted.anomaly_map,
            {
                'Description': 'Anomaly map, larger where scan and counterpart differ more; not a '
                'probability. Zero outside the brain',
                'Units': 'arbitrary',
                'Threshold': source.threshold,
                'ThresholdRule': source.rule,
                'Method': source.method,
            },
        ),
        'desc-anomaly_mask': (
            predicted.mask,
            {
                'Description': f'Voxels of the brain whose anomaly map is at least {threshold}',
                'Type': 'Lesion',
            },
        ),
        BRAIN_MASK: (
            predicted.brain,
            {'Description': 'The brain that was searched', 'Type': 'Brain'},
        ),
        PROBABILITY: (
            source.certainty.probability_of(predicted.anomaly_map, predicted.brain),
            {
                'Description': 'Probability of a lesion in each voxel, by the value of the anomaly '
                'map, from validation scans with simulated lesions; where lesions are rarer it is '
                'too high. Zero outside the brain'
            },
        ),
        UNCERTAINTY: (
            predicted.uncertainty,
            {
                'Description': 'Standard deviation of the anomaly map over several counterparts',
                'Units': 'arbitrary',
            },
        ),
    }
    common = {'Sources': [shown(scan.file.path)], 'SpatialReference': 'orig'}
    return {
        kind: (data, sidecar | common)
        for kind, (data, sidecar) in volumes.items()
        if data is not None
    }


def _write_pictures(
    folder: Path,
    start: str,
    scan: Scan,
    predicted: Predicted,
    source: Source,
    marked: Sequence[Region],
    summary: dict[str, Any],
) -> None:
    """Write the PNG, and the page that holds it."""
    name, affine = shown(scan.file.name), scan.volume.affine
    subject = Subject(name, predicted.image, predicted.brain, None, None, affine)
    panel = Panel(
        'predicted',
        source.method,
        subject,
        predicted.healthy,
        predicted.anomaly_map,
        source.threshold,
    )
    picture = subject_figure(panel)
    write_bytes(folder / f'{start}desc-anomaly.png', picture)
    facts = {
        'file': shown(scan.file.path),
        'contrast': f'{CONTRAST_NAMES.get(scan.contrast, "unknown")}, by its intensities',
        'run': f'{source.run}, {source.method}, step {source.step}',
        'threshold': f'{source.threshold:.4g} ({source.rule})',
        'marked': f'{summary["marked_ml"]:.1f} ml of {summary["brain_ml"]:.0f} ml of brain',
        'brain extraction': scan.extraction,
        'overlap with the atlas': f'{scan.overlap:.2f}',
    }
    if scan.quality is not None:
        write_bytes(folder / f'{start}desc-quality.png', scan.quality)
    page.write_scan_page(
        folder / f'{start}desc-anomaly.html',
        panel,
        predicted.mask,
        picture,
        marked,
        regions.columns(source.certainty.confidence),
        facts,
        scan.warnings,
        sorted(path.name for path in folder.iterdir()),
        scan.quality,
    )


@contextlib.contextmanager
def _all_or_nothing(out: Path, file: ScanFile) -> Iterator[Path]:
    """A folder to write to, whose files move to the scan's own place when all is done."""
    with partial_folder(out, file.name) as partial:
        yield partial
        target = out / file.folder
        target.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in partial.iterdir())
        for name in names:
            os.replace(partial / name, target / name)
        for name in (f'{file.name}_{end}' for end in OPTIONAL + FORMER):
            if name not in names:  # of an earlier prediction by another method or version
                (target / name).unlink(missing_ok=True)
