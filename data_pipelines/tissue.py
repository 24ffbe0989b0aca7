"""Tissue fractions on the model grid: of a label map, of one beside a scan, or estimated from it.

Fractions are of `base.subject.TISSUES`, stored as uint8 with 255 for 1; their sum is 1 in the brain
and 0 outside. `fluidjax.synthesis` makes scans of any contrast from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from data_pipelines import grids, mni_template, preprocess, resampling
from data_pipelines.volume_io import Volume, load_volume, strip_ending
from fluidjax.base.errors import UserError
from fluidjax.base.subject import TISSUES, Preprocessed

# Labels of FreeSurfer (and SynthSeg, FastSurfer) by tissue, without those of parcels.
FREESURFER = {
    'csf': (4, 5, 14, 15, 24, 30, 31, 43, 44, 62, 63, 72, 136, 137, 163, 164),
    'grey': (3, 42),
    'white': (2, 25, 41, 57, 77, 78, 79, 80, 85, 192, *range(250, 256)),
    'deep_grey': (10, 11, 12, 13, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60),
    'cerebellar_grey': (8, 47),
    'stem': (7, 16, 46),
}
# First and last parcel of the cortex, and of the white matter beneath it, by either atlas.
_PARCELS = {'grey': ((1000, 2999), (11100, 12175)), 'white': ((3000, 5002), (13100, 14175))}
_OUTSIDE_CSF = 24  # of the ventricles' labels it is the only one that also lies around the brain
_T1W = {'csf': 0.28, 'grey': 0.66, 'deep_grey': 0.76, 'cerebellar_grey': 0.64, 'stem': 0.84}
_CLOSED_MM = 4.0  # sulci up to twice as wide belong to the brain
_DEEP_MM = 8.0
_LEAST_ML = 400.0
# Label maps with FreeSurfer's numbers, the best first: in a subject's folder `mri`, and after the
# name of a scan (SynthSeg writes scan_synthseg.nii.gz, fMRIPrep the names of BIDS).
_IN_MRI = ('aparc.DKTatlas+aseg.deep', 'aparc+aseg', 'synthseg', 'aseg.auto_noCCseg', 'aseg')
_AFTER_NAME = (
    '_synthseg', '_desc-synthseg_dseg', '_desc-aparcaseg_dseg', '_desc-aseg_dseg', '_aparc+aseg',
    '_aseg',
)  # fmt: skip
_ENDINGS = ('.nii.gz', '.nii', '.mgz', '.mgh')
_LEAST_PARCEL = 1000
_LEAST_LABELLED = 0.7  # of the brain
_MOST_UNKNOWN = 0.1  # of a brain that labels make: what no tissue has
# Of the mixture model: steps, the share of a prior that is the same everywhere, least spread.
_STEPS, _FLAT, _LEAST_SPREAD = 20, 0.1, 0.02


def stored(fractions: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Fractions `(x, y, z, tissues)` of at least 0 as uint8, their sum 1 in the brain."""
    total = np.maximum(fractions.sum(axis=-1, keepdims=True), 1e-6)
    return np.round(255.0 * fractions / total * brain[..., None]).astype(np.uint8)


