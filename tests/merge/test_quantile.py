"""Exact order statistics of a stream, against sorting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calque.merge import quantile
from calque.merge.quantile import OrderStatistic, keys, magnitude_keys, number, search

FLOATS = {np.float32: st.floats(width=32, allow_nan=False), np.float64: st.floats(allow_nan=False)}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(data=st.data())
def test_keys_sort_as_the_numbers_do(kind, data):
    values = data.draw(hnp.arrays(kind, st.integers(1, 40), elements=FLOATS[kind]))
    found = keys(torch.from_numpy(values))
    order = np.argsort(found, kind="stable")
    assert (np.diff(values[order][np.isfinite(values[order])]) >= 0).all()
    assert [number(int(key), found.dtype) for key in found] == values.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 4000),
    share=st.floats(0, 1),
    pieces=st.integers(1, 9),
    levels=st.sampled_from([0, 1, 3, 50]),
    sampled=st.sampled_from([0, 1, 7, 1000]),
    limit=st.sampled_from([4, 16, 1 << 22]),
    seed=st.integers(0, 9),
)
def test_it_is_what_sorting_finds(dtype, size, share, pieces, levels, sampled, limit, seed):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.standard_normal(size) * 10.0 ** rng.integers(-8, 8)).to(dtype)
    if levels:  # many equal numbers, as differences of 16-bit weights have them
        values = torch.round(values / values.abs().max() * levels)
    rank = min(size - 1, int(share * size))
    statistic = OrderStatistic(rank, size)
    if sampled:  # also misleading samples: the answer must not depend on them
        statistic.sample(keys(values[:sampled]))
    before, quantile._LIMIT = quantile._LIMIT, limit
    try:
        search([statistic], lambda: (keys(piece) for piece in values.chunk(pieces)))
    finally:
        quantile._LIMIT = before
    expected = np.sort(values.numpy())[rank]
    assert statistic.value == expected
    # keys tell -0.0 from 0.0, so counts are of keys
    ordered = np.sort(keys(values))
    assert statistic.below == np.searchsorted(ordered, statistic.key, "left")
    assert statistic.below + statistic.equal == np.searchsorted(ordered, statistic.key, "right")


def test_a_good_sample_makes_one_pass_enough():
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(200_000)).float()
    statistic = OrderStatistic(150_000, len(values))
    statistic.sample(magnitude_keys(values[::20].contiguous()))
    for part, piece in enumerate(values.split(1000)):
        statistic.add(magnitude_keys(piece), part)
    assert statistic.close()
    assert statistic.value == values.abs().sort().values[150_000]


def test_hits_count_the_guess_by_part():
    values = torch.arange(8.0).repeat(100)
    statistic = OrderStatistic(350, 800)
    statistic.sample(keys(values[:160]))
    for part in range(4):
        statistic.add(keys(values[200 * part : 200 * part + 200]), part)
    assert statistic.close() and statistic.value == 3.0
    assert statistic.key == statistic.guess
    assert statistic.hits == {0: 25, 1: 25, 2: 25, 3: 25}


def test_a_place_outside_the_stream_is_refused():
    with pytest.raises(ValueError, match="place 3"):
        OrderStatistic(3, 3)
