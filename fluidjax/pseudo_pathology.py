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
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from data_pipelines import grids, resampling, volume_io
from data_pipelines.preprocess import background_level, find_brain, resample_mask
from data_pipelines.scan_folders import nifti_files
from data_pipelines.volume_io import Volume
from fluidjax import draw_records
from fluidjax.errors import UserError
from fluidjax.files import write_bytes, write_text
from fluidjax.fluid.draws import Draw, draw_pair
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import lesion_of, paint_drawn
from fluidjax.fluid.settings import FluidSettings
from fluidjax.pair_pictures import Example, contact_sheet, distribution_figure, flow_animation

_PAD_TO = 16  # boxes around brains are widened to a multiple, so that scans share compiled code
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


@dataclasses.dataclass(frozen=True)
class Healthy:
    """A scan ready to be painted.

    Attributes:
        volume: as it lies in its file, RAS+.
        box: the part around the brain that is worked on.
        brain: (x, y, z) bool, in the box.
        background, scale: the box's image is (volume - background) / scale.
        grid: of the box.
    """

    volume: Volume
    box: tuple[slice, slice, slice]
    brain: np.ndarray
    background: float
    scale: float
    grid: Grid

    @property
    def image(self) -> np.ndarray:
        """(x, y, z) float32 in the box, 0 outside the brain, 1 at its brightest."""
        inside = (self.volume.data[self.box] - self.background) / self.scale
        return np.where(self.brain, np.maximum(inside, 0.0), 0.0).astype(np.float32)

    @property
    def affine(self) -> np.ndarray:
        """Voxel of the box -> the scan's world, mm."""
        affine = self.volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in self.box]
        return affine

    def whole(self, values: np.ndarray, outside: np.ndarray | float = 0) -> np.ndarray:
        """Values of the box on all of the scan's voxels."""
        full = np.empty(self.volume.data.shape, values.dtype)
        full[...] = outside
        full[self.box] = values
        return full


def load_healthy(path: str, brain_path: str | None = None) -> Healthy:
    """A scan and its brain.

    Raises:
        UserError: a file that cannot be used, or a mask that is not on the scan's voxels.
    """
    volume = volume_io.load_volume(path)
    if brain_path is None:
        brain, background = find_brain(volume)
        _warn_of_background(volume, background)
    else:
        brain, background = _given_brain(brain_path, volume), background_level(volume.data)
    box = _padded_box(brain)
    spacing = tuple(float(h) for h in resampling.voxel_sizes(volume.affine))
    scale = float(volume.data[brain].max()) - background
    if not scale > 0:
        raise UserError(f'{path}: its brain is no brighter than its background; give a T1w scan')
    try:
        grid = Grid(brain[box].shape, spacing)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    return Healthy(volume, box, brain[box], background, scale, grid)


def _warn_of_background(volume: Volume, background: float) -> None:
    """Say so where the volume's faces are not its darkest part, as the search for it assumes."""
    brightest = float(np.percentile(volume.data, 99.5)) - background
    if np.mean(volume.data < background - 0.05 * abs(brightest)) > 0.01:
        tqdm.write(f'{volume.path}: much of it is darker than its background; look at the contact '
                   'sheet, and give --brain=MASK if part of the brain is missing', file=sys.stderr)


def _on_same_voxels(mask: Volume, scan: Volume) -> bool:
    return mask.data.shape == scan.data.shape and np.allclose(mask.affine, scan.affine, atol=1e-2)


def _given_brain(path: str, scan: Volume) -> np.ndarray:
    mask = volume_io.load_volume(path)
    if mask.data.shape != scan.data.shape:
        raise UserError(f'{path}: mask of shape {mask.data.shape} on a scan of shape '
                        f'{scan.data.shape} ({scan.path}); resample it to the scan')
    if not _on_same_voxels(mask, scan):
        raise UserError(f'{path}: its affine differs from that of {scan.path}; resample it to the '
                        'scan, or mend its header')
    return mask.data > 0


