"""What is a scan, whose it is, which mask belongs to it, and why a file is not used."""

from __future__ import annotations

import json
import os

import pytest

from data_pipelines import scan_arguments, scan_folders
from data_pipelines.file_names import Kind, kind_of, result_name
from fluidjax.base.errors import UserError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')
    return folder


@pytest.mark.parametrize(
    'kind, names',
    [
        (
            Kind.T1W,
            'sub-01_T1w sub-01_ses-1_desc-preproc_T1w sub-01_T1w_brain p01_t1w p03_T1 T1_p01 '
            'pat_lesion_study_03_T1 roi01_T1 BraTS19_1_t1 BraTS-GLI-00000-000-t1n p_mprage',
        ),
        (
            Kind.UNNAMED,
            'sub-01 normal_02 heroic_07 SEGovia_01 subj_seg01 PD_001 stroke_001 tumor_01 a_masked '
            'anat Labeling_3 B101 T201',
        ),
        (
            Kind.OTHER,
            'sub-01_acq-seg_FLAIR sub-01_task-labeling_bold sub-01_ce-gad_T1w '
            'sub-01_part-phase_T1w sub-1_T2w BraTS19_1_t1ce BraTS19_1_flair BraTS-GLI-00-000-t1c '
            'BraTS-GLI-0-0-t2f '
            'p01_pd p01_T1_Gd FLAIR_3 x_ADC p01_b1000 p01_T2 T2_p01',
        ),
        (
            Kind.LESION,
            'sub-01_label-lesion_mask sub-r1_space-MNI_label-L_desc-T1lesion_mask BraTS19_1_seg '
            'manual_seg p10-roi p01_lesionMask lesion_mask_p01 p01_tumor p01_WMH p01_T1_lesion',
        ),
        (
            Kind.ANATOMY,
            'sub-01_desc-brain_mask sub-01_T1w_brain_mask a_brain_mask brainmask aparc+aseg '
            'sub-1_label-GM_probseg sub-1_dseg p1_WM_mask',
        ),
        (Kind.RESULT, 'x_desc-anomaly_mask sub-1_desc-healthy_T1w p_desc-anomaly_map'),
    ],
)
def test_names_are_read_by_words_and_entities(kind, names):
    assert {name: kind_of(f'{name}.nii.gz')[0] for name in names.split()} == dict.fromkeys(
        names.split(), kind
    )


def test_names_of_results(tmp_path):
    assert result_name(tmp_path / 'sub-1_t1w.nii') == 'sub-1'
    assert result_name(tmp_path / os.fsdecode(b'M\xfcller.nii.gz')) == 'Mfcller'
    assert result_name(tmp_path / 'ann/mri/norm.mgz') == 'ann'