def of_maps(csf: np.ndarray, grey: np.ndarray, white: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Stored fractions of three maps `(x, y, z)`; the other tissues count as grey and white."""
    maps = {'csf': csf, 'grey': grey, 'white': white}
    nothing = np.zeros(brain.shape, np.float32)
    volumes = [np.maximum(maps.get(tissue, nothing), 0.0) for tissue in TISSUES]
    return stored(np.stack(volumes, axis=-1), brain)


def estimated(image: np.ndarray, brain: np.ndarray, grid: grids.ModelGrid) -> np.ndarray:
    """Stored fractions of a T1w scan on the model grid, by a mixture of three normal distributions.

    The prior of each voxel is that of the template's maps, so that the border of fluid and white
    matter is not taken for grey matter, whose intensity it has (expectation maximisation; Ashburner
    and Friston 2005, without their deformation).

    Args:
      image: (x, y, z), in MNI152 space.
      brain: (x, y, z) bool.
      grid: of the image.
    """
    maps = mni_template.on_grid(grid)
    soft = [ndimage.gaussian_filter(m, 1.0) for m in (maps.csf, maps.gm, maps.wm)]
    prior = np.stack([m[brain] for m in soft], axis=-1)
    prior = (1 - _FLAT) * prior / np.maximum(prior.sum(axis=-1, keepdims=True), 1e-6) + _FLAT / 3
    values, posterior = image[brain][:, None].astype(np.float64), prior
    for _ in range(_STEPS):
        weight = np.maximum(posterior.sum(axis=0), 1e-6)
        mean = (posterior * values).sum(axis=0) / weight
        spread = np.sqrt((posterior * (values - mean) ** 2).sum(axis=0) / weight)
        spread = np.maximum(spread, _LEAST_SPREAD)
        joint = prior * np.exp(-0.5 * ((values - mean) / spread) ** 2) / spread
        posterior = joint / np.maximum(joint.sum(axis=-1, keepdims=True), 1e-12)
    volumes = np.zeros((*brain.shape, 3))
    volumes[brain] = posterior
    return of_maps(*np.moveaxis(volumes, -1, 0), brain)


def table_of(name: str) -> dict[str, tuple[int, ...]]:
    """The labels of each tissue: those of FreeSurfer, or of a JSON file of the user.

    Args:
      name: 'freesurfer', or a file `{"csf": [4, 43], "grey": [3, 42], ...}`.

    Raises:
      UserError: the file cannot be read, or is not such a table.
    """
    if name == 'freesurfer':
        return FREESURFER
    advice = f'must hold lists of labels for some of {", ".join(TISSUES)}'
    try:
        table = json.loads(Path(name).expanduser().read_text('utf-8'))
        made = {tissue: tuple(int(label) for label in labels) for tissue, labels in table.items()}
    except OSError as error:
        raise UserError(
            f"labels: {name}: {error.strerror}; give 'freesurfer' or a JSON file"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'labels: {name}: {advice}') from error
    if not made or set(made) - set(TISSUES):
        raise UserError(f'labels: {name}: {advice}')
    return made


def from_labels(
    path: Path, grid: grids.ModelGrid, registration: str, table: Mapping[str, tuple[int, ...]]
) -> tuple[Preprocessed, np.ndarray]:
    """A label map as a T1w scan on the model grid, and its stored fractions.

    Args:
      path: of the label map; labels that are in no tissue are outside the brain.
      grid: the model grid.
      registration: see `preprocess.preprocess`.
      table: the labels of each tissue.

    Raises:
      UserError: a file that cannot be read, or that has not the labels of a brain.
    """
    labels, tissue = _cropped(load_volume(path), table)
    brain = _brain(labels, tissue)
    ml = float(brain.sum() * abs(np.linalg.det(labels.affine[:3, :3])) / 1000)
    if ml < _LEAST_ML:
        raise UserError(
            f'{path}: its labels give a brain of {ml:.0f} ml; is it a label map, and are its '
            "labels FreeSurfer's? Give others by a table, --config.cohort.labels=FILE.json"
        )
    # Around a brain SynthSeg has labels of the head, all below those of parcels.
    without = (tissue < 0) & (brain | (labels.data >= _LEAST_PARCEL))
    if without.sum() > _MOST_UNKNOWN * brain.sum():
        values, counts = np.unique(np.round(labels.data[without]), return_counts=True)
        raise UserError(
            f'{path}: {100 * without.sum() / brain.sum():.0f} % of its brain has labels of no '
            f'tissue, most often {values[counts.argmax()]:.0f}; give a table, '
            '--config.cohort.labels=FILE.json'
        )
    unknown = TISSUES.index('csf')  # of a vessel, or of what no table names
    tissue = np.where(brain, np.where(tissue < 0, unknown, tissue), -1)
    levels = np.array([0.0, *(_T1W.get(name, 0.88) for name in TISSUES)], np.float32)
    # The blur is the partial volume of a scan, without which it is refused as a label map.
    image = ndimage.gaussian_filter(levels[tissue + 1], 0.6)
    mask = Volume(brain.astype(np.float32), labels.affine, labels.path)
    scan = Volume(np.where(brain, image, 0.0), labels.affine, labels.path)
    made = preprocess.preprocess(scan, grid, None, registration, brain=mask)
    fractions = _resampled(tissue, labels.affine, grid.shape, made.affine)
    return made, stored(fractions, made.brain)


def labels_beside(scan: Path) -> Path | None:
    """The label map of a scan with FreeSurfer's numbers, by its name; None if there is none.

    FreeSurfer's and FastSurfer's lie in the folder `mri` of the scan, SynthSeg's and fMRIPrep's
    begin with the name of the scan, with or without its suffix.
    """
    if scan.parent.name == 'mri':
        names = list(_IN_MRI)
    else:
        whole = strip_ending(scan)
        short = re.sub(r'(_desc-preproc)?_t1w?$', '', whole, flags=re.IGNORECASE)
        names = [stem + end for end in _AFTER_NAME for stem in (whole, short)]
    paths = (scan.parent / (name + ending) for name in names for ending in _ENDINGS)
    return next((path for path in paths if path != scan and path.is_file()), None)


def on_scan(path: Path, affine: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Stored fractions of a preprocessed scan, of the label map of the scan it was made from.

    What has no label in the brain counts as fluid.

    Args:
      path: of the label map, with FreeSurfer's numbers.
      affine: of the preprocessed scan, in the space of the label map.
      brain: (x, y, z) bool.

    Raises:
      UserError: a file that cannot be read, or labels that do not lie in this brain.
    """
    labels, tissue = _cropped(load_volume(path), FREESURFER)
    fractions = _resampled(tissue, labels.affine, brain.shape, affine)
    labelled = fractions.sum(axis=-1)
    share = labelled[brain].mean() if brain.any() else 0.0
    if share < _LEAST_LABELLED:
        raise UserError(
            f"{path}: has FreeSurfer's labels in {100 * share:.0f} % of the brain of the scan "
            'beside it; move it away, or replace it by the label map of that scan'
        )
    fractions[..., TISSUES.index('csf')] += np.maximum(1.0 - labelled, 0.0)
    return stored(fractions, brain)


def _resampled(
    tissue: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], to: np.ndarray
) -> np.ndarray:
    """Fractions `(x, y, z, tissues)` on another grid, of a volume of tissue numbers."""
    volumes = [
        resampling.resample_image((tissue == number).astype(np.float32), affine, shape, to)
        for number in range(len(TISSUES))
    ]
    return np.stack(volumes, axis=-1)


