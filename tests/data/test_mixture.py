"""A mixture keeps its shares and goes on where it stopped."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from calque.data.mixture import Mixture, Place, by_size, linear, staged
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
    assert mixture.epochs_read(place) == (2.0,)
    assert len(sizes) < 8 or orders[0] != orders[1]


@pytest.mark.parametrize("rates", [(1.0, 0.0), (1.0,), (float("nan"), 1.0), (-1.0, 2.0)])
def test_impossible_rates(rates):
    with pytest.raises(ConfigError, match="rates"):
        Mixture((source([1]), source([2])), rates)


def test_temperature_flattens_what_sizes_say():
    assert by_size([900, 100], 1) == pytest.approx((0.9, 0.1))
    assert by_size([900, 100], 2) == pytest.approx((0.75, 0.25))
    assert by_size([900, 100], 1e9) == pytest.approx((0.5, 0.5))
    assert by_size([1e15, 1], 5) == pytest.approx((1000 / 1001, 1 / 1001))
    with pytest.raises(ConfigError, match="temperature 0"):
        by_size([1, 2], 0)


def drawn(mixture, steps, resume=()):
    """Tokens of each source in each step; at the steps in `resume` the stream is made anew."""
    place, found = mixture.start(), []
    for step in range(steps):
        if step in resume:
            mixture = Mixture(mixture.sources, mixture.rates, mixture.seed)
            place = Place.of_record(place.record())
        batch, place = mixture.batch(place, 40, step)
        found.append(batch.tokens)
    return np.array(found)


def test_rates_that_change_with_the_step_are_followed_and_resumed():
    sources = (source([4] * 50), source([5] * 30, 10_000))
    schedule = linear((1, 0), (0, 1), 100)
    assert schedule(0) == (1, 0) and schedule(25) == (0.75, 0.25) and schedule(500) == (0, 1)
    found = drawn(Mixture(sources, schedule), 120)
    share = found[:, 1].cumsum() / found.sum(1).cumsum()
    assert found[0, 1] == 0 and found[105:, 0].sum() <= 5
    assert abs(share[99] - 0.5) < 0.02
    assert (drawn(Mixture(sources, schedule), 120, resume=(7, 60, 119)) == found).all()
    stages = drawn(Mixture(sources, staged([(0, (1, 0)), (10, (1, 1)), (30, (0, 1))])), 40)
    assert stages[:10, 1].sum() == 0 and stages[32:, 0].sum() == 0
    assert abs(stages[10:30, 0].sum() - stages[10:30, 1].sum()) <= 10
    with pytest.raises(ConfigError, match=r"begin at steps \[1\]"):
        staged([(1, (1, 1))])
    with pytest.raises(ConfigError, match="as many rates"):
        Mixture(sources, staged([(0, (1, 1, 1))]))


@given(sizes=SIZES, epochs=st.integers(1, 3), tokens=st.integers(1, 30))
def test_a_limited_stream_ends_after_its_epochs(sizes, epochs, tokens):
    mixture = Mixture((source(sizes), source([3, 3], 10_000)), (0.7, 0.3), epochs=epochs)
    place, seen = mixture.start(), []
    while (found := mixture.batch(place, tokens)) is not None:
        batch, place = found
        seen += [int(ids[0]) for ids, origin in zip(batch.split(), batch.sources, strict=True) if origin == 0]
    assert sorted(seen) == sorted(source(sizes).starts[:-1].tolist() * epochs)
    assert mixture.batch(place, tokens) is None


def test_a_batch_is_shared_out_without_losing_a_piece():
    batch, _ = Mixture((source([9, 1, 4, 4, 2, 7]),), (1.0,)).batch(Place((0,), (0,), (0.0,)), 27)
    for ranks in (1, 2, 3, 8):
        shares = [batch.share(rank, ranks) for rank in range(ranks)]
        ids = [ids.tolist() for share in shares if share for ids in share.split()]
        assert sorted(ids) == sorted(part.tolist() for part in batch.split())
        assert sum(share is None for share in shares) == max(0, ranks - 6)
        if ranks < 4:
            loads = [len(share.ids) for share in shares]
            assert max(loads) - min(loads) <= 4
