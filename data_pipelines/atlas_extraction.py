"""The brain in a whole head, by registration to the MNI152 brain and by intensity.

The template has no skull, so the scalp is removed before the head is registered, from several
starts: the dark skull that remains then lies where the template is dark. The scale of this
registration is still wrong by a few percent, as it depends on the thickness of the skull. So the
tissue within the template's brain and a wide margin is registered once more, now without a skull.
Tissue near the border of the template's brain in its new place then belongs to the brain or not by
its intensity.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from data_pipelines import grids, head_mask, mni_template, orientation, registration, resampling
from data_pipelines.volume_io import Volume

# The scalp: everything less than this below the surface of the head.
PEEL_MM = 9.0
FIXED_MARGIN_MM = 4.0
START_LEVELS = ((2, 4.0),)
# Starts: the brain's centre below the top of the head, with these shifts (mm) and nods (radians).
CENTRE_BELOW_TOP_MM = 92.0
STARTS = ((0.0, 0.0), (-20.0, 0.0), (20.0, 0.0), (0.0, 0.3), (0.0, -0.3))
# Width and length of the head, with scalp, that belong to the template's brain.
MNI_HEAD_MM = np.array([158.0, 200.0])
# Grid of the intensity-based step.
GRID = grids.ModelGrid((96, 112, 96), (2.0, 2.0, 2.0))
FLATTENING_MM = 12.0
FLATTENINGS = 3
# Tissue is searched up to this far outside the template's brain, in the two passes.
REACH_MM = (12.0, 6.0)
# Deeper inside the template's brain everything is brain, of any intensity (a lesion).
SURE_MM = (10.0, 3.0)
OPENING_MM, CLOSING_MM = 3.0, 8.0


@dataclasses.dataclass(frozen=True)
class AtlasBrain:
    """A brain found with the atlas.

    Attributes:
      brain: on the scan's voxels, (x, y, z) bool.
      scan_from_mni: MNI152 world -> scan world, (4, 4).
      agreement: correlation of scan and template inside the brain; above about 0.4 for T1w.
      volume_ml: of the brain in the scan.
      overlap: Dice of the brain and the template's, in MNI152 space.
    """

    brain: np.ndarray
    scan_from_mni: np.ndarray
    agreement: float
    volume_ml: float
    overlap: float


def find_brain(scan: Volume, coarse: head_mask.Coarse) -> AtlasBrain | None:
    """The brain in a whole head; None if there is no tissue at the place of the brain.

    Args:
      scan: a whole head.
      coarse: `head_mask.coarse_head` of it.
    """
    image = scan.data - head_mask.air_level(scan.data)
    scan_from_mni = _register_head(coarse)
    for reach, sure in zip(REACH_MM, SURE_MM, strict=True):
        affine = scan_from_mni @ GRID.affine
        seen = _read(image, scan.affine, affine)
        brain = _tissue(seen, reach, sure)
        if brain is None:
            return None
        if reach == REACH_MM[0]:
            masked = np.where(brain, np.maximum(seen, 0), 0).astype(np.float32)
            scan_from_mni = registration.register_to_mni(masked, brain, affine)
    return _on_scan(scan, seen, brain, scan_from_mni)


def _register_head(coarse: head_mask.Coarse) -> np.ndarray:
    """scan_from_mni, (4, 4), from the best of several starts."""
    fixed, fixed_mask = _fixed_images()
    moving, points = _moving_image(coarse)
    with registration.one_thread():
        tried = [_similarity(fixed, fixed_mask, moving, start) for start in _starts(points)]
        _, best = min(tried, key=lambda pair: pair[0])
        full = sitk.AffineTransform(3)
        full.SetCenter(grids.MNI_BRAIN_CENTRE)
        full.SetMatrix(best.GetMatrix())
        full.SetTranslation(best.GetTranslation())
        method = registration.registration_method(
            fixed_mask, full, registration.AFFINE_LEVELS, registration.AFFINE_STEP_MM
        )
        method.Execute(fixed, moving)
    return registration.as_matrix(full)


def likeliest_rotation(coarse: head_mask.Coarse) -> np.ndarray:
    """The rotation of a head's world, (3, 3), with which it is registered best from one start.

    One of `orientation.rotations`; the world that the header should have is `rotation @ world`.
    """
    fixed, fixed_mask = _fixed_images()

    def metric(rotation: np.ndarray) -> float:
        moving, points = _moving_image(turned(coarse, rotation))
        return _similarity(fixed, fixed_mask, moving, _starts(points)[0])[0]

    with registration.one_thread():
        return min(orientation.rotations(), key=metric)


def turned(scan: Volume | head_mask.Coarse, rotation: np.ndarray) -> Volume | head_mask.Coarse:
    """A scan in a rotated world."""
    return dataclasses.replace(scan, affine=orientation.turned(rotation, scan.affine))


def _similarity(
    fixed: sitk.Image, fixed_mask: sitk.Image, moving: sitk.Image, start: sitk.Transform
) -> tuple[float, sitk.Transform]:
    """The final metric (lower is better) and the transform; infinity if it left the scan."""
    method = registration.registration_method(
        fixed_mask, start, START_LEVELS, registration.SIMILARITY_STEP_MM
    )
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # all points were mapped outside of the scan
        return float('inf'), start
    return method.GetMetricValue(), start


def _starts(points: np.ndarray) -> list[sitk.Similarity3DTransform]:
    """Transforms to start from, by the extent of the head, (n, 3) world mm."""
    top = points[:, 2].max()
    low, high = np.percentile(points[points[:, 2] > top - 130, :2], (1, 99), axis=0)
    scale = float(np.clip(np.sqrt(np.prod((high - low) / MNI_HEAD_MM)), 0.8, 1.2))
    starts = []
    for shift, nod in STARTS:
        centre = np.array([*(low + high) / 2, top - CENTRE_BELOW_TOP_MM * scale + shift])
        start = sitk.Similarity3DTransform()
        start.SetCenter(grids.MNI_BRAIN_CENTRE)
        start.SetRotation((1.0, 0.0, 0.0), nod)
        start.SetScale(scale)
        start.SetTranslation((centre - grids.MNI_BRAIN_CENTRE).tolist())
        starts.append(start)
    return starts


def _fixed_images() -> tuple[sitk.Image, sitk.Image]:
    """The template, and its brain with a margin, on the grid of the registration."""
    grid, sitk_image = registration.TEMPLATE_GRID, registration.sitk_image
    maps = mni_template.on_grid(grid)
    margin = _signed_distance(maps.brain >= 0.5, grid.spacing[0]) <= FIXED_MARGIN_MM
    return sitk_image(maps.t1, grid), sitk_image(margin.astype(np.uint8), grid)


def _moving_image(coarse: head_mask.Coarse) -> tuple[sitk.Image, np.ndarray]:
    """The head without scalp, axis-aligned in its own world; and the head's points, world mm."""
    points = np.argwhere(coarse.head) @ coarse.affine[:3, :3].T + coarse.affine[:3, 3]
    low, high = points.min(axis=0), points.max(axis=0)
    low[2] = max(low[2], high[2] - 240.0)  # without the shoulders
    spacing = registration.REGISTRATION_SPACING_MM
    shape = tuple(int(n) for n in np.ceil((high - low + 40.0) / spacing) + 1)
    grid = grids.ModelGrid(shape, (spacing,) * 3, centre=tuple(((low + high) / 2).tolist()))
    peeled = coarse.head & (head_mask.depth_below_surface(coarse) > PEEL_MM)
    level = np.median(coarse.data[peeled]) if peeled.any() else np.median(coarse.data[coarse.head])
    flat = np.where(peeled, np.clip(coarse.data / level, 0.0, 2.0), 0.0)
    smooth = resampling.antialias(flat, coarse.affine, spacing)
    moving = resampling.sample(smooth, coarse.affine, grid.positions())
    return registration.sitk_image(moving, grid), points


