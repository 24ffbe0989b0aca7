"""The table of marked regions."""

from __future__ import annotations

import csv
import dataclasses
import io

import numpy as np
import pytest

from fluidjax.detect.reliability import Rising
from fluidjax.predict.regions import COLUMNS, Region, as_tsv, columns, regions_of

AFFINE = np.array([[-2.0, 0, 0, 40], [0, 2.0, 0, -30], [0, 0, 2.0, 10], [0, 0, 0, 1]])
MNI = np.array([[1.0, 0, 0, 5], [0, 1, 0, -1], [0, 0, 1, 2], [0, 0, 0, 1]])  # from the world


def a_map():
    found = np.zeros((40, 30, 30))
    found[2:5, 10:13, 10:13] = 0.3  # 27 voxels of 8 mm^3 at x = 34, on the right
    found[3, 11, 11] = 0.8
    found[30:36, 20:26, 5:11] = 0.25  # 216 voxels at x = -25, on the left
    found[20:23, 3:6, 3:6] = 0.4  # 27 voxels at x = -2, MNI x = 3
    found[10, 10, 20] = 0.9  # 0.008 ml
    return found


def test_regions_are_placed_sized_and_ranked():
    regions = regions_of(a_map() >= 0.2, a_map(), AFFINE, MNI, 0.2)
    assert [r.index for r in regions] == [1, 2, 3]
    assert [r.volume_ml for r in regions] == [1.728, 0.216, 0.216]
    assert [r.side for r in regions] == ['left', 'right', 'midline']
    right = regions[1]
    assert (right.x, right.y, right.z) == (34, -8, 32)
    assert (right.mni_x, right.mni_y, right.mni_z) == (39, -9, 34)
    assert right.peak == 0.8 and right.confidence == 0.75
    assert right.mean == pytest.approx((26 * 0.3 + 0.8) / 27, abs=1e-5)


def test_the_confidence_is_that_of_the_peak_where_it_is_known():
    known = Rising((0.25, 0.5, 1.0), (0.1, 0.6, 0.9))
    regions = regions_of(a_map() >= 0.2, a_map(), AFFINE, MNI, 0.2, confidence=known)
    assert [r.confidence for r in regions] == [0.1, 0.78, 0.4]  # of peaks 0.25, 0.8 and 0.4
    assert 'Share of' in columns(known)['confidence']['Description']
    assert 'ranks' in columns(None)['confidence']['Description']


def test_specks_and_empty_masks_are_no_regions():
    alone = np.zeros((9, 9, 9))
    assert regions_of(alone > 0, alone, AFFINE, MNI, 0.2) == []
    alone[4, 4, 4] = 1
    assert regions_of(alone > 0, alone, AFFINE, MNI, 0.2) == []
    assert len(regions_of(alone > 0, alone, AFFINE, MNI, 0.2, min_ml=0)) == 1


def test_the_table_as_text():
    regions = regions_of(a_map() >= 0.2, a_map(), AFFINE, MNI, 0.2)
    rows = list(csv.DictReader(io.StringIO(as_tsv(regions)), delimiter='\t'))
    assert [float(row['volume_ml']) for row in rows] == [1.728, 0.216, 0.216]
    assert as_tsv([]) == '\t'.join(COLUMNS) + '\n'
    assert [field.name for field in dataclasses.fields(Region)] == list(COLUMNS)
