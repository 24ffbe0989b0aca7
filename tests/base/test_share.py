"""Random numbers that do not depend on the number of devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fluidjax.base.share import Share, sample_keys

KEY = jax.random.key(3)


def test_keys_of_a_share_are_those_of_the_whole_batch_split():
    whole = jax.random.key_data(jax.random.split(KEY, 6))
    part = jax.random.key_data(Share(2, 6).keys(KEY, 3))
    np.testing.assert_array_equal(part, whole[2:5])


@pytest.mark.parametrize('draw', ['normal', 'uniform'])
def test_draws_of_a_share_are_part_of_the_whole_batchs(draw):
    whole = getattr(jax.random, draw)(KEY, (6, 2, 3))
    np.testing.assert_array_equal(getattr(Share(4, 6), draw)(KEY, (2, 2, 3)), whole[4:])
    np.testing.assert_array_equal(getattr(Share(), draw)(KEY, (6, 2, 3)), whole)


def test_keys_one_a_sample_are_taken_as_they_are():
    keys = jax.random.split(KEY, 4)
    assert sample_keys(keys, 4) is keys
    data = jax.random.key_data
    np.testing.assert_array_equal(data(sample_keys(KEY, 4)), data(keys))
    raw = jax.random.PRNGKey(0)  # two numbers, not two keys
    assert sample_keys(raw, 2).shape == (2, 2)
