"""Folders made ready for training: once, in parallel, by the user's own splits."""

from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import (
    grids,
    input_pipeline,
    mni_template,
    preparation,
    records,
    scan_folders,
    subject_splits,
)
from data_pipelines.nifti_source import NiftiSource
from data_pipelines.prepare import Request, build
from data_pipelines.subject_splits import Choice
from fluidjax.base.errors import UserError

SMOKE = grids.GRIDS['smoke']
AGES = {'01': '30', '02': '40', '03': 'n/a', '04': '50'}


def _brain(number):
    """A template brain at 10 mm, another gain for each number: (intensities, affine)."""
    grid = grids.ModelGrid((20, 22, 20), (10.0, 10.0, 10.0))
    maps = mni_template.on_grid(grid)
    image = np.where(maps.brain >= 0.5, (900 + 10 * number) * maps.t1, 0)
    return image.astype(np.float32), grid.affine


def _write(path, data, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


@pytest.fixture
def bids(tmp_path):
    """Four healthy subjects and a patient, with participants.tsv."""
    folder = tmp_path / 'data'
    for number in range(1, 6):
        image, affine = _brain(number)
        _write(folder / f'sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz', image, affine)
    mask = np.zeros(image.shape, np.uint8)
    mask[11:14, 9:12, 9:12] = 1
    _write(folder / 'sub-05/anat/sub-05_label-lesion_mask.nii.gz', mask, affine)
    splits = ['train', 'test', 'val', 'Train', 'test']
    lines = ['participant_id\tage\tsplit'] + [
        f'sub-{n:02d}\t{AGES.get(f"{n:02d}", "60")}\t{split}' for n, split in enumerate(splits, 1)
    ]
    (folder / 'participants.tsv').write_text('\n'.join([*lines, 'sub-99\t20\ttrain']) + '\n')
    return folder


def request(folder, store, **changes):
    return Request(str(folder), store, **{'size': 'smoke', 'registration': 'none', **changes})


def opened(folder, store, **changes):
    """The cohort as `main` opens it."""
    return input_pipeline.nifti_cohort(SMOKE, store, folder, registration='none', **changes)


def names(cohort, split):
    return [subject.name for subject in input_pipeline.subjects(cohort, split)]


def test_the_command_prepares_and_main_preprocesses_nothing(command, bids, tmp_path, monkeypatch):
    store = tmp_path / 'store'
    words = ('--size=smoke', '--registration=none', '--workers=1', '--split-column=split')
    done = command('prepare', bids, f'--out={store}', *words)
    assert done.returncode == 0, done.stderr
    assert '2 train, 1 validation, 2 test' in done.stdout
    assert f'--config.cohort.store={store}' in done.stdout
    monkeypatch.setattr(records, 'make', None)  # would be called
    cohort = opened(bids, store)
    assert names(cohort, 'train') == ['sub-01', 'sub-04']
    assert names(cohort, 'validation') == ['sub-03'] and names(cohort, 'test') == [
        'sub-02',
        'sub-05',
    ]
    page = (store / 'summary.html').read_text()
    assert page.count('data:image/png;base64') == 5 and '30 to 50, mean 40.0, of 2' in page
    assert 'src="http' not in page


def test_a_prepared_record_is_the_one_made_without(bids, tmp_path):
    build(request(bids, tmp_path / 'a'))
    prepared, direct = opened(bids, tmp_path / 'a'), opened(bids, tmp_path / 'b')
    assert prepared.sizes == direct.sizes and prepared.directory.name == direct.directory.name
    for split in prepared.sizes:
        for one, other in zip(
            input_pipeline.subjects(prepared, split),
            input_pipeline.subjects(direct, split),
            strict=True,
        ):
            assert one.name == other.name
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.affine, other.affine)
            assert (one.lesion is None) == (other.lesion is None)


def test_only_what_is_new_is_preprocessed(bids, tmp_path, monkeypatch):
    store, made = tmp_path / 'store', []
    real = records.make
    monkeypatch.setattr(
        records, 'make', lambda item, source: (made.append(item), real(item, source))[1]
    )
    build(request(bids, store))
    assert len(made) == 5
    build(request(bids, store, choice=Choice('split')))
    assert len(made) == 5  # other splits, the same records
    os.rename(bids / 'sub-01', bids / 'sub-10')
    os.rename(bids / 'sub-10/anat/sub-01_T1w.nii.gz', bids / 'sub-10/anat/sub-10_T1w.nii.gz')
    made.clear()
    build(request(bids, store))
    assert not made  # the same content under another name
    damaged = next((store / 'records').glob('*.npz'))
    damaged.write_bytes(damaged.read_bytes()[:100])
    build(request(bids, store))
    assert len(made) == 1


def test_a_failure_stops_at_the_end_or_is_left_out(bids, tmp_path):
    store = tmp_path / 'store'
    broken = bids / 'sub-02/anat/sub-02_T1w.nii.gz'
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match='1 of 5 files cannot be used.*sub-02.*--skip-failures'):
        build(request(bids, store))
    assert 'sub-02_T1w' in (store / 'summary.html').read_text()
    assert len(list((store / 'records').glob('*.npz'))) == 4
    assert '1 of 5 files left out' in build(request(bids, store, skip_failures=True))
    cohort = opened(bids, store)
    assert sum(cohort.sizes.values()) == 4 and cohort.sizes['test'] == 1