@pytest.mark.parametrize(
    'files, expected',
    [
        (
            ['a.nii', 'b.nii.gz', 'b_lesion.nii.gz', '.c.nii', 'notes.txt'],
            {'a': None, 'b': 'b_lesion.nii.gz'},
        ),
        (
            ['p1_t1.nii', 'p1_mask.nii', 'p10_t1.nii', 'p10-roi.nii'],
            {'p1_t1': 'p1_mask.nii', 'p10_t1': 'p10-roi.nii'},
        ),
        (
            ['one/T1.nii', 'one/lesion.nii', 'two/T1.nii'],
            {'one_T1': 'one/lesion.nii', 'two_T1': None},
        ),
        (['one/anat.nii', 'one/manual_seg.nii'], {'anat': 'one/manual_seg.nii'}),
        (['a.nii', 'a_brain_mask.nii', 'a_masked.nii'], {'a': None, 'a_masked': None}),
        (
            ['sub-1_ses-1_T1w.nii', 'sub-1_FLAIR.nii', 'sub-1_label-lesion_roi.nii'],
            {'sub-1_ses-1': 'sub-1_label-lesion_roi.nii'},
        ),
        (  # masks in derivatives, of the session that they name
            [
                'sub-1/ses-1/sub-1_ses-1_T1w.nii',
                'sub-1/ses-2/sub-1_ses-2_T1w.nii',
                'derivatives/x/sub-1/sub-1_ses-2_label-lesion_mask.nii',
                'derivatives/x/sub-9/sub-9_label-lesion_mask.nii',
            ],
            {
                'sub-1_ses-1': None,
                'sub-1_ses-2': 'derivatives/x/sub-1/sub-1_ses-2_label-lesion_mask.nii',
            },
        ),
        (  # images and labels in folders of their own
            ['images/p1.nii', 'images/p2.nii', 'labels/p1.nii'],
            {'p1': 'labels/p1.nii', 'p2': None},
        ),
        (
            ['B1/B1_t1.nii', 'B1/B1_t1ce.nii', 'B1/B1_t2.nii', 'B1/B1_flair.nii', 'B1/B1_seg.nii'],
            {'B1_t1': 'B1/B1_seg.nii'},
        ),
        (['p1_T1.hdr', 'p1_T1.img', 'p2_t1w.NII'], {'p1_T1': None, 'p2': None}),
        (  # each visit has its own mask
            [
                'sub-1_ses-1_T1w.nii',
                'sub-1_ses-2_T1w.nii',
                'sub-1_ses-1_label-lesion_mask.nii',
                'sub-1_ses-2_label-lesion_mask.nii',
                'sub-2/anat/sub-2_run-1_T1w.nii',
                'sub-2/anat/sub-2_run-2_T1w.nii',
                'sub-2/anat/sub-2_run-2_label-lesion_mask.nii',
            ],
            {
                'sub-1_ses-1': 'sub-1_ses-1_label-lesion_mask.nii',
                'sub-1_ses-2': 'sub-1_ses-2_label-lesion_mask.nii',
                'sub-2_run-1': None,
                'sub-2_run-2': 'sub-2/anat/sub-2_run-2_label-lesion_mask.nii',
            },
        ),
        (  # several masks are joined; another version of one is not
            [
                'sub-1_T1w.nii',
                'sub-1_label-core_mask.nii',
                'sub-1_label-edema_mask.nii',
                'p2_T1.nii',
                'p2_lesion.nii',
                'p2_mask.nii',
            ],
            {
                'sub-1': 'sub-1_label-core_mask.nii sub-1_label-edema_mask.nii',
                'p2_T1': 'p2_lesion.nii',
            },
        ),
        (['p01_T1.nii', '1_lesion.nii'], {'p01_T1': '1_lesion.nii'}),
        (
            ['B101_T1.nii', 'B102_T1.nii', 'B101_lesion.nii'],
            {'B101_T1': 'B101_lesion.nii', 'B102_T1': None},
        ),
        (
            ['Иванов_T1.nii', 'Петров_T1.nii', 'Петров_lesion.nii'],
            {'Иванов_T1': None, 'Петров_T1': 'Петров_lesion.nii'},
        ),
        (['B101.nii', 'B102.nii', 'B101_lesion.nii'], {'B101': 'B101_lesion.nii', 'B102': None}),
        (  # what else the names say does not identify anybody
            ['B101_V1_T1.nii', 'B102_V1_T1.nii', 'B102_V1_lesion.nii'],
            {'B101_V1_T1': None, 'B102_V1_T1': 'B102_V1_lesion.nii'},
        ),
        (
            ['T201_T1.nii', 'T202_T1.nii', 'T202_lesion.nii'],
            {'T201_T1': None, 'T202_T1': 'T202_lesion.nii'},
        ),
        (  # they differ in vowel signs
            ['राम_T1.nii', 'रीम_T1.nii', 'रीम_lesion.nii'],
            {'राम_T1': None, 'रीम_T1': 'रीम_lesion.nii'},
        ),
        (  # composed and decomposed
            ['Mu\u0308ller_T1.nii', 'b_T1.nii', 'M\xfcller_lesion.nii'],
            {'Mu\u0308ller_T1': 'M\xfcller_lesion.nii', 'b_T1': None},
        ),
        (
            ['p1_V1_T1.nii', 'p1_V2_T1.nii', 'p1_V2_lesion.nii'],
            {'p1_V1_T1': None, 'p1_V2_T1': 'p1_V2_lesion.nii'},
        ),
    ],
)
def test_scans_and_masks_are_told_apart(tmp_path, files, expected):
    cases = scan_folders.find_cases(touch(tmp_path, *files), 'data_dir')
    found = {c.name: ' '.join(str(m.relative_to(tmp_path)) for m in c.masks) or None for c in cases}
    assert found == expected


