"""Batches of several processes."""

from __future__ import annotations

import dataclasses

import numpy as np

from fluidjax.runs.feed import Feed
from fluidjax.training import parallel


def test_processes_draw_their_part_of_the_lesion_masks():
    feed = Feed.__new__(Feed)
    feed._bank, feed._seed = np.arange(50), 4
    layout = parallel.Layout(8, ('a',))
    batch = {'image': np.zeros((1, 8))}
    feed.layout = layout
    whole = feed._draw(3, batch)
    parts = []
    for process in (0, 1):
        feed.layout = dataclasses.replace(layout, process=process, processes=2)
        parts.append(feed._draw(3, {'image': np.zeros((1, 4))}))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert len(set(whole.ravel().tolist())) > 3