def _read(image: np.ndarray, affine: np.ndarray, target: np.ndarray) -> np.ndarray:
    """A volume on the 2 mm grid, 0 beyond its borders."""
    smooth = resampling.antialias(image, affine, GRID.spacing[0])
    return resampling.sample(smooth, affine, grids.voxel_positions(GRID.shape, target))


def _tissue(seen: np.ndarray, reach: float, sure: float) -> np.ndarray | None:
    """The brain on the 2 mm grid: bool, or None if there is too little tissue.

    Args:
      seen: intensities on that grid.
      reach: how far it may extend outside the template's brain, mm.
      sure: how far inside the template's brain everything belongs to it, mm.
    """
    spacing = GRID.spacing[0]
    maps = mni_template.on_grid(GRID)
    gm, wm, csf = maps.gm, maps.wm, maps.csf
    distance = _signed_distance(maps.brain >= 0.5, spacing)
    inner = (distance < -4) & (seen > 0)
    if inner.sum() < 0.3 * (distance < -4).sum():
        return None
    where = inner & (wm + gm > 0.8)
    for _ in range(FLATTENINGS):  # each reaches further out, where the shading is worst
        flat = seen / _local_level(seen, where)
        level = lambda fraction, least: float(np.median(flat[inner & (fraction > least)]))
        white, grey, fluid = level(wm, 0.85), level(gm, 0.8), level(csf, 0.7)
        darkest = max(fluid + 0.4 * (grey - fluid), 0.5 * grey)
        tissue = (flat > darkest) & (flat < 1.5 * max(white, grey)) & (distance < reach)
        where = tissue & (distance < reach / 2)
    core = _eroded(tissue, OPENING_MM)
    labels, count = ndimage.label(core)
    if not count:
        return None
    sizes = np.bincount(labels[distance < -8], minlength=count + 1)
    sizes[0] = 0
    brain = _dilated(labels == np.argmax(sizes), OPENING_MM + 1.0) & tissue
    brain |= (distance < -sure) & (seen > 0)
    pad = 8
    brain = _dilated(np.pad(brain, pad), CLOSING_MM)
    brain = ndimage.binary_fill_holes(_eroded(brain, CLOSING_MM)[pad:-pad, pad:-pad, pad:-pad])
    return ndimage.gaussian_filter(brain.astype(np.float32), 1.0) >= 0.5