def _cropped(labels: Volume, table: Mapping[str, tuple[int, ...]]) -> tuple[Volume, np.ndarray]:
    """A label map without what lies far from the brain, and the number of its tissues."""
    tissue = _tissues(labels.data, table)
    found = ndimage.find_objects((tissue >= 0).astype(np.uint8))
    if not found:
        return labels, tissue
    margin = 3
    box = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in found[0])
    affine = labels.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    return Volume(labels.data[box], affine, labels.path), tissue[box]


def _tissues(labels: np.ndarray, table: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """The number of the tissue of each label, -1 for none."""
    labels = np.round(labels).astype(np.int32)
    highest = max(last for parcels in _PARCELS.values() for _, last in parcels)
    number_of = np.full(max(int(labels.max()), highest) + 1, -1, np.int8)
    if table is FREESURFER:
        for tissue, parcels in _PARCELS.items():
            for first, last in parcels:
                number_of[first : last + 1] = TISSUES.index(tissue)
    for tissue, members in table.items():
        members = [label for label in members if 0 <= label < len(number_of)]
        number_of[members] = TISSUES.index(tissue)
    return number_of[np.maximum(labels, 0)]


def _brain(labels: Volume, tissue: np.ndarray) -> np.ndarray:
    """The brain of a label map: all tissues, of the fluid around them that in the sulci.

    What has no tissue belongs to it only deep inside, as vessels between the hemispheres.
    """
    solid = (tissue >= 0) & (tissue != TISSUES.index('csf'))
    solid |= (tissue == TISSUES.index('csf')) & (labels.data != _OUTSIDE_CSF)
    if not solid.any():
        return solid
    sizes = resampling.voxel_sizes(labels.affine)
    near = ndimage.distance_transform_edt(~solid, sampling=sizes) <= _CLOSED_MM
    closed = ndimage.distance_transform_edt(near, sampling=sizes) > _CLOSED_MM
    whole = ndimage.binary_fill_holes(closed | solid)
    deep = ndimage.distance_transform_edt(whole, sampling=sizes) > _DEEP_MM
    return whole & ((tissue >= 0) | deep)