@pytest.mark.parametrize(
    'files, people',
    [
        (['p1/p1_T1.nii', 'p1/p1_followup_T1.nii', 'p2/p2_T1.nii'], 2),
        (['p1/baseline.nii', 'p1/year.nii', 'p2/baseline.nii', 'p2/year.nii'], 2),
        (['controls/c01.nii', 'controls/c02.nii', 'patients/p01.nii'], 3),
        (['controls/controls_01.nii', 'controls/controls_02.nii'], 2),
        (['scan1.nii', 'scan2.nii', 'scan3.nii'], 3),
        (['sub-1/T1.nii', 'sub-1/T1_again.nii', 'sub-2/T1.nii'], 2),
        (['sub-1_ses-1_T1w.nii', 'sub-1_ses-2_T1w.nii', 'sub-2_T1w.nii'], 2),
        (['B101_T1.nii', 'B102_T1.nii'], 2),
        (['p01/ses1/T1.nii', 'p01/ses2/T1.nii', 'p02/ses1/T1.nii'], 2),
        (['p01/baseline/p01_T1.nii', 'p01/follow-up/p01_T1.nii', 'p02/baseline/p02_T1.nii'], 2),
        ([f'{visit}/p{n}.nii' for visit in ('baseline', 'followup') for n in (1, 2, 3)], 3),
        (['site/m01/T1.nii', 'site/m02/T1.nii'], 2),
        (['visit1/T1.nii', 'visit2/T1.nii'], 2),
        (['Иванов_T1.nii', 'Петров_T1.nii'], 2),
        ([f'3T_{letters}{n:03}_T1.nii' for letters in ('M', 'MR') for n in range(30)], 60),
        ([f'site{s}_V{n:02}_T1.nii' for s in (1, 2) for n in range(10)], 20),
        ([f'3T/3T_M{n:03}_T1.nii' for n in range(30)], 30),
        ([f'3T_M{n:03}_V{v}_T1.nii' for n in range(30) for v in (1, 2)], 30),
        ([f'p{s}_M{n:02}_T1.nii' for s in (1, 2) for n in range(0, 36, 6)], 2),
        ([f'p{s}/p{s}_M{n:02}_T1.nii' for s in (1, 2) for n in (0, 12)], 2),
        ([f'p1_M{n:02}.nii' for n in range(9)] + [f'p{s}_M00.nii' for s in range(2, 12)], 11),
        ([f'p1_day{n}_T1.nii' for n in range(20)], 1),
    ],
)
def test_whose_scan_it_is(tmp_path, files, people):
    cases = scan_folders.find_cases(touch(tmp_path, *files), 'data_dir')
    assert len(cases) == len(files) and len({case.person for case in cases}) == people


@pytest.mark.parametrize(
    'files, expected',
    [
        (['a.nii', 'x/b.nii'], ['a', 'b']),
        (['x/a.nii', 'y/a.nii', 'z/b.nii'], ['x_a', 'y_a', 'b']),
        (['1/x/a.nii', '2/x/a.nii', 'y/a.nii'], ['1_x_a', '2_x_a', 'y_a']),
        (['x/a.nii', 'x/a.nii.gz'], ['a', 'a']),
    ],
)
def test_names_get_the_folders_that_they_need(tmp_path, files, expected):
    names = scan_folders.distinct_names([tmp_path / file for file in files])
    assert names == expected
    assert scan_folders.numbered(['a', 'b', 'a']) == ['a', 'b', 'a_2']


@pytest.mark.parametrize(
    'files, says',
    [
        (['notes.txt'], r'data_dir: found no scans.*\*_T1w.nii.*\*.nii.gz'),
        (['a_lesion.nii'], 'found only masks'),
        (['a.nii', 'b.nii', 'c_lesion.nii'], 'c_lesion.nii.*belongs to no scan'),
        (['T1.nii', 'T1_mprage.nii', 'T1_lesion.nii'], 'T1_lesion.nii.*belongs to no scan'),
        (['p01_T1.nii', 'p02_lesion.nii'], 'p02_lesion.nii.*belongs to no scan'),
        (['3T_M001_T1.nii', '3T_M002_lesion.nii'], 'M002_lesion.nii.*belongs to no scan'),
        (['p1_V1_T1.nii', 'p1_V2_lesion.nii'], 'V2_lesion.nii.*belongs to no scan'),
        (['sub-a_T1w.nii', 'sub-b_label-lesion_mask.nii'], 'sub-b_label.*belongs to no scan'),
        (['a_FLAIR.nii', 'b_T2w.nii'], r'no T1w scan among the 2 .*a_FLAIR.nii: flair by its name'),
        (['a.nrrd'], 'a.nrrd: its format is not read'),
        (['x_desc-healthy_T1w.nii'], 'holds only results of fluidjax'),
    ],
)
def test_folder_errors(tmp_path, files, says):
    with pytest.raises(UserError, match=says):
        scan_folders.find_cases(touch(tmp_path, *files), 'data_dir')


