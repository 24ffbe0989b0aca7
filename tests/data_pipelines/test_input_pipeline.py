"""Batches: the same from a seed and a step, whatever the start, the processes and the devices."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from configs import ldm
from data_pipelines import grids, input_pipeline, template_cohort
from fluidjax.base.errors import UserError
from fluidjax.runs import cohort


def _take(cohort, count, **changes):
    arguments = {'split': 'train', 'batch_size': 4, 'seed': 7, **changes}
    return list(itertools.islice(input_pipeline.batches(cohort, **arguments), count))


def _ids(cohort, batches):
    """Which training subject each sample of each batch is."""
    images, _ = input_pipeline.load_images(cohort, 'train')
    keys = {image.tobytes(): number for number, image in enumerate(images)}
    shape = cohort.grid.shape
    return [
        [keys[image.tobytes()] for image in batch['image'].reshape(-1, *shape, 1)]
        for batch in batches
    ]


def test_cohort_on_disk(smoke_cohort):
    assert smoke_cohort.sizes == {'train': 8, 'validation': 2, 'test': 4}
    assert smoke_cohort.grid == grids.GRIDS['smoke']
    store = smoke_cohort.directory.parents[2]
    assert input_pipeline.template_cohort('smoke', store) == smoke_cohort
    assert sorted(p.name for p in store.iterdir()) == ['template_cohort']


def test_lesion_masks_beside_the_embedded_subjects(smoke_cohort, tmp_path, write_scan, monkeypatch):
    small = dataclasses.replace(template_cohort.SCALES['smoke'], sizes=(1, 2, 1))
    monkeypatch.setitem(template_cohort.SCALES, 'smoke', small)
    mask = np.zeros(smoke_cohort.grid.shape, np.uint8)
    mask[6:9, 6:9, 6:9] = 1
    write_scan(tmp_path / 'bank' / 'one.nii', mask, smoke_cohort.grid.affine)
    cohort = input_pipeline.template_cohort('smoke', tmp_path / 'store', tmp_path / 'bank')
    assert cohort.sizes == {'train': 1, 'validation': 2, 'test': 1, 'lesions': 1}
    np.testing.assert_array_equal(input_pipeline.lesion_bank(cohort), mask[None])
    ours, known = (list(input_pipeline.subjects(c, 'validation')) for c in (cohort, smoke_cohort))
    np.testing.assert_array_equal(ours[0].image, known[0].image)


def test_records_survive_the_disk(smoke_cohort):
    for number, subject in enumerate(input_pipeline.subjects(smoke_cohort, 'test')):
        expected = template_cohort.make_record(smoke_cohort.grid, 'test', number)
        assert subject.name == expected['name']
        for field in ('image', 'brain', 'lesion', 'healthy', 'affine'):
            np.testing.assert_array_equal(getattr(subject, field), expected[field])


def test_splits_hold_different_subjects(smoke_cohort):
    images = [
        subject.image if subject.healthy is None else subject.healthy
        for split in smoke_cohort.sizes
        for subject in input_pipeline.subjects(smoke_cohort, split)
    ]
    assert len({image.tobytes() for image in images}) == 14
    for subject in input_pipeline.subjects(smoke_cohort, 'validation'):
        assert subject.lesion is None and subject.healthy is None


def test_unshuffled_batches_hold_every_scan(smoke_cohort):
    batches = _take(smoke_cohort, 3, batch_size=3, shuffled=False)
    assert _ids(smoke_cohort, batches) == [[0, 1, 2], [3, 4, 5], [6, 7, 0]]


def test_batch_shape_and_content(smoke_cohort):
    (batch,) = _take(smoke_cohort, 1, num_devices=2)
    assert set(batch) == {'image', 'brain'}
    for value in batch.values():
        assert value.shape == (2, 2, 16, 16, 16, 1)
    assert batch['image'].dtype == np.float32 and batch['brain'].dtype == np.uint8
    assert set(np.unique(batch['brain'])) == {0, 1}
    assert not batch['image'][batch['brain'] == 0].any()


def test_an_epoch_is_a_permutation(smoke_cohort):
    epochs = np.reshape(_ids(smoke_cohort, _take(smoke_cohort, 8)), (4, 8))
    assert (np.sort(epochs, axis=1) == np.arange(8)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_seed_repeats_and_another_differs(smoke_cohort):
    first, again = (_ids(smoke_cohort, _take(smoke_cohort, 4)) for _ in range(2))
    assert first == again
    assert first != _ids(smoke_cohort, _take(smoke_cohort, 4, seed=8))


@pytest.mark.parametrize('start', [1, 2, 5])
def test_resuming_changes_nothing(smoke_cohort, start):
    whole = _ids(smoke_cohort, _take(smoke_cohort, 7))
    assert _ids(smoke_cohort, _take(smoke_cohort, 7 - start, start_step=start)) == whole[start:]


def test_a_late_start_is_as_fast(smoke_cohort):
    (batch,) = _take(smoke_cohort, 1, start_step=10**9)
    assert len(set(_ids(smoke_cohort, [batch])[0])) == 4


def test_processes_share_the_global_batch(smoke_cohort):
    whole = _ids(smoke_cohort, _take(smoke_cohort, 4, batch_size=4))
    parts = [
        _ids(smoke_cohort, _take(smoke_cohort, 4, batch_size=2, process_index=p, process_count=2))
        for p in range(2)
    ]
    assert [a + b for a, b in zip(*parts)] == whole
    assert all(len(set(batch)) == 4 for batch in whole)


def test_split_smaller_than_the_batch(smoke_cohort):
    ids = _ids(smoke_cohort, _take(smoke_cohort, 2, batch_size=20))
    for batch in ids:
        assert sorted(batch[:8]) == sorted(batch[8:16]) == list(range(8))
        assert batch[:8] != batch[8:16] and len(set(batch[16:])) == 4


def test_large_cohorts_are_read_from_disk_alike(smoke_cohort, monkeypatch):
    held = _take(smoke_cohort, 3)
    monkeypatch.setattr(input_pipeline, 'MEMORY_LIMIT_BYTES', 0)
    read = _take(smoke_cohort, 3)
    for a, b in zip(held, read):
        np.testing.assert_array_equal(a['image'], b['image'])
        np.testing.assert_array_equal(a['brain'], b['brain'])


def test_the_order_does_not_depend_on_the_number_of_threads(smoke_cohort, monkeypatch):
    monkeypatch.setattr(input_pipeline, 'MEMORY_LIMIT_BYTES', 0)
    orders = []
    for threads in (1, 7):
        monkeypatch.setattr(input_pipeline.joblib, 'cpu_count', lambda count=threads: count)
        orders.append(_ids(smoke_cohort, _take(smoke_cohort, 6)))
    assert orders[0] == orders[1]


def test_a_fetch_unpacks_only_the_image_and_the_brain(smoke_cohort):
    record = input_pipeline._records(smoke_cohort, 'train', ('image', 'brain'))[0]
    assert record['image'].shape == record['brain'].shape == smoke_cohort.grid.shape
    assert isinstance(record['healthy'], bytes) and isinstance(record['lesion'], bytes)  # packed


def test_no_lesion_bank_in_the_embedded_cohort(smoke_cohort):
    assert input_pipeline.lesion_bank(smoke_cohort) is None


@pytest.mark.parametrize(
    'changes, says',
    [
        ({'batch_size': 3, 'num_devices': 2}, 'batch size 3 cannot be shared by 2'),
        ({'batch_size': 0}, 'batch size 0'),
        ({'split': 'lesions'}, r"split 'lesions' has no subject; it has train \(8\)"),
    ],
)
def test_batch_errors(smoke_cohort, changes, says):
    with pytest.raises(UserError, match=says):
        _take(smoke_cohort, 1, **changes)


def test_unknown_scale(tmp_path):
    with pytest.raises(UserError, match='choose one of demo, smoke, 2mm'):
        input_pipeline.template_cohort('huge', tmp_path)


def test_a_store_in_the_home_folder_is_found(tmp_path, monkeypatch):
    config = ldm.get_config('smoke')
    config.cohort.store = '~/store'
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(input_pipeline, 'template_cohort', lambda size, store, *_: store)
    assert cohort.open_cohort(config) == tmp_path / 'store'
