"""Tissue fractions of label maps, and estimated from T1w scans."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import (
    grids,
    input_pipeline,
    mni_template,
    records,
    scan_folders,
    template_cohort,
    tissue,
)
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.records import with_tissue
from fluidjax.base.errors import UserError
from fluidjax.base.subject import TISSUES

DEMO, SMOKE = grids.GRIDS['demo'], grids.GRIDS['smoke']


@pytest.fixture(scope='module')
def record():
    return template_cohort.make_record(DEMO, 'train', 0, tissue=True)


@pytest.fixture(scope='module')
def label_maps(tmp_path_factory):
    """The template's tissues as FreeSurfer's labels, 4 mm, three times, with a skull around."""
    folder = tmp_path_factory.mktemp('labels')
    grid = grids.ModelGrid((48, 56, 48), (4.0, 4.0, 4.0))
    maps = mni_template.on_grid(grid)
    for number in range(3):
        parts = np.stack([maps.csf, (1.0 + 0.1 * number) * maps.gm, maps.wm])
        labels = np.array([24, 3, 2])[parts.argmax(axis=0)]
        labels[maps.brain < 0.5] = 507
        nib.save(nib.Nifti1Image(labels.astype(np.int16), grid.affine), folder / f'seg{number}.nii')
    return folder


def test_the_embedded_cohort_knows_its_tissue(record):
    fractions, brain = record['tissue'], record['brain'].astype(bool)
    assert fractions.dtype == np.uint8 and fractions.shape == (*DEMO.shape, len(TISSUES))
    assert not fractions[~brain].any()
    assert np.abs(fractions[brain].sum(axis=-1) - 255.0).max() <= 3
    levels = [record['image'][fractions[..., i] > 200].mean() for i in range(3)]
    assert levels[0] < levels[1] < levels[2]
    assert 'tissue' not in template_cohort.make_record(SMOKE, 'train', 0)


def test_fractions_are_estimated_from_a_scan(record):
    brain = record['brain'].astype(bool)
    estimate = tissue.estimated(record['image'], brain, DEMO)
    assert not estimate[~brain].any()
    assert np.abs(estimate[brain].sum(axis=-1) - 255.0).max() <= 3
    truth, ours = record['tissue'] / 255.0, estimate / 255.0
    overlaps = 2 * np.minimum(truth, ours).sum((0, 1, 2)) / (truth + ours).sum((0, 1, 2)).clip(1)
    assert (overlaps[:3] > (0.5, 0.7, 0.75)).all(), overlaps
    without = {name: value for name, value in record.items() if name != 'tissue'}
    np.testing.assert_array_equal(with_tissue(without, True, DEMO)['tissue'], estimate)
    assert with_tissue(record, True) is record and 'tissue' not in with_tissue(record, False)


def test_a_label_map_becomes_a_scan_and_its_fractions(label_maps):
    made, fractions = tissue.from_labels(
        label_maps / 'seg0.nii', DEMO, 'none', tissue.table_of('freesurfer')
    )
    assert made.contrast == 't1w' and 1000 < made.brain.sum() * DEMO.voxel_volume_ml < 2000
    assert np.abs(fractions[made.brain].sum(axis=-1) - 255.0).max() <= 3
    volumes = dict(zip(TISSUES, fractions.sum(axis=(0, 1, 2)) / 255 * DEMO.voxel_volume_ml))
    assert min(volumes[name] for name in ('white', 'grey', 'csf')) > 50
    assert volumes['deep_grey'] == volumes['stem'] == 0
    assert fractions[made.image > 0.8, TISSUES.index('white')].mean() > 200


@pytest.mark.parametrize(('grey', 'white'), [(1001, 3001), (12101, 13101), (2002, 5002)])
def test_parcels_are_grey_and_white_matter(label_maps, tmp_path, grey, white):
    image = nib.load(label_maps / 'seg0.nii')
    labels = np.asarray(image.dataobj).astype(np.int32)
    relabelled = np.where(labels == 3, grey, np.where(labels == 2, white, labels))
    nib.save(nib.Nifti1Image(relabelled, image.affine), tmp_path / 'a.nii')
    _, fractions = tissue.from_labels(tmp_path / 'a.nii', DEMO, 'none', tissue.FREESURFER)
    _, expected = tissue.from_labels(label_maps / 'seg0.nii', DEMO, 'none', tissue.FREESURFER)
    np.testing.assert_array_equal(fractions, expected)


def test_labels_that_no_tissue_has_are_named(label_maps, tmp_path):
    image = nib.load(label_maps / 'seg0.nii')
    labels = np.asarray(image.dataobj).astype(np.int32)
    nib.save(nib.Nifti1Image(np.where(labels == 2, 9001, labels), image.affine), tmp_path / 'a.nii')
    with pytest.raises(UserError, match='% of its brain has labels of no tissue, most often 9001'):
        tissue.from_labels(tmp_path / 'a.nii', DEMO, 'none', tissue.FREESURFER)


def test_a_cohort_is_built_again_when_its_table_changes(label_maps, tmp_path):
    table = tmp_path / 'table.json'
    prints = []
    for white in ([2], [2, 41]):
        table.write_text(json.dumps({'white': white, 'grey': [3]}))
        prints.append(NiftiSource(DEMO, str(label_maps), labels=str(table)).fingerprint())
    assert prints[0] != prints[1]


def test_labels_of_another_atlas_need_a_table(label_maps, tmp_path):
    table = tmp_path / 'table.json'
    table.write_text(json.dumps({'white': [507]}))
    with pytest.raises(UserError, match='its labels give a brain of 0 ml'):
        tissue.from_labels(label_maps / 'seg0.nii', DEMO, 'none', {'grey': (9999,)})
    assert tissue.table_of(str(table)) == {'white': (507,)}
    for text in ('{"bone": [1]}', '[1]', '{"white": "a"}', '{', '{}'):
        table.write_text(text)
        with pytest.raises(UserError, match='must hold lists of labels'):
            tissue.table_of(str(table))
    with pytest.raises(UserError, match="give 'freesurfer' or a JSON file"):
        tissue.table_of('absent.json')


def test_a_folder_of_label_maps_is_a_cohort(label_maps, tmp_path):
    cohort = input_pipeline.nifti_cohort(
        SMOKE, tmp_path, label_maps, registration='none', contrasts=('t1w',), labels='freesurfer'
    )
    assert cohort.tissue and cohort.sizes == {'train': 2, 'validation': 1}
    batch = next(input_pipeline.batches(cohort, 'train', 2, seed=0))
    assert batch['tissue'].shape == (1, 2, *SMOKE.shape, len(TISSUES))
    assert batch['tissue'].dtype == np.uint8
    subject = next(input_pipeline.subjects(cohort, 'validation'))
    assert subject.tissue.shape == (*SMOKE.shape, len(TISSUES)) and subject.name.startswith('seg')
    np.testing.assert_array_equal(subject.tissue.any(axis=-1), subject.brain)


def test_the_embedded_cohort_has_tissue_where_it_is_wanted(tmp_path):
    masks = tmp_path / 'masks'
    masks.mkdir()
    mask = np.zeros(SMOKE.shape, np.uint8)
    mask[6:9, 6:9, 6:9] = 1
    nib.save(nib.Nifti1Image(mask, SMOKE.affine), masks / 'one.nii')
    cohort = input_pipeline.template_cohort('smoke', tmp_path / 'store', masks, tissue=True)
    assert cohort.tissue and cohort.sizes['lesions'] == 1
    assert input_pipeline.lesion_bank(cohort).shape == (1, *SMOKE.shape)
    assert all(s.tissue.any() for s in input_pipeline.subjects(cohort, 'test'))


FREESURFER_OF = np.array([24, 3, 2, 10, 8, 16])  # one label of each tissue


@pytest.fixture
def scan_with_labels(record, tmp_path):
    """A scan of the demo's grid, skull-stripped, with a label map beside it."""
    labels = np.where(record['brain'] > 0, FREESURFER_OF[record['tissue'].argmax(axis=-1)], 0)
    for name, volume in (('p1_T1w', record['image']), ('p1_synthseg', labels.astype(np.int16))):
        nib.save(nib.Nifti1Image(volume, DEMO.affine), tmp_path / f'{name}.nii')
    return tmp_path / 'p1_T1w.nii', tmp_path / 'p1_synthseg.nii'


