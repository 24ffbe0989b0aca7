"""The MNI152 maps that come with nilearn (no download), as plain arrays.

ICBM 2009a nonlinear symmetric template, skull-stripped, 197 x 233 x 189 voxels of 1 mm, RAS+.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from data_pipelines import grids, resampling

# T1w intensity of pure CSF, grey and white matter in the template: least squares over its brain.
TEMPLATE_TISSUE_MEANS = (0.281, 0.660, 0.879)
# A voxel of the demo grid is pure tissue if its fraction in the template is above this.
_PURE = {'csf': 0.6, 'gm': 0.75, 'wm': 0.85}


@dataclasses.dataclass(frozen=True)
class TemplateMaps:
    """The template, each map (x, y, z) float32.

    Attributes:
      t1: T1w intensity in [0, 1], background 0.
      csf, gm, wm: tissue fractions; their sum is `brain`.
      brain: 1 inside the brain, a fraction at its border after smoothing.
      affine: voxel -> MNI152 world mm.
    """

    t1: np.ndarray
    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @functools.cached_property
    def detail(self) -> np.ndarray:
        """The part of the T1w intensity that the tissue fractions do not explain."""
        csf, gm, wm = TEMPLATE_TISSUE_MEANS
        return self.t1 - (csf * self.csf + gm * self.gm + wm * self.wm)


@functools.lru_cache(maxsize=1)
def _full_resolution() -> TemplateMaps:
    from nilearn import datasets  # slow to import, and only this function needs it

    mask = datasets.load_mni152_brain_mask(resolution=1)
    brain = np.asarray(mask.dataobj) > 0
    read = lambda image: np.asarray(image.dataobj, np.float32) * brain
    gm = read(datasets.load_mni152_gm_template(resolution=1))
    wm = read(datasets.load_mni152_wm_template(resolution=1))
    total = np.maximum(gm + wm, 1.0)
    gm, wm = gm / total, wm / total
    return TemplateMaps(
        t1=read(datasets.load_mni152_template(resolution=1)),
        csf=brain - gm - wm,
        gm=gm,
        wm=wm,
        brain=brain.astype(np.float32),
        affine=np.asarray(mask.affine, np.float64),
    )


@functools.lru_cache(maxsize=2)
def load_template(spacing: float = 1.0) -> TemplateMaps:
    """The template at 1 mm, smoothed for sampling every `spacing` mm. Cached: never write to it."""
    full = _full_resolution()
    smooth = lambda data: resampling.antialias(data, full.affine, spacing)
    t1, csf, gm, wm = (smooth(data) for data in (full.t1, full.csf, full.gm, full.wm))
    return TemplateMaps(t1, csf, gm, wm, csf + gm + wm, full.affine)


@functools.lru_cache(maxsize=8)
def on_grid(grid: grids.ModelGrid) -> TemplateMaps:
    """The template on the voxels of a grid. Cached: never write to it."""
    maps = load_template(grid.spacing[0])
    volumes = (maps.t1, maps.csf, maps.gm, maps.wm, maps.brain)
    sampled = resampling.sample_each(volumes, maps.affine, grid.positions())
    return TemplateMaps(*sampled, grid.affine)


class TissueLevel(NamedTuple):
    """The intensity of a tissue in a scan.

    Attributes:
      median: of its intensities, 0 without any.
      share: of the template's voxels of that tissue, how many have an intensity in the scan.
    """

    median: float
    share: float


def tissue_levels(
    data: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray
) -> dict[str, TissueLevel]:
    """Intensities of a scan at the template's pure CSF, grey and white matter.

    Args:
      data: (x, y, z) of the brain, 0 elsewhere.
      affine: voxel -> scan world.
      scan_from_mni: MNI152 world -> scan world.

    Returns:
      A level for each of 'csf', 'gm', 'wm'.
    """
    levels = {}
    for tissue, in_mni in pure_tissue().items():
        _, values = intensities_at(in_mni, data, affine, scan_from_mni)
        median = float(np.median(values)) if values.size else 0.0
        levels[tissue] = TissueLevel(median, values.size / len(in_mni))
    return levels


def intensities_at(
    in_mni: np.ndarray, data: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of some positions (n, 3) in MNI152, mm, that lie in a brain, and its intensity there.

    Args:
      in_mni: the positions.
      data, affine, scan_from_mni: see `tissue_levels`.
    """
    in_scan = (in_mni @ scan_from_mni[:3, :3].T + scan_from_mni[:3, 3]).astype(np.float32)
    values = resampling.sample(data, affine, in_scan)
    return in_mni[values > 0], values[values > 0]


@functools.lru_cache(maxsize=1)
def pure_tissue() -> dict[str, np.ndarray]:
    """Where the template is pure CSF, grey and white matter: MNI152 world mm, (n, 3)."""
    grid = grids.GRIDS['demo']
    maps, positions = on_grid(grid), grid.positions()
    return {tissue: positions[getattr(maps, tissue) > least] for tissue, least in _PURE.items()}