def test_dicom_is_told_of_dcm2niix(tmp_path):
    (tmp_path / 'IM0001').write_bytes(bytes(128) + b'DICM')
    with pytest.raises(UserError, match='holds DICOM files; convert them .* dcm2niix'):
        scan_folders.find_cases(tmp_path, 'data_dir')


def test_a_freesurfer_subject_is_one_scan(tmp_path):
    images = ('norm', 'T1', 'orig', 'brainmask', 'brain', 'aseg', 'aparc+aseg', 'wm', 'orig/001')
    touch(tmp_path, *(f'{who}/mri/{name}.mgz' for who in ('ann', 'ben') for name in images))
    (tmp_path / 'ben/mri/norm.mgz').unlink()
    for others in ((), ('sub-1_T1w.nii',)):
        listing = scan_folders.list_scans(touch(tmp_path, *others), 'data_dir')
        found = {case.name: case.scan.name for case in listing.cases if 'mri' in str(case.scan)}
        assert found == {'ann': 'norm.mgz', 'ben': 'brainmask.mgz'}
        assert len(listing.left_out) == 2 * len(images) - 1 - 2


def test_linked_folders_are_searched_once(tmp_path):
    touch(tmp_path / 'real', 'a.nii')
    touch(tmp_path / 'data', 'b.nii')
    os.symlink(tmp_path / 'real', tmp_path / 'data/linked')
    os.symlink(tmp_path / 'data', tmp_path / 'data/again')
    names = [case.name for case in scan_folders.find_cases(tmp_path / 'data', 'data_dir')]
    assert names == ['b', 'a']


def describe(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'dataset_description.json').write_text(json.dumps(content))


def test_results_and_derivatives_are_no_input(tmp_path):
    data = touch(tmp_path, 'p1.nii', 'p2.nii', 'results/p1/p1_desc-healthy_T1w.nii', 'other/q.nii')
    touch(data, 'pairs/one/healthy.nii', 'pairs/draws.json', 'results/p3.nii', 'x/sourcedata/s.nii')
    touch(data, 'run/config.json', 'run/checkpoints/x', 'run/eval/volumes/scan.nii')
    describe(data / 'results', DatasetType='derivative', GeneratedBy=[{'Name': 'fluidjax'}])
    describe(data / 'other', DatasetType='derivative', GeneratedBy=[{'Name': 'bet'}])
    listing = scan_folders.list_scans(data, 'data_dir')
    assert [case.name for case in listing.cases] == ['p1', 'p2']
    assert {reason for _, reason in listing.left_out} == {
        'a result of fluidjax',
        'in derivatives',
        'in sourcedata',
    }
    assert len(listing.left_out) == 6
    assert scan_folders.nifti_files(data, 'x') == sorted(
        data / name for name in ('p1.nii', 'p2.nii', 'other/q.nii', 'x/sourcedata/s.nii')
    )
    given = scan_folders.find_cases(data / 'other', 'data_dir')  # named by the user
    assert [case.name for case in given] == ['q']
    with pytest.raises(UserError, match='holds only results of fluidjax'):
        scan_folders.list_scans(data / 'results', 'data_dir')


def test_every_file_is_used_or_named(tmp_path):
    files = [
        *('sub-1_T1w.nii', 'sub-1_FLAIR.nii', 'sub-1_label-lesion_mask.nii', 'p2.nii'),
        *(
            'sub-1_desc-brain_mask.nii',
            'a.nrrd',
            'b.dcm',
            'c.img',
            'sub-2_T1w.hdr',
            'sub-2_T1w.img',
        ),
        *('derivatives/x/sub-1_T1w.nii', 'sub-1_lesion_mask.nii'),
    ]
    listing = scan_folders.list_scans(touch(tmp_path, *files), 'data_dir')
    named = [path for path, _ in listing.left_out]
    pairs = {tmp_path / 'sub-2_T1w.img'}  # counted with its header
    assert sorted([*listing.used, *named]) == sorted({tmp_path / f for f in files} - pairs)
    lines = scan_folders.counted(len(listing.used), listing.left_out)
    assert lines[0] == '4 of 11 image files are used'
    text = ' '.join(lines)
    assert all(str(path) in text for path in named)
    assert 'not used (FLAIR by its name, not T1w)' in text and 'dcm2niix' in text


