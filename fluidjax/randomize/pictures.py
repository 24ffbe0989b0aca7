"""Pictures of pairs: a contact sheet, one lesion flowing, and the distribution of many."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

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

_FRAMES, _FRAME_MS, _HOLD = 24, 80, 6
_COLUMNS = (
    ('healthy', slices.AXIAL),
    ('diseased', slices.AXIAL),
    ('probability', slices.AXIAL),
    ('diseased', slices.CORONAL),
    ('diseased', slices.SAGITTAL),
)


class Example(NamedTuple):
    """One diseased pair to be pictured.

    number: of the pair.
    draw, bank: what it came of.
    painted: (x, y, z), the diseased image; mask: (x, y, z) bool; P: (x, y, z).
    """

    number: int
    draw: Draw
    bank: np.ndarray | None
    painted: np.ndarray
    mask: np.ndarray
    P: np.ndarray


def contact_sheet(
    image: np.ndarray, brain: np.ndarray, affine: np.ndarray, examples: Sequence[Example]
) -> bytes:
    """PNG, a row a pair: planes through the lesion, healthy, diseased, P, and its outline.

    Args:
        image: the healthy image (x, y, z), 1 at its brightest.
        brain: (x, y, z) bool.
        affine: voxel -> mm, RAS+.
        examples: at least one.
    """
    figure = Figure(figsize=(2.3 * len(_COLUMNS), 2.3 * len(examples) + 0.3), facecolor='black')
    rows = figure.subplots(len(examples), len(_COLUMNS), squeeze=False)
    top = float(np.percentile(image[brain], 99.8))
    for axes, example in zip(rows, examples):
        view = slices.View(
            slices.centre_of(example.mask, example.P, brain),
            slices.box_around(brain),
            slices.spacing_of(affine),
        )
        shown = {'healthy': image, 'diseased': example.painted, 'probability': example.P}
        for place, (name, plane) in zip(axes, _COLUMNS):
            scale = (
                {'cmap': 'hot', 'vmax': 1.0}
                if name == 'probability'
                else {'cmap': 'gray', 'vmax': top}
            )
            draw_plane(place, shown[name], plane, view, vmin=0.0, **scale)
            if plane is not slices.AXIAL or name == 'probability':
                draw_outline(place, example.mask, plane, view, TRUTH_COLOUR, 0.8)
        axes[0].text(
            0.02,
            0.98,
            f'{example.number:03d}',
            transform=axes[0].transAxes,
            va='top',
            color='white',
            fontsize=9,
        )
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


def flow_animation(
    image: np.ndarray, brain: np.ndarray, grid: Grid, settings: FluidSettings, example: Example
) -> bytes:
    """GIF of a lesion's probability carried for the longest time, in three planes of the scan."""
    P0 = _seed(example.draw, jnp.asarray(brain), example.bank, grid, settings)
    times = np.linspace(0.0, settings.transport_time[1], _FRAMES)
    seeded = np.where(brain, P0, 0.0)
    centre = slices.centre_of(seeded > 0.5, seeded, brain)
    box = slices.box_around(brain)
    top = float(np.percentile(image[brain], 99.8))
    frames = []
    for time in tqdm(times, desc='animation', unit='frame', leave=False):
        P = np.asarray(_carried(P0, example.draw, jnp.float32(time), brain, grid, settings))
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
    """Axial, coronal and sagittal plane beside each other, 2 pixels a mm, P in orange."""
    planes = []
    for plane in slices.PLANES:
        sides = box[plane.up], box[plane.across]
        grey, weight = (slices.cut(v, plane, centre)[sides] for v in (image, P))
        grey, weight = np.clip(grey, 0, 1)[..., None], np.clip(weight, 0, 1)[..., None]
        colour = grey * (1 - 0.75 * weight) + 0.75 * weight * np.array([1.0, 0.69, 0.0])
        tile = Image.fromarray((255 * colour[::-1]).astype(np.uint8))
        planes.append(
            tile.resize(
                (
                    round(2 * grey.shape[1] * spacing[plane.across]),
                    round(2 * grey.shape[0] * spacing[plane.up]),
                ),
                Image.BILINEAR,
            )
        )
    frame = Image.new('RGB', (sum(p.width for p in planes), max(p.height for p in planes)))
    left = 0
    for tile in planes:
        frame.paste(tile, (left, (frame.height - tile.height) // 2))
        left += tile.width
    return frame.quantize(64, dither=Image.Dither.NONE)


def distribution_figure(realised: Sequence[dict[str, Any]]) -> bytes:
    """PNG: volume, pieces, transport time and painted contrast of many lesions, and the share of
    healthy pairs.

    Args:
        realised: the `realised` records of draws.json.
    """
    lesions = [r for r in realised if r['diseased']]
    figure = Figure(figsize=(10, 5.6))
    axes = figure.subplots(2, 2).ravel()
    volumes = np.array([r['volume_ml'] for r in lesions])
    panels = (
        ('volume of the lesion mask, ml', volumes, _log_bins(volumes)),
        ('connected pieces', np.array([r['pieces'] for r in lesions]), 'integers'),
        ('transport time', np.array([r['time'] for r in lesions]), 20),
        (
            "mean change, share of the tissue's intensity",
            np.array([r['relative_change'] for r in lesions]),
            20,
        ),
    )
    for place, (label, values, bins) in zip(axes, panels):
        if values.size:
            if isinstance(bins, str):
                bins = np.arange(0.5, min(values.max(), 60) + 1.5)
            place.hist(
                np.clip(values, None, bins[-1]) if np.ndim(bins) else values,
                bins=bins,
                color='#2b6ca3',
                edgecolor='white',
            )
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
