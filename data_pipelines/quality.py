"""Quality of a scan: short warnings, and scans that are none."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines import resampling
from data_pipelines.mni_template import TissueLevel
from data_pipelines.volume_io import Volume
from fluidjax.base.errors import UserError

# Dice with the MNI152 brain; 17 real brains have 0.92 or more.
LOW_OVERLAP = 0.85
BRAIN_ML = (600.0, 2200.0)
# A label map has few values, and most of its voxels have that of their neighbour; of 10 real scans
# in 8 bits it was 3 to 12 %.
_MOST_LABELS, _EQUAL_NEIGHBOURS = 256, 0.6
# Intensity of white matter at the bright end of the brain, by that at the dark end: 1.1 to 1.5 in
# 16 scans, 2.4 to 2.9 when these are shaded by a factor of 6.
STRONG_SHADING = 2.0
# Area of the brain on one face of the volume; a brain that is cropped tightly has less.
CLIPPED_CM2 = 10.0
LEAST_AIR = 0.05  # share of the voxels of a CT that are air, and that are not
# Share of the template's tissue that must lie in the scan for its contrast to be judged.
LEAST_SHARE = 0.25
_ALIKE = 1.1  # grey and white matter that differ by a smaller factor are nearly equal


# The tissues of each contrast, from dark to bright; a T1w scan after contrast agent is T1w here.
_ORDERS = {('csf', 'gm', 'wm'): 't1w', ('wm', 'gm', 'csf'): 't2w', ('csf', 'wm', 'gm'): 'flair'}


def contrast_of(levels: Mapping[str, TissueLevel], named: str = '') -> str:
    """'t1w', 't2w' or 'flair' by the order of the tissues' intensities, or 'other'.

    A scan that hardly overlaps with the template is taken for T1w.

    Args:
      levels: of the tissues.
      named: what the scan's name says, or ''. It decides between T1w and FLAIR where grey and white
        matter are nearly equal: fluid in the voxels of the cortex darkens both.
    """
    medians = {tissue: level.median for tissue, level in levels.items()}
    if min(level.share for level in levels.values()) < LEAST_SHARE:
        return 't1w'
    if len(set(medians.values())) < len(medians):
        return 'other'
    grey, white = medians['gm'], medians['wm']
    if named in ('t1w', 'flair') and medians['csf'] < grey < _ALIKE * white < _ALIKE**2 * grey:
        return named
    return _ORDERS.get(tuple(sorted(medians, key=medians.__getitem__)), 'other')


def contrast_warnings(
    levels: Mapping[str, TissueLevel], wanted: Sequence[str] = ('t1w',), named: str = ''
) -> list[str]:
    """Another contrast than those that are wanted, see `contrast_of`."""
    contrast = contrast_of(levels, named)
    if contrast in wanted or (contrast == 't1w' and 't1ce' in wanted):
        return []
    if wanted != ('t1w',):
        return [
            f'contrast looks like {contrast}, not like {" or ".join(wanted)}: results for another '
            'contrast mean nothing'
        ]
    medians = {tissue: level.median for tissue, level in levels.items()}
    names = sorted(medians, key=medians.__getitem__)
    order = names[0]
    for darker, brighter in itertools.pairwise(names):
        order += f' {"<" if medians[darker] < medians[brighter] else "="} {brighter}'
    return [
        f'contrast is not that of a T1w scan (intensities {order}, expected csf < gm < wm): '
        'give a T1w scan; results for another contrast mean nothing'
    ]


def refuse_ct(scan: Volume) -> None:
    """Raise a UserError for a computed tomography, whose air has about -1000 Hounsfield units."""
    values = scan.data.ravel()[::7]
    air = float(np.mean((values < -900) & (values > -3100)))
    if air > LEAST_AIR and float(np.mean(values > -200)) > LEAST_AIR:
        raise UserError(
            f'{scan.path}: is a CT by its intensities (air at -1000); fluidjax is for MRI: give a '
            'T1w scan'
        )


def overlap_warnings(overlap: float) -> list[str]:
    """Low Dice of the brain and the MNI152 brain."""
    if overlap >= LOW_OVERLAP:
        return []
    return [
        f'overlap with the MNI152 brain is only {overlap:.2f}: registration or brain '
        'extraction may have failed; look at the picture'
    ]


def head_warnings(whole_head: bool, method: str, brain_ml: float) -> list[str]:
    """A whole head that is used as a brain, or a brain that is too large."""
    if whole_head and method == 'none':
        return [
            'the scan shows a whole head, and is used as a brain: turn brain extraction on (auto), '
            "or give the scan's brain mask"
        ]
    if brain_ml > BRAIN_ML[1]:
        return [
            f'the brain has {brain_ml:.0f} ml, more than any brain: does its mask contain '
            'skull or scalp, and is the voxel size of the header right?'
        ]
    if brain_ml < BRAIN_ML[0]:
        return [
            f"the brain has {brain_ml:.0f} ml, less than an adult's: is the voxel size of the "
            'header right, and is all of the brain there?'
        ]
    return []


def shading_warnings(strength: float, corrected: bool) -> list[str]:
    """Shading of white matter that is strong, or was before it was corrected.

    Args:
      strength: see `bias_field.strength`.
      corrected: whether the shading was divided out.
    """
    found = f'white matter is {strength:.1f} times brighter on one side than on the other'
    if corrected:
        return [f'shading was corrected ({found}), which can weaken a large lesion too']
    if strength < STRONG_SHADING:
        return []
    return [f'strong shading: {found}; correct it first (predict can: --bias-field=always)']


def refuse_label_map(scan: Volume, brain: np.ndarray) -> None:
    """Raise a UserError for a mask or a label map given as a scan; `brain` (x, y, z) bool."""
    values = scan.data[brain]
    if values.min() == values.max():
        raise UserError(
            f'{scan.path}: has the same value in all of its brain; is it a mask? Give a T1w scan'
        )
    step = max(1, len(values) // 100_000)
    labels = np.unique(values[::step])
    if len(labels) > _MOST_LABELS:
        return
    pairs = brain[1:] & brain[:-1]
    equal = np.mean(scan.data[1:][pairs] == scan.data[:-1][pairs])
    if equal > _EQUAL_NEIGHBOURS:
        raise UserError(
            f'{scan.path}: has only {len(labels)} values in its brain, in patches; is it a label '
            'map or a mask? Give a T1w scan'
        )


def field_of_view_warnings(brain: np.ndarray, affine: np.ndarray) -> list[str]:
    """A brain that the scan's borders cut; `brain` (x, y, z) is on all voxels of the scan."""
    sizes = resampling.voxel_sizes(affine)
    names = (('left', 'right'), ('back', 'front'), ('bottom', 'top'))
    cut = []
    for axis in range(3):
        area = np.prod(np.delete(sizes, axis)) / 100
        for name, index in zip(names[axis], (0, -1), strict=True):
            if np.take(brain, index, axis=axis).sum() * area > CLIPPED_CM2:
                cut.append(name)
    if not cut:
        return []
    return [
        f"the scan's field of view cuts the brain ({', '.join(cut)}): the part outside is "
        'treated as background'
    ]
