"""The model that comes with fluidjax: it opens, fits its size, and finds a hole in a brain."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import fluidjax
from data_pipelines import grids, mni_template, preprocess, resampling
from fluidjax.runs import package, thresholds

GRID = grids.GRIDS['demo']
LARGEST_BYTES = 20e6
CARD = Path(__file__).parents[2] / 'docs' / 'bundled_model.md'
OTHER_CARD = CARD.with_name('bundled_model_other_contrasts.md')


def cards():
    """The cards of the package and of the one for other contrasts in it."""
    with zipfile.ZipFile(package.BUNDLED) as held:
        inner = zipfile.ZipFile(io.BytesIO(held.read(package.OTHER)))
        return tuple(one.read(package.CARD).decode() for one in (held, inner))


@pytest.fixture(scope='module')
def brain():
    """The MNI152 brain on the model's voxels, 0..1, and a ball in its right white matter."""
    maps = mni_template.load_template(GRID.spacing[0])
    positions = GRID.positions()
    inside = preprocess.mni_brain(GRID)
    image = resampling.sample(maps.t1, maps.affine, positions) * inside
    ball = inside & (np.linalg.norm(positions - [30, -20, 30], axis=-1) < 16)
    return image.astype(np.float32), ball


def test_it_is_small_and_whole():
    opened = package.open_package(package.BUNDLED)
    assert package.BUNDLED.stat().st_size < LARGEST_BYTES
    assert {'calibration.json', 'metrics.json'} <= set(opened.texts)
    assert opened.manifest['preprocessing']['registration'] == 'affine'


def test_its_card_says_what_it_is():
    card, other = cards()
    assert card == CARD.read_text() and other == OTHER_CARD.read_text()
    assert 'label maps' in other and 'contrast=any' in other
    for said in ('not for diagnosis', 'fluidjax train', '--config.cohort.embedded', 'ds002748'):
        assert said in card
    for path in ('/work', '/tmp', '/home'):
        assert path not in card and path not in other


def test_it_finds_a_hole_and_little_else(brain):
    image, ball = brain
    model = fluidjax.load()
    assert thresholds.load(model.run, 'fpr_1') > 0
    holed = np.where(ball, 0.35 * image, image)
    as_nifti = lambda data: nib.Nifti1Image(1000 * data, GRID.affine)
    clean, found = model.detect([as_nifti(image), as_nifti(holed)])
    mask = found.mask.get_fdata() > 0
    assert preprocess.dice(mask, ball) > 0.5
    assert clean.volume_ml < 0.25 * found.volume_ml
    filled = found.healthy.get_fdata()[ball].mean() / 1000
    assert abs(filled - image[ball].mean()) < 0.25 * image[ball].mean()
