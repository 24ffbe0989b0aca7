"""The brain in a whole head, by registration to the MNI152 brain and by intensity.

The template has no skull, so the scalp is peeled off before the head is registered, from several
starts: what is left of the dark skull then lies where the template is dark. The registration's
scale is a few percent off nevertheless, as it hangs on the skull's thickness. So the tissue found
in the template's brain and a wide margin is registered once more, as a brain alone; its map puts
the template's brain where the tissue near its border then says what belongs to it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from data_pipelines import grids, head_mask, mni_template, registration, resampling, way_back
from data_pipelines.volume_io import Volume

# The scalp: what lies this little below the head's surface.
PEEL_MM = 9.0
FIXED_MARGIN_MM = 4.0
START_LEVELS = ((2, 4.0),)
# Starts: the brain's centre below the top of the head, with these shifts (mm) and nods (radians).
CENTRE_BELOW_TOP_MM = 92.0
STARTS = ((0.0, 0.0), (-20.0, 0.0), (20.0, 0.0), (0.0, 0.3), (0.0, -0.3))
# Length and width of the head, scalp included, that go with the template's brain.
MNI_HEAD_MM = np.array([158.0, 200.0])
# Grid of the intensity-based step.
GRID = grids.ModelGrid((96, 112, 96), (2.0, 2.0, 2.0))
FLATTENING_MM = 12.0
FLATTENINGS = 3
# Tissue is sought this far outside the template's brain, in the two passes.
REACH_MM = (12.0, 6.0)
# Deeper inside the template's brain everything is brain, whatever its intensity (a lesion).
SURE_MM = (10.0, 3.0)
OPENING_MM, CLOSING_MM = 3.0, 8.0


@dataclasses.dataclass(frozen=True)
class AtlasBrain:
    """What the atlas finds.

    Attributes:
      brain: on the scan's voxels, (x, y, z) bool.
      scan_from_mni: MNI152 world -> scan world, (4, 4).
      agreement: correlation of scan and template inside the brain, -1 to 1; T1w: above about 0.4.
      volume_ml: of the brain in the scan.
      overlap: Dice of the brain and the template's, seen through the map.
    """

    brain: np.ndarray
    scan_from_mni: np.ndarray
    agreement: float
    volume_ml: float
    overlap: float


def find_brain(scan: Volume) -> AtlasBrain | None:
    """The brain in a whole head; None where there is no head, or no tissue where it is sought."""
    coarse = head_mask.coarse_head(scan)
    if coarse is None:
        return None
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
    """scan_from_mni of the best of several starts."""
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


def _similarity(
    fixed: sitk.Image, fixed_mask: sitk.Image, moving: sitk.Image, start: sitk.Transform
) -> tuple[float, sitk.Transform]:
    """The metric (lower is better) at the end, and the transform; infinity where it got lost."""
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
    """Template and its brain with a margin, at registration resolution."""
    spacing = registration.REGISTRATION_SPACING_MM
    grid = grids.ModelGrid((48, 56, 48), (spacing,) * 3)
    maps = mni_template.load_template(spacing)
    read = lambda data: resampling.sample(data, maps.affine, grid.positions())
    margin = _signed_distance(read(maps.brain) >= 0.5, spacing) <= FIXED_MARGIN_MM
    sitk_image = registration.sitk_image
    return sitk_image(read(maps.t1), grid), sitk_image(margin.astype(np.uint8), grid)


def _moving_image(coarse: head_mask.Coarse) -> tuple[sitk.Image, np.ndarray]:
    """The head without scalp on an axis-aligned grid in its own world; its points, world mm."""
    points = np.argwhere(coarse.head) @ coarse.affine[:3, :3].T + coarse.affine[:3, 3]
    low, high = points.min(axis=0), points.max(axis=0)
    low[2] = max(low[2], high[2] - 240.0)  # not the shoulders
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
    """A volume on the 2 mm grid, 0 beyond its own borders."""
    smooth = resampling.antialias(image, affine, GRID.spacing[0])
    return resampling.sample(smooth, affine, grids.voxel_positions(GRID.shape, target))


def _tissue(seen: np.ndarray, reach: float, sure: float) -> np.ndarray | None:
    """The brain on the 2 mm grid: bool, or None where nothing like it is there.

    Args:
      seen: intensities.
      reach: how far outside the template's brain it may extend, mm.
      sure: how far inside the template's brain everything belongs to it, mm.
    """
    spacing = GRID.spacing[0]
    maps = mni_template.load_template(spacing)
    read = lambda data: resampling.sample(data, maps.affine, GRID.positions())
    template, gm, wm, csf = (read(data) for data in (maps.brain, maps.gm, maps.wm, maps.csf))
    distance = _signed_distance(template >= 0.5, spacing)
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
    """Slowly varying intensity of the tissue, from around each voxel: the coil's shading."""
    sigma = FLATTENING_MM / GRID.spacing[0]
    top = np.percentile(seen[where], 99)
    weight = ndimage.gaussian_filter(where.astype(np.float32), sigma, truncate=3.0)
    total = ndimage.gaussian_filter(np.where(where, np.minimum(seen, top), 0), sigma, truncate=3.0)
    overall = float(np.median(seen[where]))
    # Far from all tissue the overall level takes over.
    return np.maximum((total + 1e-3 * overall) / (weight + 1e-3), 0.2 * overall)


def _on_scan(
    scan: Volume, seen: np.ndarray, brain: np.ndarray, scan_from_mni: np.ndarray
) -> AtlasBrain:
    spacing = GRID.spacing[0]
    maps = mni_template.load_template(spacing)
    read = lambda data: resampling.sample(data, maps.affine, GRID.positions())
    template = read(maps.brain) >= 0.5
    inside = brain & template & (seen > 0)
    agreement = float(np.corrcoef(seen[inside], read(maps.t1)[inside])[0, 1])
    found = way_back.to_scan(brain, scan_from_mni @ GRID.affine, scan)
    volume = float(found.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000)
    total = int(brain.sum() + template.sum())
    overlap = 2.0 * int((brain & template).sum()) / total
    return AtlasBrain(found, scan_from_mni, agreement, volume, overlap)


def _signed_distance(mask: np.ndarray, spacing: float) -> np.ndarray:
    """mm to the border of a mask, negative inside."""
    edt = ndimage.distance_transform_edt
    return np.where(mask, -edt(mask, sampling=spacing), edt(~mask, sampling=spacing))


def _dilated(mask: np.ndarray, radius: float) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask, sampling=GRID.spacing[0]) <= radius


def _eroded(mask: np.ndarray, radius: float) -> np.ndarray:
    return ndimage.distance_transform_edt(mask, sampling=GRID.spacing[0]) > radius
