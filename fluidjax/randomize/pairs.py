"""Pairs of healthy and pseudo-diseased scans as files, for any framework to train on.

    OUT/draws.json                       every drawn number, the settings, the files it started from
    OUT/distribution.png                 volumes, counts and times that came of it
    OUT/SCAN/healthy.nii.gz              the scan as it is
    OUT/SCAN/001_diseased.nii.gz         equal to it where nothing was painted (or pushed)
    OUT/SCAN/001_mask.nii.gz, 001_probability.nii.gz
    OUT/SCAN/contact_sheet.png, flow.gif

All on the scan's own voxels, with its affine and header, in its own units of intensity.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from data_pipelines import scan_images, volume_io
from fluidjax.base.errors import UserError
from fluidjax.base.files import write_bytes, write_text
from fluidjax.base.settings import settings_from
from fluidjax.fluid.draws import Draw, draw_pair
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import lesion_of, paint_drawn
from fluidjax.fluid.settings import FluidSettings
from fluidjax.randomize import records as draw_records
from fluidjax.randomize.healthy import Healthy, MaskFiles, healthy_from, load_healthy
from fluidjax.randomize.pictures import Example, contact_sheet, distribution_figure, flow_animation

_SHEET_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        scans: healthy, skull-stripped NIfTI files.
        settings: what to draw.
        num_pairs: pairs a scan.
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


@functools.partial(jax.jit, static_argnames=('grid', 'settings'))
def _pair(
    draw: Draw,
    image: jax.Array,
    brain: jax.Array,
    bank: jax.Array | None,
    grid: Grid,
    settings: FluidSettings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(painted - healthy, mask, probability), each (x, y, z); all 0 for a healthy pair."""
    P, mask = lesion_of(draw, brain, grid, settings, bank)
    change = paint_drawn(draw, image, brain, P, mask, grid, settings) - image
    return jax.tree.map(lambda v: jnp.where(draw.diseased, v, 0.0), (change, mask, P))


def make(request: Request, out: Path, volumes: bool = True) -> Path:
    """Draw, paint and write.

    A scan that cannot be used does not stop the others; they are listed at the end.

    Returns:
        Path of draws.json.

    Raises:
        UserError: an output folder in use, a scan or a mask that cannot be used.
    """
    if request.brain is not None and len(request.scans) != 1:
        raise UserError(f'--brain belongs to one scan, and {len(request.scans)} are given')
    brain = request.brain and str(Path(request.brain).expanduser().absolute())
    lesions = request.lesions and str(Path(request.lesions).expanduser().absolute())
    masks = MaskFiles(lesions)
    key = jax.random.key(request.seed)
    draws = {}
    for i, scan in enumerate(request.scans):
        path = str(Path(scan).expanduser().absolute())
        if path in draws:
            raise UserError(f'{scan}: is given twice')
        keys = [jax.random.fold_in(jax.random.fold_in(key, i), j) for j in range(request.num_pairs)]
        draws[path] = [functools.partial(draw_pair, k, request.settings, len(masks)) for k in keys]
    record = draw_records.header(request.settings, request.seed, request.num_pairs)
    return _write(record, request.settings, draws, masks, brain, out, volumes)


def replay(path: Path, out: Path, volumes: bool = True) -> Path:
    """Make the files of a draws.json again, from the same scans and masks.

    Raises:
        UserError: the file is none of ours, or a scan or a mask is gone or changed.
    """
    record, settings = draw_records.load(path)
    lesions = record.get('lesions') or {'folder': None, 'files': {}}
    for file, expected in {s['path']: s['sha256'] for s in record['scans']}.items():
        draw_records.check_file(file, expected)
    for file, expected in lesions['files'].items():
        draw_records.check_file(file, expected)
    brain = record['scans'][0].get('brain')
    if brain:
        draw_records.check_file(brain['path'], brain['sha256'])
        brain = brain['path']
    draws = {}
    for scan in record['scans']:  # all are read before any is painted
        made = [
            draw_records.from_record(
                pair['draw'], settings, f'{path}, pair {number} of {scan["path"]}'
            )
            for number, pair in enumerate(scan['pairs'], 1)
        ]
        draws[scan['path']] = [functools.partial(lambda draw: draw, draw) for draw in made]
    masks = MaskFiles(lesions['folder'], [Path(file) for file in lesions['files']])
    head = draw_records.header(settings, record['seed'], record['n'])
    return _write(head, settings, draws, masks, brain, out, volumes)


