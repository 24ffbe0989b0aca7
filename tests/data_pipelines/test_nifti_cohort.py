"""The user's own folder: what is a scan, what is a mask, which split, and what a mistake says."""

from __future__ import annotations

import dataclasses
import os

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import (
    grids,
    input_pipeline,
    nifti_source,
    records,
    scan_folders,
    subject_splits,
    template_cohort,
)
from fluidjax.base.errors import UserError

SMOKE = grids.GRIDS['smoke']


@pytest.fixture
def lesion_mask(mni_at_8mm):
    """(24, 28, 24) uint8: a ball of tissue on the right."""
    mask = np.zeros(mni_at_8mm[0].shape, np.uint8)
    mask[14:18, 12:16, 12:16] = 1
    return mask


@pytest.fixture
def bids(tmp_path, write_scan, lesion_mask):
    """Five healthy subjects, one of them with an empty mask, and one with a lesion."""
    folder = tmp_path / 'bids'
    for number in range(1, 7):
        write_scan(folder / f'sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz')
    name = 'sub-{0}/anat/sub-{0}_label-lesion_mask.nii.gz'
    write_scan(folder / name.format('06'), lesion_mask)
    write_scan(folder / name.format('05'), 0 * lesion_mask)
    write_scan(folder / 'sub-01/anat/sub-01_T2w.nii.gz')
    write_scan(folder / 'sub-02/anat/sub-02_desc-brain_mask.nii.gz', lesion_mask)
    write_scan(folder / 'derivatives/x/sub-01_desc-preproc_T1w.nii.gz')
    return folder


def _build(folder, tmp_path, **changes):
    arguments = {'registration': 'none', **changes}
    return input_pipeline.nifti_cohort(SMOKE, tmp_path / 'store', folder, **arguments)


def test_pairs_with_equal_headers_are_told_apart(tmp_path):
    for number in range(2):
        data = np.full((8, 8, 8), number + 1, np.int16)
        nib.save(nib.Nifti1Pair(data, np.eye(4)), tmp_path / f'p{number}_T1w.hdr')
    source = nifti_source.NiftiSource(grids.GRIDS['smoke'], str(tmp_path))
    cases = scan_folders.find_cases(tmp_path, 'data_dir')
    assert len({records.key_of(case, source) for case in cases}) == 2
    before = source.fingerprint()
    image = tmp_path / 'p1_T1w.img'
    image.write_bytes(image.read_bytes() + b'x')
    assert source.fingerprint() != before


def test_a_test_folder_that_holds_the_training_scans_is_refused(tmp_path):
    (tmp_path / 'data' / 'healthy').mkdir(parents=True)
    folders = str(tmp_path / 'data' / 'healthy'), str(tmp_path / 'data')
    with pytest.raises(UserError, match='test_dir: .* holds data_dir .* too'):
        nifti_source.assign_splits(nifti_source.NiftiSource(grids.GRIDS['smoke'], *folders))


def test_bids_folder_becomes_splits(bids, tmp_path, write_scan, lesion_mask):
    write_scan(tmp_path / 'bank/one.nii.gz', lesion_mask)
    write_scan(tmp_path / 'more/sub-06_T1w.nii.gz')
    cohort = _build(bids, tmp_path, lesion_dir=tmp_path / 'bank', test_dir=tmp_path / 'more')
    assert cohort.sizes == {'train': 4, 'validation': 1, 'test': 2, 'lesions': 1}
    named = lambda split: [subject.name for subject in input_pipeline.subjects(cohort, split)]
    healthy = named('train') + named('validation')
    assert sorted(healthy) == [f'sub-{n:02d}' for n in range(1, 6)]
    assert named('test') == ['sub-06', 'sub-06_2']
    masked, unmasked = input_pipeline.subjects(cohort, 'test')
    assert masked.lesion.any() and unmasked.lesion is None and masked.healthy is None
    right = np.argwhere(masked.lesion)[:, 0]
    assert right.mean() > SMOKE.shape[0] / 2
    bank = input_pipeline.lesion_bank(cohort)
    assert bank.dtype == np.uint8
    np.testing.assert_array_equal(bank[0], masked.lesion)


def test_embedded_subjects_stand_beside_a_few_scans(bids, tmp_path):
    alone, cohort = _build(bids, tmp_path), _build(bids, tmp_path, embedded=8)
    assert cohort.sizes == {'train': 4 + 8, 'validation': 1 + 1, 'test': 1}
    assert cohort.directory != alone.directory
    trained = list(input_pipeline.subjects(cohort, 'train'))
    assert [subject.name for subject in trained[4:]] == [f'train-{n:03d}' for n in range(8)]
    made = template_cohort.make_record(SMOKE, 'train', 7)
    np.testing.assert_array_equal(trained[-1].image, made['image'])
    for ours, its in zip(trained, input_pipeline.subjects(alone, 'train')):
        np.testing.assert_array_equal(ours.image, its.image)


