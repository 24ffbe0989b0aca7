"""The smooth shading that a receive coil leaves on a scan: how strong it is, and its field.

The field is a polynomial, quadratic along each axis, of the logarithm of the intensity where the
template is pure white or grey matter, each relative to the median of its tissue. What does not fit
(lesions, fluid in a sulcus) is left out, as in robust regression by trimming. So it works in any
contrast, without a segmentation, in a fraction of a second; it needs the registration.

It can take a large lesion for shading, so only strongly shaded scans are corrected without being
asked. Of N4 (Tustison et al. 2010; SimpleITK), which was here before, too little was left after a
few seconds of a CPU, see docs/results.md.

Changes here do not need a new `PREPROCESSING_VERSION`: the correction belongs to prediction, and no
cohort is built with it.
"""

from __future__ import annotations

import numpy as np

from data_pipelines import grids, mni_template

CHOICES = ('none', 'auto', 'always')
# Strength (see `strength`) from which 'auto' corrects: 1.1 to 1.5 in 16 scans, 1.6 to 2.4 when
# these are shaded by a field whose logarithm has a standard deviation of 0.3.
STRONG = 1.6
# No coil shades by more than this factor; a larger one is a failed fit.
LARGEST_FACTOR = 4.0
_REACH_MM = 100.0  # from the middle of the brain; beyond it the field is constant
_TRIMS, _CUT = 8, 3.0  # rounds; a point is left out above this multiple of the median error


def correct(
    data: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray, choice: str
) -> tuple[np.ndarray | None, float]:
    """The scan without its shading, or None where it is left, and the shading's `strength`.

    Args:
      data, affine, scan_from_mni: see `strength`.
      choice: one of `CHOICES`.
    """
    found = strength(data, affine, scan_from_mni)
    if choice == 'none' or (choice == 'auto' and found < STRONG):
        return None, found
    return data / estimate(data, affine, scan_from_mni), found


def strength(data: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray) -> float:
    """95th over 5th percentile of a quadratic fit to the logarithm of white matter's intensity.

    Args:
      data: (x, y, z) of the brain, 0 elsewhere.
      affine: voxel -> scan world.
      scan_from_mni: MNI152 world -> scan world.
    """
    points, values = _levels(data, affine, scan_from_mni, ('wm',))
    x, y, z = ((points - grids.MNI_BRAIN_CENTRE) / 70.0).T
    terms = np.stack([x**0, x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
    coefficients = _trimmed_fit(terms, values, 3, 3.7)
    if coefficients is None:
        return 1.0
    low, high = np.percentile(terms @ coefficients, (5, 95))
    return float(np.exp(high - low))


def estimate(data: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray) -> np.ndarray:
    """The field of a brain scan at full resolution: data / field has no shading.

    Args:
      data: (x, y, z) of the brain, 0 elsewhere.
      affine: voxel -> scan world.
      scan_from_mni: MNI152 world -> scan world.

    Returns:
      (x, y, z) float32 > 0, with a geometric mean of 1 over white and grey matter; 1 everywhere
      where too little of them lies in the scan for a fit.
    """
    points, values = _levels(data, affine, scan_from_mni, ('wm', 'gm'))
    terms = _terms(points)
    coefficients = _trimmed_fit(terms, values, _TRIMS, _CUT)
    field = np.ones(data.shape, np.float32)
    if coefficients is None:
        return field
    coefficients[0] -= (terms @ coefficients).mean()
    limit = np.log(LARGEST_FACTOR)
    mni_from_voxel = np.linalg.inv(scan_from_mni) @ affine
    plane = np.stack(np.meshgrid(0, *map(np.arange, data.shape[1:]), indexing='ij'), -1)[0]
    for number in range(data.shape[0]):
        voxels = plane + np.array((number, 0, 0))
        positions = voxels @ mni_from_voxel[:3, :3].T + mni_from_voxel[:3, 3]
        logarithm = _terms(positions.reshape(-1, 3)) @ coefficients
        field[number] = np.exp(np.clip(logarithm, -limit, limit)).reshape(data.shape[1:])
    return field


def _levels(
    data: np.ndarray, affine: np.ndarray, scan_from_mni: np.ndarray, tissues: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in MNI152, (n, 3) mm, and logarithm of the intensity by its tissue's median."""
    points, values = [], []
    for tissue in tissues:
        in_mni = mni_template.pure_tissue()[tissue]
        inside, found = mni_template.intensities_at(in_mni, data, affine, scan_from_mni)
        points.append(inside)
        values.append(np.log(found / np.median(found)) if found.size else [])
    return np.concatenate(points), np.concatenate(values)


def _terms(positions: np.ndarray) -> np.ndarray:
    """The 27 products of powers up to 2 of the coordinates of positions (n, 3) mm: (n, 27)."""
    scaled = np.clip((positions - grids.MNI_BRAIN_CENTRE) / _REACH_MM, -1.0, 1.0)
    x, y, z = (np.stack([axis**0, axis, axis**2], axis=1) for axis in scaled.T)
    return np.einsum('ni,nj,nk->nijk', x, y, z).reshape(len(positions), 27)


def _trimmed_fit(
    terms: np.ndarray, values: np.ndarray, rounds: int, cut: float
) -> np.ndarray | None:
    """Coefficients of `terms` (n, m) by least squares, without outliers; None with too few."""
    kept = np.ones(len(values), bool)
    coefficients = None
    for _ in range(rounds):
        if kept.sum() < 2 * terms.shape[1]:
            return None
        coefficients = np.linalg.lstsq(terms[kept], values[kept], rcond=None)[0]
        rest = values - terms @ coefficients
        rest = np.abs(rest - np.median(rest))
        kept = rest <= cut * np.median(rest)
    return coefficients