@pytest.mark.usefixtures('quick_registration')
def test_labels_beside_a_scan_are_its_tissue(scan_with_labels, record):
    scan, labels = scan_with_labels
    assert tissue.labels_beside(scan) == labels
    cases = scan_folders.list_scans(scan.parent, 'data_dir')
    assert [case.scan for case in cases.cases] == [scan], cases.left_out
    source = NiftiSource(DEMO, str(scan.parent), registration='none')
    made = records.make(cases.cases[0], source)
    both = (made['brain'] > 0) & (record['brain'] > 0)
    expected = record['tissue'].argmax(axis=-1)[both]
    assert (made['tissue'].argmax(axis=-1)[both] == expected).mean() > 0.95
    assert np.abs(made['tissue'][made['brain'] > 0].sum(axis=-1) - 255.0).max() <= 3
    before = records.key_of(cases.cases[0], source)
    labels.unlink()
    assert records.key_of(cases.cases[0], source) != before
    assert 'tissue' not in records.make(cases.cases[0], source)


def test_labels_of_another_brain_are_refused(scan_with_labels, record):
    _, labels = scan_with_labels
    moved = DEMO.affine.copy()
    moved[0, 3] += 90.0
    with pytest.raises(UserError, match='labels in .* % of the brain of the scan beside'):
        tissue.on_scan(labels, moved, record['brain'] > 0)