def _write(
    record: dict[str, Any],
    settings: FluidSettings,
    draws: dict[str, list],
    masks: MaskFiles,
    brain: str | None,
    out: Path,
    volumes: bool,
) -> Path:
    names = _names(draws)
    page = out / 'draws.json'
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'{out} holds files already; choose another --out')
    out.mkdir(parents=True, exist_ok=True)
    scans, failed = [], []
    progress = tqdm(total=sum(map(len, draws.values())), desc='pairs', unit='pair')
    for path, name in names.items():
        try:
            healthy = load_healthy(path, brain)
            pairs = _paint_scan(
                healthy, draws[path], settings, masks, out / name, volumes, not scans, progress
            )
        except UserError as error:
            failed.append(str(error))
            shutil.rmtree(out / name, ignore_errors=True)  # a part of its pairs would mislead
            continue
        scans.append(
            {
                'path': path,
                'sha256': draw_records.checksum(path),
                'brain': brain and {'path': brain, 'sha256': draw_records.checksum(brain)},
                'folder': name,
                'pairs': pairs,
            }
        )
    progress.close()
    if scans:
        record['lesions'] = {
            'folder': masks.folder,
            'files': {str(file): draw_records.checksum(file) for file in masks.paths},
        }
        record['scans'] = scans
        realised = [pair['realised'] for scan in scans for pair in scan['pairs']]
        write_bytes(out / 'distribution.png', distribution_figure(realised))
        write_text(page, json.dumps(record, indent=1) + '\n')
    if failed:
        raise UserError(f'{len(failed)} of {len(names)} scans failed: ' + '; '.join(failed))
    return page


def _names(scans: dict[str, list]) -> dict[str, str]:
    """A folder name for each scan: its file's, with as many of its folders as tell all apart."""
    folders = {path: Path(path).parts[1:-1] for path in scans}
    for depth in range(1 + max(map(len, folders.values()))):
        names = {
            path: '_'.join([*folder[max(0, len(folder) - depth) :], volume_io.strip_ending(path)])
            for path, folder in folders.items()
        }
        if len(set(names.values())) == len(names):
            return names
    raise UserError(
        f'{next(iter(scans))}: its folder has no name of its own beside x.nii and '
        'x.nii.gz; rename one'
    )


def _paint_scan(
    healthy: Healthy,
    draws: list,
    settings: FluidSettings,
    masks: MaskFiles,
    folder: Path,
    volumes: bool,
    animated: bool,
    progress: tqdm,
) -> list[dict]:
    """Paint every pair of a scan and write its files; the records of its pairs."""
    image, brain = jnp.asarray(healthy.image), jnp.asarray(healthy.brain)
    records, examples = [], []
    if volumes:
        volume_io.save_like(folder / 'healthy.nii.gz', healthy.volume.data, healthy.volume)
    for number, make_draw in enumerate(draws, 1):
        draw = make_draw()
        bank, local = _bank_of(draw, masks, healthy)
        change, mask, P = (
            np.asarray(v) for v in _pair(local, image, brain, bank, healthy.grid, settings)
        )
        records.append(
            {
                'draw': draw_records.to_record(draw),
                'realised': _realised(draw, mask, P, change, healthy),
            }
        )
        if volumes:
            _save_pair(folder, number, healthy, change, mask, P)
        if mask.any() and len(examples) < _SHEET_ROWS:
            examples.append(Example(number, local, bank, np.asarray(image) + change, mask > 0, P))
        progress.update()
    if examples:
        write_bytes(
            folder / 'contact_sheet.png',
            contact_sheet(np.asarray(image), healthy.brain, healthy.affine, examples),
        )
    if examples and animated:
        write_bytes(
            folder / 'flow.gif',
            flow_animation(np.asarray(image), healthy.brain, healthy.grid, settings, examples[0]),
        )
    return records


def _bank_of(draw: Draw, masks: MaskFiles, scan: Healthy) -> tuple[np.ndarray | None, Draw]:
    """The masks a draw asks for, (seeds, x, y, z) uint8, and the draw with their places in it."""
    if not len(masks):
        return None, draw
    seeds, count = draw.seeds, int(draw.count)
    bank = np.zeros((seeds.bank_index.shape[0], *scan.grid.shape), np.uint8)
    for i in range(len(bank)):
        if i < count and bool(seeds.from_bank[i]):
            bank[i] = masks.on(scan, int(seeds.bank_index[i]))
        else:
            bank[i, 0, 0, 0] = 1  # computed with, and not used
    return bank, draw._replace(seeds=seeds._replace(bank_index=jnp.arange(len(bank))))


