"""Each warning fires where it should and nowhere else; the picture is a picture."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic_heads as heads

from data_pipelines import grids, mni_template, preprocess, quality, quality_picture
from data_pipelines.volume_io import Volume, load_volume
from fluidjax.base.errors import UserError

DEMO = grids.GRIDS['demo']


def _warnings(scan, **options):
    return preprocess.preprocess(scan, DEMO, registration='none', **options).warnings


def test_a_good_scan_has_none():
    assert _warnings(heads.stripped()) == ()


def test_wrong_contrast():
    scan = heads.stripped()
    inverse = np.where(scan.data > 0, np.maximum(1200 - scan.data, 1), 0).astype(np.float32)
    found = _warnings(Volume(inverse, scan.affine, 't2.nii'), extraction='none')
    assert any('wm < gm < csf' in warning and 'T1w' in warning for warning in found)


def test_equal_intensities_are_told_as_such():
    level = mni_template.TissueLevel
    levels = {'csf': level(1.0, 1.0), 'gm': level(5.0, 1.0), 'wm': level(5.0, 1.0)}
    (warning,) = quality.contrast_warnings(levels)
    assert 'intensities csf < gm = wm, expected csf < gm < wm' in warning


@pytest.mark.usefixtures('quick_registration')
@pytest.mark.parametrize(
    'name, wrong',
    [
        ('other_contrast/stroke_T2w.nii.gz', True),
        ('pathology_t1w/sub-ms26/anat/sub-ms26_T1w.nii.gz', False),
        pytest.param(
            'pathology_t1w/sub-glioma6692/anat/sub-glioma6692_T1w.nii.gz',
            False,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_contrast_of_real_scans(shared_dir, name, wrong):
    made = preprocess.preprocess(load_volume(shared_dir / 'data' / name), DEMO)
    assert any('contrast' in warning for warning in made.warnings) is wrong


@pytest.mark.usefixtures('quick_registration')
def test_low_overlap():
    scan = heads.stripped()
    far = scan.affine.copy()
    far[:3, 3] += 40.0
    assert any(
        'overlap with the MNI152 brain is only 0.' in warning
        for warning in _warnings(Volume(scan.data, far, 'far.nii'))
    )
    assert not quality.overlap_warnings(0.85)


def test_a_head_taken_for_a_brain():
    head, brain = heads.whole_head()
    assert any('whole head' in warning for warning in _warnings(head, extraction='none'))
    skull = Volume((head.data > 90).astype(np.float32), head.affine, 'mask.nii')
    assert any('more than any brain' in warning for warning in _warnings(head, brain=skull))


@pytest.mark.parametrize('axis, side, name', [(2, slice(0, 40), 'top'), (0, slice(36, 72), 'left')])
def test_cut_brain(axis, side, name):
    _, brain = heads.brain_and_mask()
    assert quality.field_of_view_warnings(brain, heads.GRID.affine) == []
    cut = brain[tuple(side if k == axis else slice(None) for k in range(3))]
    (warning,) = quality.field_of_view_warnings(cut, heads.GRID.affine)
    assert f'({name})' in warning


def test_picture():
    scan = heads.stripped()
    for bias_field in ('none', 'always'):
        made = preprocess.preprocess(scan, DEMO, registration='none', bias_field=bias_field)
        png = quality_picture.quality_figure(made, DEMO, scan, dpi=30)
        assert png.startswith(b'\x89PNG') and len(png) > 5000


@pytest.mark.parametrize(
    'csf,gm,wm,name',
    [
        (1, 2, 3, 't1w'),
        (3, 2, 1, 't2w'),
        (1, 3, 2, 'flair'),
        (2, 3, 1, 'other'),
        (1, 1, 2, 'other'),
    ],
)
def test_a_contrast_is_known_by_the_order_of_its_tissues(csf, gm, wm, name):
    levels = {
        tissue: mni_template.TissueLevel(float(value), 1.0)
        for tissue, value in (('csf', csf), ('gm', gm), ('wm', wm))
    }
    assert quality.contrast_of(levels) == name
    assert bool(quality.contrast_warnings(levels)) is (name != 't1w')
    wanted = quality.contrast_warnings(levels, ('t2w', 'flair'))
    assert bool(wanted) is (name not in ('t2w', 'flair'))
    far = {tissue: level._replace(share=0.1) for tissue, level in levels.items()}
    assert quality.contrast_of(far) == 't1w'


def test_a_name_decides_between_contrasts_that_look_alike():
    def levels(csf, gm, wm):
        values = {'csf': csf, 'gm': gm, 'wm': wm}
        return {t: mni_template.TissueLevel(value, 1.0) for t, value in values.items()}

    assert quality.contrast_of(levels(0.3, 0.5, 0.52), 'flair') == 'flair'
    assert quality.contrast_of(levels(0.3, 0.52, 0.5), 't1w') == 't1w'
    assert quality.contrast_of(levels(0.3, 0.52, 0.5), 't2w') == 'flair'
    assert quality.contrast_of(levels(0.3, 0.4, 0.52), 'flair') == 't1w'
    assert quality.contrast_of(levels(0.9, 0.52, 0.5), 't1w') == 't2w'
    assert not quality.contrast_warnings(levels(0.3, 0.5, 0.52), ('flair',), 'flair')


@pytest.mark.usefixtures('quick_registration')
def test_other_contrasts_keep_their_bright_tissue():
    scan = heads.stripped()
    inverse = np.where(scan.data > 0, np.maximum(1200 - scan.data, 1), 0).astype(np.float32)
    made = preprocess.preprocess(
        Volume(inverse, scan.affine, 't2.nii'), DEMO, extraction='none', contrasts=('t2w',)
    )
    assert made.contrast == 't2w' and not any('contrast' in line for line in made.warnings)
    assert np.mean(made.image[made.brain] > 0.99) < 0.01


def test_a_ct_is_refused():
    scan = heads.stripped()
    units = np.where(scan.data > 0, 30.0 + scan.data / 100, -1000.0).astype(np.float32)
    with pytest.raises(UserError, match='ct.nii: is a CT by its intensities'):
        preprocess.preprocess(Volume(units, scan.affine, 'ct.nii'), DEMO)