@pytest.mark.usefixtures('quick_registration')
@pytest.mark.parametrize('wrong', ['of another brain', 'damaged'])
def test_a_label_map_that_cannot_be_used_does_not_cost_its_scan(scan_with_labels, capsys, wrong):
    scan, labels = scan_with_labels
    if wrong == 'damaged':
        labels.write_bytes(labels.read_bytes()[:1000])
    else:
        nib.save(nib.Nifti1Image(np.zeros(DEMO.shape, np.int16), DEMO.affine), labels)
    case = scan_folders.list_scans(scan.parent, 'data_dir').cases[0]
    source = NiftiSource(DEMO, str(scan.parent), registration='none')
    made = records.record_of(case, source, 'train')
    told = [line for line in capsys.readouterr().err.splitlines() if labels.name in line]
    assert len(told) == 1 and 'it is not used' in told[0]
    assert 'tissue' not in made
    wanted = with_tissue(made, True, DEMO)['tissue']
    estimate = tissue.estimated(made['image'], made['brain'].astype(bool), DEMO)
    np.testing.assert_array_equal(wanted, estimate)


@pytest.mark.parametrize(
    ('scan', 'labels'),
    [
        ('sub-01_T1w.nii.gz', 'sub-01_T1w_synthseg.nii.gz'),
        ('sub-01_desc-preproc_T1w.nii.gz', 'sub-01_desc-aparcaseg_dseg.nii.gz'),
        ('bert/mri/norm.mgz', 'bert/mri/aparc+aseg.mgz'),
        ('fast/mri/orig.mgz', 'fast/mri/aparc.DKTatlas+aseg.deep.mgz'),
    ],
)
def test_label_maps_are_found_by_the_names_of_their_programs(tmp_path, scan, labels):
    for name in (scan, labels):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert tissue.labels_beside(tmp_path / scan) == tmp_path / labels
    (tmp_path / labels).unlink()
    assert tissue.labels_beside(tmp_path / scan) is None