def test_a_patient_whose_mask_fails_does_not_train(bids, tmp_path):
    mask = bids / 'sub-05/anat/sub-05_label-lesion_mask.nii.gz'
    mask.write_bytes(mask.read_bytes()[:60])
    build(request(bids, tmp_path / 'store', skip_failures=True))
    cohort = opened(bids, tmp_path / 'store')
    assert 'test' not in cohort.sizes
    assert 'sub-05' not in names(cohort, 'train') + names(cohort, 'validation')


def test_lists_of_subjects(bids, tmp_path):
    lists = {}
    for split, subjects in (('train', 'sub-01\n02\n\n'), ('validation', 'sub-04')):
        path = tmp_path / f'{split}.txt'
        path.write_text(subjects)
        lists[split] = str(path)
    build(request(bids, tmp_path / 'store', choice=Choice(lists=lists)))
    cohort = opened(bids, tmp_path / 'store', seed=3)  # the lists hold for every seed
    assert cohort.sizes == {'train': 2, 'validation': 1}


@pytest.mark.parametrize(
    'lists,column,message',
    [
        ({'train': '01', 'validation': '77'}, '', "subject '77' has no scan"),
        ({'train': '01', 'validation': '01'}, '', "'01' is in the list of train too"),
        ({'train': '01'}, '', 'no scan of .* is given to validation'),
        ({'train': '05', 'validation': '01'}, '', 'holds a lesion'),
        ({'train': '01'}, 'split', 'give one'),
        ({}, 'group', "no column 'group'; it has participant_id, age, split"),
        ({}, 'age', "is '30'; it must be train"),
    ],
)
def test_splits_that_cannot_be_are_named(bids, tmp_path, lists, column, message):
    files = {}
    for split, text in lists.items():
        (tmp_path / split).write_text(text)
        files[split] = str(tmp_path / split)
    with pytest.raises(UserError, match=message):
        build(request(bids, tmp_path / 'store', choice=Choice(column, files)))


def test_a_store_of_other_files_is_not_taken_silently(bids, tmp_path):
    store = tmp_path / 'store'
    build(request(bids, store, choice=Choice('split')))
    _write(bids / 'sub-06/anat/sub-06_T1w.nii.gz', *_brain(6))
    with pytest.raises(UserError, match='prepared from other files.*fluidjax.prepare'):
        opened(bids, store)
    held = next((store / 'prepared').glob('*.json'))
    held.write_text(json.dumps([]))
    with pytest.raises(UserError, match='prepare the folder again'):
        opened(bids, store)


def test_atlas_layout_is_recognised(tmp_path):
    """ATLAS v2.0 holds nothing but derivatives."""
    folder = tmp_path / 'derivatives/ATLAS/sub-r001s001/ses-1/anat'
    name = 'sub-r001s001_ses-1_space-MNI152NLin2009aSym_'
    for ending in ('T1w', 'label-L_desc-T1lesion_mask'):
        _write(folder / f'{name}{ending}.nii.gz', *_brain(1))
    (case,) = scan_folders.find_cases(tmp_path, 'test_dir')
    assert case.scan.name.endswith('T1w.nii.gz') and 'lesion' in case.masks[0].name


@pytest.mark.slow
def test_workers_do_what_one_process_does(bids, tmp_path):
    source = NiftiSource(SMOKE, str(bids), registration='none')
    one, _ = preparation.prepare(source, tmp_path / 'one', Choice())
    two, outcomes = preparation.prepare(source, tmp_path / 'two', Choice(), workers=2)
    for outcome in outcomes:
        a, b = (records.load(s, outcome.record) for s in (one, two))
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_worker_that_is_killed_is_one_line(bids, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, '_numbered', lambda *_: os.kill(os.getpid(), 9))
    source = NiftiSource(SMOKE, str(bids), registration='none')
    with pytest.raises(UserError, match='--workers: a process was killed'):
        preparation.prepare(source, tmp_path / 'store', Choice(), workers=2)


@pytest.mark.parametrize(
    'rows,expected',
    [
        (['participant_id \tsplit ', 'sub-1\ttrain', '02 \tvalidation', 'SUB-3\ttest'], (1, 1, 0)),
        (
            ['participant_id\tsplit', '1\ttrain', '2\tval', '003\ttest\textra', '99\ttrain'],
            (1, 1, 1),
        ),
    ],
)
def test_participants_are_matched_where_there_is_one_meaning(
    bids, tmp_path, capsys, rows, expected
):
    (bids / 'participants.tsv').write_text('\n'.join(rows) + '\n')
    source = NiftiSource(SMOKE, str(bids), registration='none')
    assigned = subject_splits.assign(source, Choice('split'))
    splits = [split for _, split in assigned]
    assert tuple(splits.count(s) for s in ('train', 'validation', 'test')) == expected
    told = capsys.readouterr().err
    assert ('no scan of 99' in told or 'no scan of SUB-3' in told) and 'have no split' in told


@pytest.mark.parametrize('other', ['sub-01', '01', '1', 'sub-001'])
def test_two_rows_for_a_subject_are_refused(bids, other):
    lines = (bids / 'participants.tsv').read_text() + f'{other}\t30\ttest\n'
    (bids / 'participants.tsv').write_text(lines)
    source = NiftiSource(SMOKE, str(bids), registration='none')
    with pytest.raises(UserError, match='two rows|are the same subject'):
        subject_splits.assign(source, Choice('split'))