def _realised(
    draw: Draw, mask: np.ndarray, P: np.ndarray, change: np.ndarray, healthy: Healthy
) -> dict[str, Any]:
    """What came of a draw: volumes in ml, number of pieces, contrast, centre in the scan's mm."""
    lesion = mask > 0
    if not lesion.any():
        return {'diseased': False, 'volume_ml': 0.0, 'pieces': 0}
    centre = healthy.affine @ [*np.argwhere(lesion).mean(axis=0), 1.0]
    mean = float(healthy.image[lesion].mean())
    return {
        'diseased': True,
        'volume_ml': float(lesion.sum()) * healthy.grid.voxel_ml,
        'pieces': int(ndimage.label(lesion, np.ones((3, 3, 3)))[1]),
        'time': float(draw.time),
        'from_bank': int(np.sum(np.asarray(draw.seeds.from_bank)[: int(draw.count)])),
        'seeds': int(draw.count),
        'peak_probability': float(P.max()),
        'relative_change': float(change[lesion].mean()) / mean if mean > 0 else 0.0,
        'centre_mm': [round(float(x), 2) for x in centre[:3]],
    }


def _save_pair(
    folder: Path, number: int, healthy: Healthy, change: np.ndarray, mask: np.ndarray, P: np.ndarray
) -> None:
    scan = healthy.volume
    for kind, values in (
        ('diseased', painted(healthy, change)),
        ('mask', healthy.whole(mask.astype(np.uint8))),
        ('probability', healthy.whole(P)),
    ):
        volume_io.save_like(folder / f'{number:03d}_{kind}.nii.gz', values, scan)


def painted(healthy: Healthy, change: np.ndarray) -> np.ndarray:
    """The whole scan in its own intensities with a change `(x, y, z)` of its box painted in."""
    inside = healthy.volume.data[healthy.box]
    values = np.maximum(inside + healthy.scale * change, healthy.background)  # rounding apart
    return healthy.whole(np.where(change != 0, values, inside), healthy.volume.data)


def one_pair(
    healthy: Healthy, settings: FluidSettings, seed: int, lesions: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One diseased image and its mask, on the voxels of a scan in RAS+ order.

    The first pair of `make` with one scan and the same seed.

    Args:
        healthy: the scan.
        settings: what to draw; a healthy pair has an empty mask.
        seed: of all draws.
        lesions: folder of lesion masks, or None.

    Returns:
        (x, y, z) float32 in the scan's own intensities, and (x, y, z) uint8.
    """
    masks = MaskFiles(lesions)
    key = jax.random.key(seed)
    draw = draw_pair(jax.random.fold_in(jax.random.fold_in(key, 0), 0), settings, len(masks))
    bank, local = _bank_of(draw, masks, healthy)
    change, mask, _ = (
        np.asarray(v)
        for v in _pair(
            local,
            jnp.asarray(healthy.image),
            jnp.asarray(healthy.brain),
            bank,
            healthy.grid,
            settings,
        )
    )
    return painted(healthy, change), healthy.whole((mask > 0).astype(np.uint8))


def pseudo_pathology(
    image: scan_images.Scan,
    seed: int,
    settings: FluidSettings | Mapping[str, Any] | None = None,
    lesions: str | os.PathLike | None = None,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A healthy scan with lesions painted in, carried along a random flow, and their mask.

    Args:
        image: a healthy, skull-stripped T1w scan, as a nibabel image or a file's path.
        seed: of all draws, 0 or more: the same seed gives the same lesions.
        settings: what to draw, or the fields of `configs/fluid.py` that differ from it, such as
            `{'lesion_count': (1, 3), 'size_ml': (2.0, 30.0)}`.
        lesions: folder of lesion masks to carry, in MNI space or on the scan's voxels; without,
            lesions are cut from Perlin noise.

    Returns:
        The diseased image, float32 in the scan's own intensities and equal to it where nothing was
        painted, and the mask, uint8; both on the scan's voxels.

    Raises:
        UserError: a scan, a mask or a setting that cannot be used.
    """
    from configs import fluid

    if type(seed) is not int or not 0 <= seed < 2**31:
        raise UserError(f'seed: {seed!r} must be a whole number of 0 or more, below 2**31')
    if not isinstance(settings, FluidSettings):
        fields = {**fluid.get_config().to_dict(), **(settings or {})}
        settings = settings_from(FluidSettings, fields, '')
    original, volume = scan_images.read(image)
    healthy = healthy_from(volume)
    folder = None if lesions is None else os.fspath(Path(lesions).expanduser().absolute())
    diseased, mask = one_pair(healthy, settings, seed, folder)
    return (
        scan_images.on_image(diseased.astype(np.float32), volume, original),
        scan_images.on_image(mask, volume, original),
    )
