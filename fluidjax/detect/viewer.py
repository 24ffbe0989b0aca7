"""A slice viewer for the report: NiiVue, and the volumes it shows, inside the page.

NiiVue (BSD-2-Clause) comes with nilearn, so it is neither fetched nor part of this project. The
page holds one gzipped copy of it and, for each subject, the volumes cropped to the brain, as
gzipped NIfTI of 8 bits with the subject's own affine. It needs WebGL 2; without it the page shows
only its pictures.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fluidjax.base.files import asset
from fluidjax.detect import figures, slices
from fluidjax.detect.evaluate import region_of
from fluidjax.detect.figures import Panel
from fluidjax.detect.html import HERE, filled

LEVELS = 255
MAX_BYTES = 30_000_000  # of base64 text; later subjects have only their pictures


def niivue_code() -> bytes | None:
    """NiiVue's JavaScript as nilearn carries it; None where this nilearn does not."""
    spec = find_spec('nilearn')  # its path without its import, which is slow
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / '_assets' / 'js' / 'niivue.umd.js'
    return path.read_bytes() if path.is_file() else None


def packed(content: bytes) -> str:
    """Gzipped, the same bytes for the same content, as base64 text."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode('ascii')


def nifti(levels: np.ndarray, affine: np.ndarray, step: float, intent: str = 'none') -> bytes:
    """A NIfTI file of 8 bits, whose values are levels * step.

    NiiVue draws only the outlines of a volume whose intent is 'label'.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(levels.shape)
    header.set_zooms(slices.spacing_of(affine))
    header.set_sform(affine, code=1)
    header.set_xyzt_units('mm')
    header.set_slope_inter(step, 0)
    header.set_intent(intent)
    header['vox_offset'] = header.single_vox_offset
    gap = bytes(header.single_vox_offset - len(header.binaryblock))
    return header.binaryblock + gap + levels.astype(np.uint8).tobytes(order='F')


def quantised(volume: np.ndarray, step: float) -> np.ndarray:
    """Levels of `step`, rounded down, so that `volume >= k * step` is `levels >= k`."""
    finite = np.nan_to_num(np.asarray(volume, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    # The factor keeps the voxel whose value is the threshold at the threshold's level.
    return np.clip(np.floor(finite / step * (1 + 1e-6)), 0, LEVELS).astype(np.uint8)


def map_step(scale: float, threshold: float | None) -> tuple[float, int]:
    """The map's step, and the level that is exactly its threshold (the middle without one)."""
    if threshold is None or not math.isfinite(threshold) or threshold <= 0:
        return scale / LEVELS, LEVELS // 2
    step = max(scale, 1.25 * threshold) / LEVELS
    level = max(1, round(threshold / step))
    return threshold / level, level


def subject_data(panel: Panel, scale: float) -> dict[str, Any]:
    """One subject's data as the viewer's script takes them."""
    subject, region = panel.subject, region_of(panel.subject)
    box = slices.box_around(region)
    affine = np.array(subject.affine, np.float64)
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    centre = np.asarray(subject.affine) @ [*figures.view_of(panel).centre, 1]
    step, level = map_step(scale, panel.threshold)

    def volume(data, size, intent='none'):
        return packed(nifti(quantised(data[box], size), affine, size, intent))

    data = {
        'scan': volume(np.asarray(subject.image), 1 / LEVELS),
        'map': volume(np.where(region, panel.anomaly_map, 0), step),
        'step': step,
        'level': level,
        'top': step * LEVELS,
        'grey': figures.upper_value(subject.image, subject.brain, 99.8),
        'centre': [round(float(v), 3) for v in centre[:3]],
    }
    if panel.counterpart is not None:
        data['counterpart'] = volume(np.asarray(panel.counterpart), 1 / LEVELS)
    if subject.lesion is not None:
        data['lesion'] = volume(np.asarray(subject.lesion), 1, 'label')
    return data


def _data_of(
    panels: Sequence[Panel], scales: Mapping[str, float], limit: int
) -> list[dict[str, Any]]:
    """The data of as many of the first panels as fit into `limit` bytes, at least one."""
    chosen, size = [], 0
    for panel in panels:
        data = subject_data(panel, scales[panel.method])
        size += sum(len(v) for v in data.values() if isinstance(v, str))
        if chosen and size > limit:
            break
        chosen.append(data)
    return chosen


def viewer_html(
    panels: Sequence[Panel],
    scales: Mapping[str, float] | None = None,
    limit: int = MAX_BYTES,
    outline: str = 'true lesion',
) -> str:
    """The viewer as HTML for the report; empty without panels or without NiiVue.

    The page moves it by `dispatchEvent(new CustomEvent('fluidjax-go', {detail: [x, y, z]}))`, mm.

    Args:
      panels: the subjects shown, in this order; the viewer begins with the first.
      scales: {method: upper end of its map's colours} (`figures.map_scale`); default: computed.
      limit: bytes of volumes (base64) the page may hold. Panels beyond are left out, and the page
        says so.
      outline: what the panels' `lesion` is called.
    """
    code = niivue_code() if panels else None
    if code is None:
        return ''
    if scales is None:
        scales = figures.scales_of(panels)
    data = _data_of(panels, scales, limit)
    options = ''.join(
        f'<option value="{i}">{escape(f"{p.subject.name} · {p.cohort} · {p.method}")}</option>'
        for i, p in enumerate(panels[: len(data)])
    )
    left = len(panels) - len(data)
    more = (
        f' {left} more subjects have only their pictures, to limit the size of the page.'
        if left
        else ''
    )
    return filled(
        HERE,
        'viewer.html',
        options=options,
        outline=escape(outline),
        more=more,
        code=packed(code),
        data=json.dumps(data),
        script=asset(HERE, 'viewer.js'),
    )
