"""Whether a brain lies as its header says: every permutation and flip of the axes is compared.

A mirrored brain looks like a healthy one, so that left and right cannot be checked.
"""

from __future__ import annotations

import functools
import itertools

import nibabel as nib
import numpy as np
from scipy import ndimage

from data_pipelines import grids, mni_template, registration, resampling

# Agreement of a registered brain with the template (`_agreement_of`); see the measured values in
# tests/data_pipelines/test_orientation.py. Above this one no orientation is compared.
CLEAR_AGREEMENT = 0.6
# Another orientation must agree so much better than the header's.
BETTER_BY = 0.05
# Below this an orientation says nothing: the scan may be of another contrast, or no brain.
LEAST_AGREEMENT = 0.35
# Orientations that are registered, the best ones by their correlation without registration.
_CANDIDATES = 3
_LEVELS = 12  # of the template's intensity
_GRID = grids.ModelGrid((24, 28, 24), (8.0, 8.0, 8.0))


def agreement(
    data: np.ndarray, brain: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray
) -> float:
    """How well a brain agrees with the template where both are, 0 to 1, whatever its contrast.

    Args:
      data: (x, y, z) intensities, background 0.
      brain: (x, y, z) bool.
      affine: voxel -> world of the scan, mm.
      scan_from_mni: MNI152 world -> world of the scan, (4, 4).
    """
    grid = registration.TEMPLATE_GRID
    maps = mni_template.on_grid(grid)
    target = scan_from_mni @ grid.affine
    seen = resampling.resample_image(data, affine, grid.shape, target)
    inside = resampling.resample_mask(brain, affine, grid.shape, target) & (maps.brain >= 0.5)
    return _agreement_of(seen[inside], maps.t1[inside])


def better_rotation(
    data: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
    scan_from_mni: np.ndarray,
    registered: bool = True,
) -> np.ndarray | None:
    """A rotation of the scan's world in which its brain agrees better with the template, or None.

    Args:
      data, brain, affine, scan_from_mni: see `agreement`.
      registered: whether `scan_from_mni` is the result of a registration.

    Returns:
      (3, 3): the world that the header should have is `rotation @ world`.
    """
    now = agreement(data, brain, affine, scan_from_mni)
    if now >= CLEAR_AGREEMENT:
        return None
    if not registered:
        found = registration.register_to_mni(data, brain, affine)
        now = max(now, agreement(data, brain, affine, found))
    tried = []
    for rotation in _likely_rotations(data, brain, affine):
        other = turned(rotation, affine)
        found = registration.register_to_mni(data, brain, other)
        tried.append((agreement(data, brain, other, found), rotation))
    best, rotation = max(tried, key=lambda pair: pair[0])
    return rotation if best > max(now + BETTER_BY, LEAST_AGREEMENT) else None


def warning(stored: np.ndarray, rotation: np.ndarray) -> str:
    """What is wrong with a header, for a person.

    Args:
      stored: affine of the file, in its own order of axes.
      rotation: see `better_rotation`.
    """
    return f'{axes(stored, rotation)}, and what is marked means nothing; mend it'


def axes(stored: np.ndarray, rotation: np.ndarray) -> str:
    """The axes of a header and those of the brain; see `warning`."""
    says = ''.join(nib.aff2axcodes(stored))
    lies = ''.join(nib.aff2axcodes(turned(rotation, stored)))
    mirrored = lies.translate(str.maketrans('LR', 'RL'))
    return (
        f'the header says {says}, the brain lies {lies} (or {mirrored}: left and right cannot be '
        'checked): the axes of the header are wrong'
    )


def turned(rotation: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The affine of a scan in a rotated world."""
    turn = np.eye(4)
    turn[:3, :3] = rotation
    return turn @ affine


def _likely_rotations(data: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> list[np.ndarray]:
    """The rotations that agree best without registration, without that of the header."""
    maps = mni_template.on_grid(_GRID)
    template = maps.brain >= 0.5
    centre = _centre(template, _GRID.affine)
    own_centre = _centre(brain, affine)
    volume = brain.sum() * abs(np.linalg.det(affine[:3, :3]))
    scale = (volume / (template.sum() * np.prod(_GRID.spacing))) ** (1 / 3)
    smooth = resampling.antialias(data, affine, _GRID.spacing[0])
    offsets = scale * (_GRID.positions() - centre)

    def score(rotation: np.ndarray) -> float:
        positions = (offsets @ rotation + own_centre).astype(np.float32)
        seen, there = resampling.sample_each([smooth, brain], affine, positions)
        union = template | (there >= 0.5)
        return _agreement_of(seen[union], maps.t1[union])

    others = [r for r in rotations() if not np.allclose(r, np.eye(3))]
    return sorted(others, key=score, reverse=True)[:_CANDIDATES]


@functools.lru_cache(maxsize=1)
def rotations() -> tuple[np.ndarray, ...]:
    """The 24 rotations that permute and flip the axes without mirroring, each (3, 3)."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return tuple(found)


def _centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.array(ndimage.center_of_mass(mask)) + affine[:3, 3]


def _agreement_of(values: np.ndarray, template: np.ndarray) -> float:
    """The square root of the share of a scan's variance that the template's intensity explains."""
    if values.size < 2 * _LEVELS or not values.std():
        return 0.0
    edges = np.quantile(template, np.linspace(0, 1, _LEVELS + 1)[1:-1])
    level = np.searchsorted(edges, template)
    counts = np.bincount(level, minlength=_LEVELS)
    means = np.bincount(level, values, _LEVELS) / np.maximum(counts, 1)
    explained = np.sum(counts * (means - values.mean()) ** 2)
    return float(np.sqrt(explained / (values.size * values.var())))
