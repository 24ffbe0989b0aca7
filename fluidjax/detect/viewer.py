"""A slice viewer for the report: NiiVue, and the volumes it shows, inside the page.

NiiVue (BSD-2-Clause) comes with nilearn, so nothing is fetched and none of it is committed here.
The page holds one gzipped copy of it and, per subject, the volumes cropped to the brain, as gzipped
NIfTI of 8 bits with the subject's own affine. It needs WebGL 2; without it the page shows its
pictures alone.
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

from fluidjax.detect import figures, slices
from fluidjax.detect.evaluate import region_of
from fluidjax.detect.figures import Panel

LEVELS = 255
MAX_BYTES = 30_000_000  # of base64 text; later subjects have their pictures alone
CYAN = [25, 200, 255]  # figures.TRUTH_COLOUR
LICENCE = """NiiVue, BSD 2-Clause License, Copyright (c) 2021, Niivue. All rights reserved.
Redistribution and use in source and binary forms, with or without modification, are permitted
provided that the following conditions are met: 1. Redistributions of source code must retain the
above copyright notice, this list of conditions and the following disclaimer. 2. Redistributions in
binary form must reproduce the above copyright notice, this list of conditions and the following
disclaimer in the documentation and/or other materials provided with the distribution.
THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR
IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND
FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR
CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE,
DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER
IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT
OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE."""
STYLE = """
.viewer { background: #000; color: #dfe6ee; padding: .8rem; border-radius: 6px; font-size: 13.5px }
.viewer form { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; align-items: center;
               margin-bottom: .5rem }
.viewer label { display: inline-flex; gap: .4rem; align-items: center }
.viewer output { min-width: 4.5em; font-variant-numeric: tabular-nums }
.viewer .stage { height: 27rem } .viewer canvas { display: block; outline: none }
.viewer p { margin: .4rem 0 0; min-height: 1.5em; color: #9aa7b6 } .viewer[hidden] { display: none }
@media (max-width: 800px) { .viewer .stage { height: 60vw } }
"""
PAGE = """<section class="viewer" id="viewer" hidden>
<form onsubmit="return false">
<label>Subject <select id="viewer-subject">{options}</select></label>
<label><input type="checkbox" id="viewer-counterpart"> counterpart for scan</label>
<label>Map's opacity
<input type="range" id="viewer-opacity" min="0" max="1" step="0.05" value="0.7"></label>
<label>Threshold <input type="range" id="viewer-threshold" min="1" max="255" step="1">
<output id="viewer-value"></output></label>
<label><input type="checkbox" id="viewer-lesion" checked> {outline}</label>
</form>
<div class="stage"><canvas id="viewer-canvas"></canvas></div>
<p id="viewer-place"></p>
</section>
<p class="note" id="viewer-note" data-help="{help}">{note}</p>
<!-- {licence} -->
<script type="text/plain" id="viewer-code">{code}</script>
<script type="application/json" id="viewer-data">{data}</script>
<script>{script}</script>"""
NOTE = (
    'The slice viewer needs JavaScript and WebGL 2, which this browser does not give it here: '
    'the pictures below show the same subjects.'
)
HELP = (
    'Click or drag to move, the wheel scrolls the plane under it. L is the left side of the '
    'brain. Where the map is below the threshold it is not drawn; the slider starts at the '
    'validated threshold, or in the middle without one.'
)
SCRIPT = """
(() => {
  const part = name => document.getElementById('viewer-' + name);
  const subjects = JSON.parse(part('data').textContent), loaded = new Map();
  const note = part('note').textContent;
  let nv, shown;
  const status = text => { document.getElementById('viewer').dataset.status = text; };
  async function code() {
    const bytes = Uint8Array.from(atob(part('code').textContent), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    const script = document.createElement('script');
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }
  function volume(base64, name, more) {
    return niivue.NVImage.loadFromBase64({base64, name: name + '.nii.gz', ...more});
  }
  async function load(subject) {
    const grey = {colormap: 'gray', cal_min: 0, cal_max: subject.grey, colorbarVisible: false};
    const [scan, counterpart, map, lesion] = await Promise.all([
      volume(subject.scan, 'scan', grey),
      subject.counterpart && volume(subject.counterpart, 'counterpart', grey),
      volume(subject.map, 'map', {colormap: 'fluidjax', cal_min: 0, cal_max: subject.top}),
      subject.lesion && volume(subject.lesion, 'lesion', {colorbarVisible: false})]);
    map.colormapType = 2;  // colours run from 0, and below cal_min nothing is drawn
    if (lesion) {
      lesion.setColormapLabel(LABELS);
      lesion.opacity = 0.02;  // of its inside; its border is as opaque as atlasOutline
    }
    return {subject, scan, counterpart, map, lesion};
  }
  function draw() {
    const level = Number(part('threshold').value), step = shown.subject.step;
    const base = part('counterpart').checked && shown.counterpart || shown.scan;
    shown.map.cal_min = (level - 0.5) * step;
    shown.map.opacity = Number(part('opacity').value);
    part('value').value = (level * step).toPrecision(3);
    nv.volumes = [base, shown.map];
    if (shown.lesion && part('lesion').checked) nv.volumes.push(shown.lesion);
    nv.setVolume(base, 0);
  }
  async function choose() {
    const index = Number(part('subject').value);
    status('loading');
    if (!loaded.has(index)) loaded.set(index, await load(subjects[index]));
    if (index !== Number(part('subject').value)) return;  // another one was chosen meanwhile
    shown = loaded.get(index);
    const {subject} = shown;
    part('threshold').value = subject.level;
    part('counterpart').disabled = !shown.counterpart;
    part('lesion').disabled = !shown.lesion;
    draw();
    nv.scene.crosshairPos = nv.mm2frac(subject.centre);
    nv.createOnLocationChange();
    nv.drawScene();
    status('ready');
  }
  async function start() {
    if (!document.createElement('canvas').getContext('webgl2')) return;
    await code();
    document.getElementById('viewer').hidden = false;
    nv = new niivue.Niivue({
      sliceType: 3, multiplanarLayout: 3, multiplanarShowRender: 0, multiplanarPadPixels: 8,
      isRadiologicalConvention: false, sagittalNoseLeft: false, showAllOrientationMarkers: true,
      isNearestInterpolation: true, isColorbar: true, atlasOutline: 0.85,
      backColor: [0, 0, 0, 1], fontColor: [0.85, 0.9, 0.95, 1], fontMinPx: 14,
      crosshairColor: [0.3, 0.9, 0.4, 0.7], crosshairWidth: 0.5, crosshairWidthUnit: 'percent',
      crosshairGap: 6, dragAndDropEnabled: false, loadingText: '', logLevel: 'error'});
    nv.onLocationChange = place => {
      part('place').textContent = 'x y z: ' + Array.from(place.mm).slice(0, 3)
        .map(v => v.toFixed(0)).join(' ') + ' mm · ' + place.values
        .filter(v => !v.name.startsWith('lesion'))
        .map(v => v.name.split('.')[0] + ' ' + v.value.toPrecision(3)).join(' · ');
    };
    await nv.attachToCanvas(part('canvas'));
    nv.addColormap('fluidjax', HEAT);
    part('note').textContent = part('note').dataset.help;
    part('subject').onchange = choose;
    for (const name of ['counterpart', 'opacity', 'threshold', 'lesion']) part(name).oninput = draw;
    window.addEventListener('fluidjax-go', event => {  // a place in mm, from elsewhere in the page
      nv.scene.crosshairPos = nv.mm2frac(event.detail);
      nv.createOnLocationChange();
      nv.drawScene();
    });
    await choose();
  }
  start().catch(error => {
    console.error(error);
    document.getElementById('viewer').hidden = true;
    part('note').textContent = note;
  });
})();
"""


def niivue_code() -> bytes | None:
    """NiiVue's JavaScript as nilearn carries it; None where this nilearn does not."""
    found = find_spec('nilearn')  # its path without its import, which is slow
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / '_assets' / 'js' / 'niivue.umd.js'
    return path.read_bytes() if path.is_file() else None


def packed(content: bytes) -> str:
    """Gzipped, the same bytes for the same content, as base64 text."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode('ascii')


def nifti(levels: np.ndarray, affine: np.ndarray, step: float, intent: str = 'none') -> bytes:
    """A NIfTI file of 8 bits, whose values are levels * step; NiiVue outlines one of labels."""
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
    # The nudge keeps a voxel at a threshold, itself such a voxel's value, above it.
    return np.clip(np.floor(finite / step * (1 + 1e-6)), 0, LEVELS).astype(np.uint8)


def map_step(scale: float, threshold: float | None) -> tuple[float, int]:
    """The map's step, and the level its threshold falls on exactly (the middle without one)."""
    if threshold is None or not math.isfinite(threshold) or threshold <= 0:
        return scale / LEVELS, LEVELS // 2
    step = max(scale, 1.25 * threshold) / LEVELS
    level = max(1, round(threshold / step))
    return threshold / level, level


def subject_data(panel: Panel, scale: float) -> dict[str, Any]:
    """What the viewer's script takes of one subject."""
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
    """Of as many of the first panels as fit into `limit` bytes; of one at least."""
    chosen, size = [], 0
    for panel in panels:
        data = subject_data(panel, scales[panel.method])
        size += sum(len(v) for v in data.values() if isinstance(v, str))
        if chosen and size > limit:
            break
        chosen.append(data)
    return chosen


def _script() -> str:
    """The page's script with its colours."""
    labels = {name: [0, value] for name, value in zip('RGB', CYAN)} | {
        'A': [0, 255],
        'I': [0, 1],
        'labels': ['', 'lesion'],
    }
    # Nothing at 0, and no white at the top, as the pictures have: a grey scan would hide it.
    heat = {
        'R': [90, 255, 255, 255],
        'G': [0, 0, 150, 255],
        'B': [0] * 4,
        'A': [0, 255, 255, 255],
        'I': [0, 90, 170, 255],
    }
    return SCRIPT.replace('LABELS', json.dumps(labels)).replace('HEAT', json.dumps(heat))


def viewer_html(
    panels: Sequence[Panel],
    scales: Mapping[str, float] | None = None,
    limit: int = MAX_BYTES,
    outline: str = 'true lesion',
) -> str:
    """The viewer as HTML for the report; empty without panels or without NiiVue.

    The page moves it by `dispatchEvent(new CustomEvent('fluidjax-go', {detail: [x, y, z]}))`, mm.

    Args:
      panels: whose volumes are shown, in this order; the first is shown at first.
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
        f' {left} more subjects have their pictures alone, for the size of the page.'
        if left
        else ''
    )
    return PAGE.format(
        options=options,
        note=NOTE,
        outline=escape(outline),
        help=escape(HELP + more),
        licence=LICENCE,
        code=packed(code),
        data=json.dumps(data),
        script=_script(),
    )