def _local_level(seen: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean intensity of the tissue around each voxel, which varies slowly: the coil's shading."""
    sigma = FLATTENING_MM / GRID.spacing[0]
    top = np.percentile(seen[where], 99)
    weight = ndimage.gaussian_filter(where.astype(np.float32), sigma, truncate=3.0)
    total = ndimage.gaussian_filter(np.where(where, np.minimum(seen, top), 0), sigma, truncate=3.0)
    overall = float(np.median(seen[where]))
    # Far from all tissue this is the overall level.
    return np.maximum((total + 1e-3 * overall) / (weight + 1e-3), 0.2 * overall)


def _on_scan(
    scan: Volume, seen: np.ndarray, brain: np.ndarray, scan_from_mni: np.ndarray
) -> AtlasBrain:
    """The brain on the 2 mm grid as a mask on the scan's voxels, and how good it is."""
    maps = mni_template.on_grid(GRID)
    template = maps.brain >= 0.5
    inside = brain & template & (seen > 0)
    agreement = float(np.corrcoef(seen[inside], maps.t1[inside])[0, 1])
    mask = resampling.to_scan(brain, scan_from_mni @ GRID.affine, scan)
    volume = float(mask.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000)
    total = int(brain.sum() + template.sum())
    overlap = 2.0 * int((brain & template).sum()) / total
    return AtlasBrain(mask, scan_from_mni, agreement, volume, overlap)


def _signed_distance(mask: np.ndarray, spacing: float) -> np.ndarray:
    """Distance in mm to the border of a mask, negative inside."""
    edt = ndimage.distance_transform_edt
    return np.where(mask, -edt(mask, sampling=spacing), edt(~mask, sampling=spacing))


def _dilated(mask: np.ndarray, radius: float) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask, sampling=GRID.spacing[0]) <= radius


def _eroded(mask: np.ndarray, radius: float) -> np.ndarray:
    return ndimage.distance_transform_edt(mask, sampling=GRID.spacing[0]) > radius
