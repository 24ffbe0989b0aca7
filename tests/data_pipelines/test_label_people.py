"""Label maps of the same person are found by the volumes of their structures."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from data_pipelines import grids, label_people, nifti_source
from data_pipelines.scan_folders import Case

LEFT = np.array([2, 3, 4, 7, 8, 10, 11, 12, 13, 17, 18, 26, 28, 14, 15, 16])
RIGHT = {2: 41, 3: 42, 4: 43, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54}


def _label_map(path: Path, counts: np.ndarray, sides: bool = False) -> Case:
    """A file with so many voxels of each label, the second half of each on the right side."""
    volume = np.zeros(20 * 20 * 20, np.int16)
    values = np.concatenate([np.full(n, label) for label, n in zip(LEFT, counts, strict=True)])
    if sides:
        values[::2] = [RIGHT.get(label, label) for label in values[::2]]
    volume[: len(values)] = values
    nib.save(nib.Nifti1Image(volume.reshape(20, 20, 20), np.eye(4)), path)
    return Case(path.stem, path, (), (path.stem,))


def test_people_are_told_apart(tmp_path, capsys):
    random = np.random.default_rng(0)
    first = random.integers(200, 400, len(LEFT))
    other = np.round(first * random.choice([0.9, 1.1], len(LEFT))).astype(int)
    again = np.round(first * random.uniform(0.97, 1.03, len(LEFT))).astype(int)
    cases = [
        _label_map(tmp_path / 'a.nii', first),
        _label_map(tmp_path / 'b.nii', other),
        _label_map(tmp_path / 'c.nii', again, sides=True),
    ]
    found = label_people.one_person_each(cases)
    assert [case.person for case in found] == [('a',), ('b',), ('a',)]
    assert 'c.nii and a.nii are of one person' in capsys.readouterr().err


def test_people_stay_in_one_split(tmp_path):
    counts = np.random.default_rng(0).integers(100, 300, len(LEFT))
    for number in range(4):
        _label_map(tmp_path / f'a{number}.nii', counts)
        other = np.roll(counts, number + 1)
        _label_map(tmp_path / f'b{number}.nii', other)
    source = nifti_source.NiftiSource(grids.GRIDS['demo'], str(tmp_path), labels='freesurfer')
    splits = nifti_source.assign_splits(source)
    of_one = [{case.name[0] for case in cases if case.name[0] == 'a'} for cases in splits.values()]
    assert sum(map(len, of_one)) == 1
    assert sorted(case.name for cases in splits.values() for case in cases) == [
        f'{letter}{number}' for letter in 'ab' for number in range(4)
    ]


def test_few_structures_say_nothing(tmp_path):
    few = np.where(np.arange(len(LEFT)) < 5, 100, 0)
    cases = [_label_map(tmp_path / f'{name}.nii', few) for name in 'ab']
    assert [case.person for case in label_people.one_person_each(cases)] == [('a',), ('b',)]
