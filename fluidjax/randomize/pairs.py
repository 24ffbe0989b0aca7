"""Pairs of healthy and pseudo-diseased scans as files.

    OUT/draws.json                       all drawn numbers, the settings, the files they belong to
    OUT/distribution.png                 volumes, counts, times and contrasts of the lesions
    OUT/SCAN/healthy.nii.gz              the scan as it is
    OUT/SCAN/001_diseased.nii.gz         the same with a lesion
    OUT/SCAN/001_mask.nii.gz             the lesion
    OUT/SCAN/001_probability.nii.gz      the probability map that the mask is cut from
    OUT/SCAN/contact_sheet.png, flow.gif

All volumes have the scan's own voxels, affine, header and units of intensity.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from data_pipelines import image_files, scan_folders, scan_images, volume_io
from data_pipelines.scan_arguments import given_scans
from data_pipelines.scan_folders import distinct_names
from fluidjax.base import disk, environment
from fluidjax.base.cli import tell
from fluidjax.base.errors import DiskError, UserError
from fluidjax.base.failures import failure_line
from fluidjax.base.files import write_bytes, write_text
from fluidjax.base.names import short_name, shown
from fluidjax.base.settings import settings_from
from fluidjax.fluid.draws import Draw
from fluidjax.fluid.settings import FluidSettings
from fluidjax.randomize import records
from fluidjax.randomize.healthy import Healthy, MaskFiles, healthy_from, load_healthy
from fluidjax.randomize.paint import Pair, diseased, draw_of, paint
from fluidjax.randomize.pictures import contact_sheet, distribution_figure, flow_animation

_SHEET_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Request:
    """Pairs to make.

    Attributes:
        scans: files of healthy scans, and folders of them.
        settings: what to draw.
        num_pairs: pairs per scan.
        seed: of all draws.
        lesions: folder of lesion masks, or None.
        brain: brain mask of the only scan, or None.
    """

    scans: tuple[str, ...]
    settings: FluidSettings
    num_pairs: int = 8
    seed: int = 0
    lesions: str | None = None
    brain: str | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Draws of scans, new ones or those of a draws.json.

    Attributes:
        head: of draws.json.
        settings: of the draws.
        draws: for each path of a scan, functions that return a draw.
        masks: lesion masks.
        brain: path of the brain mask, or None.
        left_out: (file, reason) of image files in the folders given that are not scans.
        failures: a line for each argument in which there is no scan.
    """

    head: dict[str, Any]
    settings: FluidSettings
    draws: dict[str, list[Callable[[], Draw]]]
    masks: MaskFiles
    brain: str | None
    left_out: tuple[tuple[Path, str], ...] = ()
    failures: tuple[str, ...] = ()


def make(request: Request, out: Path, volumes: bool = True) -> Path:
    """Draw pairs, paint them, and write their files.

    A scan that cannot be used does not stop the others; the error names all of them at the end.

    Args:
        request: the pairs.
        out: an empty or new folder.
        volumes: write NIfTI files too, not only pictures and draws.json.

    Returns:
        Path of draws.json.

    Raises:
        UserError: an output folder in use, a scan or a mask that cannot be used.
    """
    found = given_scans(request.scans, out)
    if request.brain is not None and len(found.scans) != 1:
        raise UserError(f'--brain belongs to one scan, and {len(found.scans)} are given')
    masks = MaskFiles(request.lesions and _absolute(request.lesions))
    draws = {}
    for number, scan in enumerate(found.scans):
        draws[_absolute(scan)] = [
            functools.partial(draw_of, request.seed, number, i, request.settings, len(masks))
            for i in range(request.num_pairs)
        ]
    head = records.header(request.settings, request.seed, request.num_pairs)
    brain = request.brain and _absolute(request.brain)
    plan = _Plan(head, request.settings, draws, masks, brain, found.left_out, found.failures)
    return _write(plan, out, volumes)


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())


