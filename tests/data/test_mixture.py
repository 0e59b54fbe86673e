"""A mixture keeps its shares and goes on where it stopped."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from calque.data.mixture import Mixture, Place
from calque.data.pack import Pieces
from calque.errors import ConfigError


def source(sizes, first=0):
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return Pieces(np.arange(first, first + starts[-1]), starts, np.asarray(sizes), "x")


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(
    sizes=SIZES, more=SIZES, share=st.floats(0.05, 0.95), tokens=st.integers(1, 30), stop=st.integers(0, 9)
)
def test_goes_on_where_it_stopped(sizes, more, share, tokens, stop):
    sources = (source(sizes), source(more, 10_000))
    whole = Mixture(sources, (1 - share, share), seed=3)
    place = whole.start()
    batches = []
    for number in range(10):
        if number == stop:  # another object, told only the place
            whole = Mixture(sources, (1 - share, share), seed=3)
            place = Place.of_record(place.record())
        batch, place = whole.batch(place, tokens)
        batches.append(batch.ids)
        assert sum(batch.lengths) == len(batch.ids) == sum(batch.tokens)
        assert len(batch.ids) <= tokens or len(batch.lengths) == 1
    straight, again = Mixture(sources, (1 - share, share), seed=3), []
    place = straight.start()
    for _ in range(10):
        batch, place = straight.batch(place, tokens)
        again.append(batch.ids)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert abs(place.tokens[1] - share * sum(place.tokens)) <= max(*sizes, *more)


@given(sizes=SIZES, seed=st.integers(0, 9))
def test_each_epoch_is_every_piece_once(sizes, seed):
    mixture = Mixture((source(sizes),), (1.0,), seed)
    place, orders = mixture.start(), []
    for _ in range(2):
        seen = []
        for _ in sizes:
            batch, place = mixture.batch(place, 1)
            seen.append(int(batch.ids[0]))
        orders.append(seen)
        assert sorted(seen) == source(sizes).starts[:-1].tolist()
    assert mixture.epochs(place) == (2.0,)
    assert len(sizes) < 8 or orders[0] != orders[1]


@pytest.mark.parametrize("rates", [(1.0, 0.0), (1.0,), (float("nan"), 1.0), (-1.0, 2.0)])
def test_impossible_rates(rates):
    with pytest.raises(ConfigError, match="rates"):
        Mixture((source([1]), source([2])), rates)