def _padded_box(brain: np.ndarray) -> tuple[slice, slice, slice]:
    """Around the brain, one voxel of margin, lengths a multiple of 16 where the scan has room."""
    box = []
    for side, n in zip(ndimage.find_objects(brain.astype(np.uint8))[0], brain.shape):
        length = min(n, -(-(side.stop - side.start + 2) // _PAD_TO) * _PAD_TO)
        start = min(max(0, (side.start + side.stop - length) // 2), n - length)
        box.append(slice(start, start + length))
    return tuple(box)


def _usable(paths: list[Path], folder: str) -> list[Path]:
    """The masks that can be read; the others are named and left out."""
    usable = []
    for path in tqdm(paths, desc='lesion masks', unit='mask', leave=False):
        try:
            volume_io.load_volume(path)
            usable.append(path)
        except UserError as error:
            tqdm.write(f'left out: {error}', file=sys.stderr)
    if not usable:
        raise UserError(f'--lesions: no mask in {folder} can be used')
    return usable


class MaskFiles:
    """A folder of lesion masks, each read and brought onto a scan when it is drawn."""

    def __init__(self, folder: str | None, paths: Sequence[Path] | None = None) -> None:
        self.folder = folder
        self.paths = list(paths or [])
        if folder and not paths:
            self.paths = _usable(nifti_files(Path(folder), '--lesions'), folder)

    def __len__(self) -> int:
        return len(self.paths)

    def on(self, scan: Healthy, index: int) -> np.ndarray:
        """A mask on the box of a scan, (x, y, z) uint8.

        A mask on the scan's own voxels lies where it lies; any other is taken to be in MNI space,
        and the middle of the MNI brain is laid on the middle of the scan's.

        Raises:
            UserError: an empty mask, or one of which nothing comes to lie on the scan.
        """
        path = self.paths[index]
        mask = volume_io.load_volume(path)
        volume = scan.volume
        if _on_same_voxels(mask, volume):
            on_scan = mask.data[scan.box] > 0
        else:
            box = ndimage.find_objects(scan.brain.astype(np.uint8))[0]
            middle = [0.5 * (side.start + side.stop - 1) for side in box]
            affine = scan.affine
            shift = affine[:3, :3] @ middle + affine[:3, 3] - grids.MNI_BRAIN_CENTRE
            affine[:3, 3] -= shift
            on_scan = resample_mask(mask.data > 0, mask.affine, scan.grid.shape, affine)
        if not on_scan.any():
            raise UserError(f'{path}: nothing of this mask comes to lie on {volume.path}; masks of '
                            "--lesions must be in MNI space or on the scan's voxels")
        return on_scan.astype(np.uint8)


@functools.partial(jax.jit, static_argnames=('grid', 'settings'))
def _pair(draw: Draw, image: jax.Array, brain: jax.Array, bank: jax.Array | None, grid: Grid,
          settings: FluidSettings) -> tuple[jax.Array, jax.Array, jax.Array]:
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
    draws = {
        scan['path']: [functools.partial(draw_records.from_record, pair['draw'], settings,
                                         f'{path}, pair {number} of {scan["path"]}')
                       for number, pair in enumerate(scan['pairs'], 1)]
        for scan in record['scans']}
    masks = MaskFiles(lesions['folder'], [Path(file) for file in lesions['files']])
    head = draw_records.header(settings, record['seed'], record['n'])
    return _write(head, settings, draws, masks, brain, out, volumes)


def _write(record: dict[str, Any], settings: FluidSettings, draws: dict[str, list],
           masks: MaskFiles, brain: str | None, out: Path, volumes: bool) -> Path:
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
            pairs = _paint_scan(healthy, draws[path], settings, masks, out / name, volumes,
                                not scans, progress)
        except UserError as error:
            failed.append(str(error))
            shutil.rmtree(out / name, ignore_errors=True)  # a part of its pairs would mislead
            continue
        scans.append({'path': path, 'sha256': draw_records.checksum(path),
                      'brain': brain and {'path': brain,
                                          'sha256': draw_records.checksum(brain)},
                      'folder': name, 'pairs': pairs})
    progress.close()
    if scans:
        record['lesions'] = {'folder': masks.folder, 'files': {
            str(file): draw_records.checksum(file) for file in masks.paths}}
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
        names = {path: '_'.join([*folder[max(0, len(folder) - depth):],
                                 volume_io.strip_ending(path)]) for path, folder in folders.items()}
        if len(set(names.values())) == len(names):
            return names
    raise UserError(f'{next(iter(scans))}: its folder has no name of its own beside x.nii and '
                    'x.nii.gz; rename one')


def _paint_scan(healthy: Healthy, draws: list, settings: FluidSettings, masks: MaskFiles,
                folder: Path, volumes: bool, animated: bool, progress: tqdm) -> list[dict]:
    """Paint every pair of a scan and write its files; the records of its pairs."""
    image, brain = jnp.asarray(healthy.image), jnp.asarray(healthy.brain)
    records, examples = [], []
    if volumes:
        volume_io.save_like(folder / 'healthy.nii.gz', healthy.volume.data, healthy.volume)
    for number, make_draw in enumerate(draws, 1):
        draw = make_draw()
        bank, local = _bank_of(draw, masks, healthy)
        change, mask, P = (np.asarray(v) for v in _pair(
            local, image, brain, bank, healthy.grid, settings))
        records.append({'draw': draw_records.to_record(draw),
                        'realised': _realised(draw, mask, P, change, healthy)})
        if volumes:
            _save_pair(folder, number, healthy, change, mask, P)
        if mask.any() and len(examples) < _SHEET_ROWS:
            examples.append(Example(number, local, bank, np.asarray(image) + change, mask > 0, P))
        progress.update()
    if examples:
        write_bytes(folder / 'contact_sheet.png',
                    contact_sheet(np.asarray(image), healthy.brain, healthy.affine, examples))
    if examples and animated:
        write_bytes(folder / 'flow.gif', flow_animation(
            np.asarray(image), healthy.brain, healthy.grid, settings, examples[0]))
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


def _realised(draw: Draw, mask: np.ndarray, P: np.ndarray, change: np.ndarray,
              healthy: Healthy) -> dict[str, Any]:
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
        'from_bank': int(np.sum(np.asarray(draw.seeds.from_bank)[:int(draw.count)])),
        'seeds': int(draw.count),
        'peak_probability': float(P.max()),
        'relative_change': float(change[lesion].mean()) / mean if mean > 0 else 0.0,
        'centre_mm': [round(float(x), 2) for x in centre[:3]],
    }


def _save_pair(folder: Path, number: int, healthy: Healthy, change: np.ndarray, mask: np.ndarray,
               P: np.ndarray) -> None:
    scan = healthy.volume
    inside = scan.data[healthy.box]
    painted = np.maximum(inside + healthy.scale * change, healthy.background)  # rounding apart
    painted = np.where(change != 0, painted, inside)
    for kind, values in (('diseased', healthy.whole(painted, scan.data)),
                         ('mask', healthy.whole(mask.astype(np.uint8))),
                         ('probability', healthy.whole(P))):
        volume_io.save_like(folder / f'{number:03d}_{kind}.nii.gz', values, scan)