def replay(path: Path, out: Path, volumes: bool = True) -> Path:
    """Make the files of a draws.json again, from the same scans and masks.

    Args:
        path: the draws.json, which may have been edited.
        out, volumes: see `make`.

    Returns:
        Path of the new draws.json.

    Raises:
        UserError: the file is not a draws.json, or a scan or a mask is missing or has changed.
    """
    record, settings = records.load(path)
    lesions = record.get('lesions') or {'folder': None, 'files': {}}
    brain = record['scans'][0].get('brain')
    records.check_files({scan['path']: scan['sha256'] for scan in record['scans']})
    records.check_files(lesions['files'])
    if brain:
        records.check_files({brain['path']: brain['sha256']})
        brain = brain['path']
    draws = {}
    for scan in record['scans']:  # all are read before any is painted
        draws[scan['path']] = [
            functools.partial(lambda draw: draw, records.from_record(pair['draw'], settings, where))
            for where, pair in (
                (f'{path}, pair {number} of {scan["path"]}', pair)
                for number, pair in enumerate(scan['pairs'], 1)
            )
        ]
    masks = MaskFiles(lesions['folder'], [Path(file) for file in lesions['files']])
    head = records.header(settings, record['seed'], record['n'])
    return _write(_Plan(head, settings, draws, masks, brain), out, volumes)


def _write(plan: _Plan, out: Path, volumes: bool) -> Path:
    """Paint all draws and write their files; returns the path of draws.json."""
    names = _names(plan.draws)
    page, masks = out / 'draws.json', plan.masks
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'{out} holds files already; choose another --out')
    disk.check_output(out, '--out')
    environment.check_devices()
    out.mkdir(parents=True, exist_ok=True)
    scans, failed = [], {}
    with tqdm(total=sum(map(len, plan.draws.values())), desc='pairs', unit='pair') as progress:
        for path, name in names.items():
            try:
                pairs = _paint_scan(path, plan, out / name, volumes, not scans, progress)
            except Exception as error:  # one strange file must not stop the others
                shutil.rmtree(out / name, ignore_errors=True)  # not a part of its pairs
                if disk.is_of_disk(error):
                    reason = disk.reason(error, out)
                    raise DiskError(f'--out: {shown(out)}: {reason}') from error
                failed[path] = failure_line(path, error)
                continue
            brain = plan.brain and {'path': plan.brain, 'sha256': image_files.checksum(plan.brain)}
            checksum = image_files.checksum(path)
            scans.append(
                {'path': path, 'sha256': checksum, 'brain': brain, 'folder': name, 'pairs': pairs}
            )
    if scans:
        files = {str(file): image_files.checksum(file) for file in masks.paths}
        content = {**plan.head, 'lesions': {'folder': masks.folder, 'files': files}, 'scans': scans}
        realised = [pair['realised'] for scan in scans for pair in scan['pairs']]
        write_bytes(out / 'distribution.png', distribution_figure(realised))
        write_text(page, json.dumps(content, indent=1) + '\n')
    _report(plan, len(scans), failed)
    return page


def _report(plan: _Plan, used: int, failed: Mapping[str, str]) -> None:
    """Say how many files were used, and name the others.

    Raises:
        UserError: a scan failed, or an argument named none.
    """
    problems = [*failed.values(), *plan.failures]
    if used + len(plan.left_out) + len(failed) > 1:
        for line in scan_folders.counted(used, plan.left_out, len(failed)):
            tell(line)
    if failed:
        total = used + len(failed)
        raise UserError(f'{len(failed)} of {total} scans failed: ' + '; '.join(problems))
    if problems:
        raise UserError('; '.join(problems))


def _names(scans: Iterable[str]) -> dict[str, str]:
    """A folder name for each scan, from its file name and, where needed, its folders."""
    paths = list(scans)
    names = [short_name(name) for name in distinct_names([Path(path) for path in paths])]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(
                f"{paths[number]}: would be called '{name}' like {paths[names.index(name)]}; "
                'rename one'
            )
    return dict(zip(paths, names))


