"""The MNI152 maps that nilearn carries in its wheel (no download), as plain arrays.

ICBM 2009a nonlinear symmetric template, skull-stripped, 197 x 233 x 189 voxels of 1 mm, RAS+.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from data_pipelines import resampling

# Least-squares T1w intensity of pure CSF, grey and white matter in the template (brain voxels).
TEMPLATE_TISSUE_MEANS = (0.281, 0.660, 0.879)


@dataclasses.dataclass(frozen=True)
class TemplateMaps:
    """The template, each map (x, y, z) float32.

    Attributes:
      t1: T1w intensity in [0, 1], background 0.
      csf, gm, wm: tissue fractions; their sum is `brain`.
      brain: 1 inside the brain (a fraction after smoothing).
      affine: voxel -> MNI152 world mm.
    """

    t1: np.ndarray
    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @property
    def detail(self) -> np.ndarray:
        """What the tissue fractions do not explain of the T1w intensity."""
        csf, gm, wm = TEMPLATE_TISSUE_MEANS
        return self.t1 - (csf * self.csf + gm * self.gm + wm * self.wm)


@functools.lru_cache(maxsize=1)
def _full_resolution() -> TemplateMaps:
    from nilearn import datasets  # Slow to import, and needed by this function alone.

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
    """The template at 1 mm, low-passed for sampling every `spacing` mm. Cached: read only."""
    full = _full_resolution()
    smooth = lambda data: resampling.antialias(data, full.affine, spacing)
    t1, csf, gm, wm = (smooth(data) for data in (full.t1, full.csf, full.gm, full.wm))
    return TemplateMaps(t1, csf, gm, wm, csf + gm + wm, full.affine)
