"""Small test subjects with known lesions, and the tally of some maps."""

import numpy as np
import pytest
from subjects import cases, make_case  # noqa: F401

from fluidjax.detect.histogram import Tally


def _tally_of(maps, truths, regions=None) -> Tally:
    tally = Tally()
    for number, (one, truth) in enumerate(zip(maps, truths, strict=True)):
        region = np.ones(one.shape, bool) if regions is None else regions[number]
        tally.add(one[region], truth[region])
    return tally


@pytest.fixture(scope='session')
def tally_of():
    """A function (maps, lesion masks, regions) -> Tally."""
    return _tally_of