def _paint_scan(
    path: str, plan: _Plan, folder: Path, volumes: bool, animated: bool, progress: tqdm
) -> list[dict]:
    """Paint the pairs of a scan and write its files; returns the records of the pairs."""
    healthy = load_healthy(path, plan.brain)
    if volumes:
        volume_io.save_like(folder / 'healthy.nii.gz', healthy.volume.data, healthy.volume)
    results, examples = [], {}
    for number, make_draw in enumerate(plan.draws[path], 1):
        draw = make_draw()
        pair = paint(draw, healthy, plan.masks, plan.settings)
        results.append(
            {'draw': records.to_record(draw), 'realised': _realised(draw, pair, healthy)}
        )
        if volumes:
            _save_pair(folder, number, healthy, pair)
        if pair.mask.any() and len(examples) < _SHEET_ROWS:
            examples[number] = pair
        progress.update()
    if examples:
        write_bytes(folder / 'contact_sheet.png', contact_sheet(healthy, examples))
        if animated:
            first = next(iter(examples.values()))
            write_bytes(folder / 'flow.gif', flow_animation(healthy, plan.settings, first))
    return results


def _realised(draw: Draw, pair: Pair, healthy: Healthy) -> dict[str, Any]:
    """The lesion of a draw: volume in ml, number of pieces, contrast, centre in the scan's mm."""
    if not pair.mask.any():
        return {'diseased': False, 'volume_ml': 0.0, 'pieces': 0}
    centre = healthy.affine @ [*np.argwhere(pair.mask).mean(axis=0), 1.0]
    mean = float(healthy.image[pair.mask].mean())
    change = float(pair.change[pair.mask].mean())
    return {
        'diseased': True,
        'volume_ml': float(pair.mask.sum()) * healthy.grid.voxel_ml,
        'pieces': int(ndimage.label(pair.mask, np.ones((3, 3, 3)))[1]),
        'time': float(draw.time),
        'from_bank': int(np.sum(np.asarray(draw.seeds.from_bank)[: int(draw.count)])),
        'seeds': int(draw.count),
        'peak_probability': float(pair.probability.max()),
        'relative_change': change / mean if mean > 0 else 0.0,
        'centre_mm': [round(float(x), 2) for x in centre[:3]],
    }


def _save_pair(folder: Path, number: int, healthy: Healthy, pair: Pair) -> None:
    for kind, values in (
        ('diseased', diseased(healthy, pair)),
        ('mask', healthy.whole(pair.mask.astype(np.uint8))),
        ('probability', healthy.whole(pair.probability)),
    ):
        volume_io.save_like(folder / f'{number:03d}_{kind}.nii.gz', values, healthy.volume)


@environment.single_precision
def pseudo_pathology(
    image: scan_images.Scan,
    seed: int,
    settings: FluidSettings | Mapping[str, Any] | None = None,
    lesions: str | os.PathLike | None = None,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A healthy scan with simulated lesions, carried along a random flow, and their mask.

    It is the first pair that `fluidjax randomize` makes of the scan with the same seed.

    Args:
        image: a healthy, skull-stripped T1w scan, as a nibabel image or a file's path.
        seed: of all draws, 0 or more: the same seed gives the same lesions.
        settings: what to draw, or the fields of `configs/fluid.py` to change, such as
            `{'lesion_count': (1, 3), 'size_ml': (2.0, 30.0)}`.
        lesions: folder of lesion masks, in MNI space or on the scan's voxels; by default lesions
            are cut from Perlin noise.

    Returns:
        The diseased image, float32 in the scan's own intensities and equal to it outside the
        lesions, and the mask, uint8; both on the scan's voxels.

    Raises:
        UserError: a scan, a mask or a setting that cannot be used.
    """
    from configs import fluid

    if type(seed) is not int or not 0 <= seed < 2**31:
        raise UserError(f'seed: {seed!r} must be a whole number of 0 or more, below 2**31')
    if not isinstance(settings, FluidSettings):
        fields = {**fluid.get_config().to_dict(), **(settings or {})}
        settings = settings_from(FluidSettings, fields, '')
    volume = scan_images.read(image)
    healthy = healthy_from(volume)
    masks = MaskFiles(None if lesions is None else _absolute(os.fspath(lesions)))
    pair = paint(draw_of(seed, 0, 0, settings, len(masks)), healthy, masks, settings)
    values = diseased(healthy, pair).astype(np.float32)
    mask = healthy.whole(pair.mask.astype(np.uint8))
    return tuple(volume_io.image_like(data, volume) for data in (values, mask))