def test_all_scans_of_a_person_go_to_one_split(tmp_path, write_scan, lesion_mask):
    """Two sessions each; a person with a lesion in one session trains with neither."""
    folder = tmp_path / 'sessions'
    for subject in range(1, 8):
        for session in (1, 2):
            write_scan(folder / f'sub-{subject}/sub-{subject}_ses-{session}_T1w.nii.gz')
    write_scan(folder / 'sub-7/sub-7_ses-2_label-lesion_mask.nii.gz', lesion_mask)
    splits = nifti_source.assign_splits(nifti_source.NiftiSource(SMOKE, str(folder)))
    people = {split: {case.name.split('_')[0] for case in cases} for split, cases in splits.items()}
    assert not people['train'] & people['validation']
    assert people['train'] | people['validation'] == {f'sub-{n}' for n in range(1, 7)}
    assert people['test'] == {'sub-7'} and len(splits['train']) == 10


def test_folders_of_one_name_each_are_different_people(tmp_path, write_scan):
    for name in ('ann', 'ben', 'cem'):
        write_scan(tmp_path / f'plain/{name}/T1.nii.gz')
    splits = nifti_source.assign_splits(nifti_source.NiftiSource(SMOKE, str(tmp_path / 'plain')))
    assert (len(splits['train']), len(splits['validation'])) == (2, 1)


@pytest.mark.parametrize('given', [False, True])
def test_t1w_scans_do_not_test_a_model_of_other_contrasts(bids, tmp_path, write_scan, given):
    for end in ('T1w', 'FLAIR'):
        write_scan(tmp_path / f'patients/sub-11_{end}.nii.gz')
    splits = {'01': 'train', '02': 'validation', '06': 'test'}
    keys = {f'data_dir/sub-{n}/anat/sub-{n}_T1w.nii.gz': split for n, split in splits.items()}
    source = nifti_source.NiftiSource(
        SMOKE,
        str(bids),
        test_dir=str(tmp_path / 'patients'),
        assigned=tuple(keys.items()) if given else None,
    )
    for contrasts, ends in ((('t1w',), ['T1w', 'T1w']), (('flair', 't2w'), ['FLAIR'])):
        of_these = dataclasses.replace(source, test_contrasts=contrasts)
        cases = nifti_source.assign_splits(of_these)['test']
        assert [case.scan.name.split('.')[0].split('_')[-1] for case in cases] == ends


@pytest.mark.parametrize('purpose', ['test_dir', 'lesion_dir'])
def test_patients_inside_the_healthy_folder_are_refused(bids, purpose):
    source = nifti_source.NiftiSource(SMOKE, str(bids), **{purpose: str(bids / 'sub-06')})
    with pytest.raises(UserError, match=f'{purpose}: .* lies inside data_dir'):
        nifti_source.assign_splits(source)


def test_finished_cohort_is_reused_and_a_changed_file_makes_another(bids, tmp_path, write_scan):
    first = _build(bids, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in first.directory.iterdir()}
    again = _build(bids, tmp_path)
    assert again == first
    assert {p: p.stat().st_mtime_ns for p in again.directory.iterdir()} == stamps
    changed = bids / 'sub-01/anat/sub-01_T1w.nii.gz'
    os.utime(changed, ns=(1, 1))
    assert _build(bids, tmp_path).directory != first.directory


def test_fingerprint_depends_on_the_settings(bids):
    base = nifti_source.NiftiSource(SMOKE, str(bids))
    others = [
        nifti_source.NiftiSource(grids.GRIDS['demo'], str(bids)),
        nifti_source.NiftiSource(SMOKE, str(bids), registration='none'),
        nifti_source.NiftiSource(SMOKE, str(bids), seed=1),
        nifti_source.NiftiSource(SMOKE, str(bids), test_dir=str(bids)),
    ]
    prints = {source.fingerprint() for source in (base, *others)}
    assert len(prints) == 5 and base.fingerprint() in prints


def test_interrupted_build_is_not_taken_for_a_whole_one(bids, tmp_path, write_scan):
    broken = bids / 'sub-03/anat/sub-03_T1w.nii.gz'
    whole, before = broken.read_bytes(), broken.stat()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match='sub-03_T1w.nii.gz: is truncated') as error:
        _build(bids, tmp_path)
    assert '\n' not in str(error.value)
    assert not list((tmp_path / 'store').rglob('dataset_info.json'))
    broken.write_bytes(whole)
    os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _build(bids, tmp_path).sizes['train'] == 4


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match='data_dir: .*nowhere is not a folder'):
        _build(tmp_path / 'nowhere', tmp_path)


