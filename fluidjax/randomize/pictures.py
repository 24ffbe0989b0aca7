"""Pictures of pairs: a contact sheet, one lesion flowing, and the distribution of many."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from fluidjax.detect import slices
from fluidjax.detect.figures import TRUTH_COLOUR, draw_outline, draw_plane, to_png
from fluidjax.fluid.draws import Draw
from fluidjax.fluid.grid import Grid
from fluidjax.fluid.randomize import seed_map
from fluidjax.fluid.settings import FluidSettings
from fluidjax.fluid.transport import transport
from fluidjax.randomize.healthy import Healthy
from fluidjax.randomize.paint import Pair

_FRAMES, _FRAME_MS, _HOLD = 24, 80, 6
_COLUMNS = (
    ('healthy', slices.AXIAL),
    ('diseased', slices.AXIAL),
    ('probability', slices.AXIAL),
    ('diseased', slices.CORONAL),
    ('diseased', slices.SAGITTAL),
)


def contact_sheet(healthy: Healthy, examples: Mapping[int, Pair]) -> bytes:
    """One row per pair: planes through the lesion of both images and of the probability (PNG).

    Args:
        healthy: the scan.
        examples: diseased pairs by number, at least one.
    """
    figure = Figure(figsize=(2.3 * len(_COLUMNS), 2.3 * len(examples) + 0.3), facecolor='black')
    rows = figure.subplots(len(examples), len(_COLUMNS), squeeze=False)
    image, brain = healthy.image, healthy.brain
    box, spacing = slices.box_around(brain), slices.spacing_of(healthy.affine)
    grey = {'cmap': 'gray', 'vmax': float(np.percentile(image[brain], 99.8))}
    for axes, (number, pair) in zip(rows, examples.items()):
        view = slices.View(slices.centre_of(pair.mask, pair.probability, brain), box, spacing)
        shown = {
            'healthy': (image, grey),
            'diseased': (image + pair.change, grey),
            'probability': (pair.probability, {'cmap': 'hot', 'vmax': 1.0}),
        }
        for place, (name, plane) in zip(axes, _COLUMNS):
            volume, scale = shown[name]
            draw_plane(place, volume, plane, view, vmin=0.0, **scale)
            if plane is not slices.AXIAL or name == 'probability':
                draw_outline(place, pair.mask, plane, view, TRUTH_COLOUR, 0.8)
        corner = {'transform': axes[0].transAxes, 'va': 'top', 'color': 'white', 'fontsize': 9}
        axes[0].text(0.02, 0.98, f'{number:03d}', **corner)
    for place, (name, plane) in zip(rows[0], _COLUMNS):
        place.set_title(f'{name}, {plane.name}', color='white', fontsize=9)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1.0 - 0.3 / (2.3 * len(examples) + 0.3), 0.02, 0.02)
    return to_png(figure, 100)


@functools.partial(jax.jit, static_argnames=('grid', 'settings'))
def _seed(
    draw: Draw, brain: jax.Array, bank: jax.Array | None, grid: Grid, settings: FluidSettings
) -> jax.Array:
    return seed_map(draw.seeds, draw.count, brain, grid, settings, bank)


@functools.partial(jax.jit, static_argnames=('grid', 'settings'))
def _carried(
    P0: jax.Array,
    draw: Draw,
    time: jax.Array,
    brain: jax.Array,
    grid: Grid,
    settings: FluidSettings,
) -> jax.Array:
    return jnp.where(brain, transport(P0, draw.key_flow, time, grid, settings, brain), 0.0)


def flow_animation(healthy: Healthy, settings: FluidSettings, pair: Pair) -> bytes:
    """A lesion's probability carried for the longest time, in three planes of the scan (GIF)."""
    image, brain, grid = healthy.image, healthy.brain, healthy.grid
    P0 = _seed(pair.draw, jnp.asarray(brain), pair.bank, grid, settings)
    times = np.linspace(0.0, settings.transport_time[1], _FRAMES)
    seeded = np.where(brain, P0, 0.0)
    centre = slices.centre_of(seeded > 0.5, seeded, brain)
    box = slices.box_around(brain)
    top = float(np.percentile(image[brain], 99.8))
    frames = []
    for time in tqdm(times, desc='animation', unit='frame', leave=False):
        P = np.asarray(_carried(P0, pair.draw, jnp.float32(time), brain, grid, settings))
        frames.append(_frame(image / top, P, centre, box, grid.spacing))
    buffer = io.BytesIO()
    durations = [_FRAME_MS * _HOLD] + [_FRAME_MS] * (_FRAMES - 2) + [_FRAME_MS * _HOLD]
    frames[0].save(
        buffer, 'GIF', save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def _frame(
    image: np.ndarray,
    P: np.ndarray,
    centre: tuple[int, int, int],
    box: tuple[slice, slice, slice],
    spacing: tuple[float, ...],
) -> Image.Image:
    """Axial, coronal and sagittal plane side by side, 2 pixels per mm, P in orange."""
    planes = []
    for plane in slices.PLANES:
        sides = box[plane.up], box[plane.across]
        grey, weight = (slices.cut(v, plane, centre)[sides] for v in (image, P))
        grey, weight = np.clip(grey, 0, 1)[..., None], np.clip(weight, 0, 1)[..., None]
        colour = grey * (1 - 0.75 * weight) + 0.75 * weight * np.array([1.0, 0.69, 0.0])
        tile = Image.fromarray((255 * colour[::-1]).astype(np.uint8))
        height, width = grey.shape[:2]
        size = round(2 * width * spacing[plane.across]), round(2 * height * spacing[plane.up])
        planes.append(tile.resize(size, Image.BILINEAR))
    frame = Image.new('RGB', (sum(p.width for p in planes), max(p.height for p in planes)))
    left = 0
    for tile in planes:
        frame.paste(tile, (left, (frame.height - tile.height) // 2))
        left += tile.width
    return frame.quantize(64, dither=Image.Dither.NONE)


def distribution_figure(realised: Sequence[dict[str, Any]]) -> bytes:
    """Histograms of volume, pieces, transport time and contrast of many lesions (PNG).

    Args:
        realised: the `realised` records of draws.json.
    """
    lesions = [record for record in realised if record['diseased']]
    figure = Figure(figsize=(10, 5.6))
    axes = figure.subplots(2, 2).ravel()
    volumes, pieces, times, changes = (
        np.array([lesion[name] for lesion in lesions])
        for name in ('volume_ml', 'pieces', 'time', 'relative_change')
    )
    panels = (
        ('volume of the lesion mask, ml', volumes, _log_bins(volumes)),
        ('connected pieces', pieces, np.arange(0.5, min(max(pieces, default=0), 60) + 1.5)),
        ('transport time', times, 20),
        ("mean change, share of the tissue's intensity", changes, 20),
    )
    for place, (label, values, bins) in zip(axes, panels):
        if values.size:
            clipped = np.clip(values, None, bins[-1]) if np.ndim(bins) else values
            place.hist(clipped, bins=bins, color='#2b6ca3', edgecolor='white')
            middle = np.median(values)
            place.axvline(middle, color='#e08a2e', label=f'median {middle:.3g}')
            place.legend(frameon=False, fontsize=9)
        place.set_xlabel(label)
        place.set_ylabel('pairs')
        place.spines[['top', 'right']].set_visible(False)
    if volumes.size:
        axes[0].set_xscale('log')
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    healthy = len(realised) - len(lesions)
    figure.suptitle(f'{len(lesions)} diseased pairs, {healthy} healthy')
    figure.tight_layout()
    return to_png(figure, 100)


def _log_bins(values: np.ndarray) -> np.ndarray | int:
    if not values.size or values.min() <= 0:
        return 20
    low, high = values.min(), values.max() * 1.001
    return np.geomspace(low, high, 24) if high > 1.01 * low else 20