def test_an_argument_without_scans_stops_nothing(tmp_path):
    touch(tmp_path, 'in/a.nii', 'masks/a_lesion.nii')
    given = scan_arguments.given_scans(
        [tmp_path / 'in', tmp_path / 'masks', tmp_path / 'in/a.nii'], tmp_path / 'out'
    )
    assert given.scans == (tmp_path / 'in/a.nii',)
    assert len(given.failures) == 1 and 'masks' in given.failures[0]
    with pytest.raises(UserError, match='found only masks'):
        scan_arguments.given_scans([tmp_path / 'masks'], tmp_path / 'out')


def test_visits_are_of_one_person(tmp_path):
    names = ('p01_day1_T1.nii', 'p01_day2_T1.nii', 'p02_day1_T1.nii', 'OAS1_0001_MR1.nii',
             'OAS1_0001_MR2.nii', 'OAS1_0002_MR1.nii', 'S01_V1_T1.nii', 'S01_V2_T1.nii',
             'visit1.nii', 'visit2.nii')  # fmt: skip
    cases = scan_folders.find_cases(touch(tmp_path, *names), 'data_dir')
    people: dict[tuple, set] = {}
    for case in cases:
        people.setdefault(case.person, set()).add(case.scan.name)
    together = {frozenset(files) for files in people.values() if len(files) > 1}
    assert together == {frozenset(names[:2]), frozenset(names[3:5]), frozenset(names[6:8])}


def test_results_of_randomize_are_no_input(tmp_path):
    folder = touch(tmp_path, '001_diseased.nii', '001_probability.nii', 'draws.json')
    with pytest.raises(UserError, match='holds only results of fluidjax'):
        scan_folders.list_scans(folder, 'SCAN')


def test_other_contrasts_in_sourcedata_are_not_used_twice(tmp_path):
    names = [f'sub-01/anat/sub-01_{name}.nii' for name in ('FLAIR', 'T1w')]
    touch(tmp_path, *names, *(f'sourcedata/{name}' for name in names))
    cases = scan_folders.find_cases(tmp_path, 'SCAN', ('t1w', 'flair'))
    assert [case.scan for case in cases] == [tmp_path / name for name in names]


def test_a_model_is_given_its_contrasts_folder_by_folder(tmp_path):
    both = touch(tmp_path / 'both', 'sub-1_T1w.nii', 'sub-1_FLAIR.nii')
    only = touch(tmp_path / 'only', 'sub-2_FLAIR.nii')

    def names(*contrasts, every=False):
        given = scan_arguments.given_scans([both, only], tmp_path / 'out', contrasts, every)
        return [path.name for path in given.scans], len(given.failures)

    assert names('t1w') == (['sub-1_T1w.nii'], 1)
    assert names('flair') == (['sub-1_FLAIR.nii', 'sub-2_FLAIR.nii'], 0)
    assert names('t1w', 'flair') == (['sub-1_T1w.nii', 'sub-2_FLAIR.nii'], 0)
    assert len(names('t1w', 'flair', every=True)[0]) == 3


def test_files_of_other_contrasts_are_used_where_they_are_wanted(tmp_path):
    names = ('sub-1_T1w.nii', 'sub-1_FLAIR.nii', 'sub-1_T2w.nii', 'sub-1_ce-gd_T1w.nii',
             'sub-1_dwi.nii', 'sub-1_label-lesion_mask.nii')  # fmt: skip
    data = touch(tmp_path, *names)

    def used(*contrasts):
        cases = scan_folders.find_cases(data, 'test_dir', contrasts)
        assert all([mask.name for mask in case.masks] == [names[-1]] for case in cases)
        return {case.scan.name for case in cases}

    assert used('t1w') == {names[0]}
    assert used('t2w', 'flair') == {names[1], names[2]}
    assert used('t1w', 't1ce') == {names[0], names[3]}
    reasons = dict(scan_folders.list_scans(data, 'test_dir', contrasts=('flair',)).left_out)
    assert reasons[data / names[0]] == 'T1w by its name, not flair'