def test_too_few_healthy_scans(tmp_path, write_scan, lesion_mask):
    write_scan(tmp_path / 'in/a.nii')
    write_scan(tmp_path / 'in/b.nii')
    write_scan(tmp_path / 'in/b_lesion.nii', lesion_mask)
    with pytest.raises(UserError, match=r'holds 1 healthy scan\(s\) and 1 with a lesion'):
        _build(tmp_path / 'in', tmp_path)


def _case_error(tmp_path, write_scan, mask, says):
    source = nifti_source.NiftiSource(SMOKE, str(tmp_path), registration='none')
    case = scan_folders.Case(
        'a', write_scan(tmp_path / 'a.nii'), (write_scan(tmp_path / 'a_mask.nii', mask),)
    )
    with pytest.raises(UserError, match=says):
        records.make(case, source)


def test_parts_of_a_lesion_are_joined(tmp_path, write_scan, lesion_mask):
    """A patient one of whose masks is empty is no healthy subject."""
    for name in 'abc':
        write_scan(tmp_path / f'in/sub-{name}_T1w.nii')
    empty = np.zeros_like(lesion_mask)
    write_scan(tmp_path / 'in/sub-a_label-core_mask.nii', empty)
    write_scan(tmp_path / 'in/sub-a_label-edema_mask.nii', lesion_mask)
    source = nifti_source.NiftiSource(SMOKE, str(tmp_path / 'in'), registration='none')
    (case,) = nifti_source.assign_splits(source)['test']
    assert case.name == 'sub-a'
    lesion = records.make(case, source)['lesion']
    write_scan(tmp_path / 'in/sub-a_label-core_mask.nii', lesion_mask[::-1].copy())
    more = records.make(case, source)['lesion']
    assert 0 < lesion.sum() < more.sum() and not (lesion & ~more).any()


def test_mask_of_another_place(tmp_path, write_scan, lesion_mask):
    _case_error(tmp_path, write_scan, lesion_mask[14:], 'a_mask.nii: lesion mask of shape.*42 %')


def test_mask_outside_the_brain(tmp_path, write_scan, lesion_mask):
    outside = np.zeros_like(lesion_mask)
    outside[:3, :3, :3] = 1
    _case_error(tmp_path, write_scan, outside, 'a_mask.nii: 0 % of this lesion mask lie in the')


def test_a_healthy_scan_of_another_contrast_is_refused(bids, tmp_path, write_scan, mni_at_8mm):
    inverse = np.where(mni_at_8mm[0] > 0, 1200 - mni_at_8mm[0], 0).astype(np.float32)
    path = write_scan(bids / 'sub-03/anat/sub-03_T1w.nii.gz', inverse)
    with pytest.raises(UserError, match='sub-03_T1w.nii.gz: contrast is not .*as a healthy scan'):
        _build(bids, tmp_path)
    path.unlink()
    write_scan(bids / 'sub-06/anat/sub-06_T1w.nii.gz', inverse)
    assert _build(bids, tmp_path).sizes == {'train': 3, 'validation': 1, 'test': 1}


def test_brain_mask_is_not_a_lesion(tmp_path, write_scan, mni_at_8mm):
    brain = (mni_at_8mm[0] > 0).astype(np.uint8)
    _case_error(tmp_path, write_scan, brain, 'a_mask.nii: covers most of the brain')


def test_lesion_bank_outside_mni(tmp_path, write_scan, lesion_mask):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = 500
    path = write_scan(tmp_path / 'far.nii', lesion_mask, affine)
    with pytest.raises(UserError, match='far.nii: lies outside'):
        records.lesion_record(path, str(tmp_path), SMOKE)


def test_a_scan_among_the_masks_of_a_bank_is_refused(tmp_path, write_scan, mni_at_8mm):
    path = write_scan(tmp_path / 'p01_T1w.nii', *mni_at_8mm)
    with pytest.raises(UserError, match='p01_T1w.nii: covers most of the brain, .*lesion_dir'):
        records.lesion_record(path, str(tmp_path), SMOKE)


def test_a_quote_in_participants_does_not_swallow_rows(tmp_path):
    lines = ['participant_id\tgroup\t"age"', 'sub-01\t"left handed\t20', 'sub-02\t"b"\t30']
    (tmp_path / 'participants.tsv').write_text('\n'.join(lines) + '\n')
    rows = subject_splits.participants(tmp_path)
    assert {subject: row['age'] for subject, row in rows.items()} == {'01': '20', '02': '30'}
    assert rows['02']['group'] == 'b'
