"""Spans that are cut out can be put back, and are as many as the paper says; masks hit what they may."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from calque.data.noise import (
    byte_sentinels,
    cut_spans,
    mask_noise,
    raw_length,
    restore_spans,
    span_count,
    span_noise,
)
from calque.data.pack import IGNORED, Batch
from calque.errors import ConfigError


def batch_of(*pieces):
    sizes = tuple(map(len, pieces))
    return Batch(
        np.concatenate(pieces), sizes, 0, (sum(sizes),), (0,) * len(sizes), draws=tuple(range(len(sizes)))
    )


@given(n=st.integers(2, 400), seed=st.integers(0, 99), density=st.floats(0.05, 0.9), span=st.floats(1, 30))
def test_cut_spans_go_back_where_they_were(n, seed, density, span):
    ids = np.random.default_rng(seed).integers(0, 200, n)
    sentinels = range(10_000, 9_000, -1)
    left, out = cut_spans(ids, sentinels, np.random.default_rng(seed), density=density, mean_span=span)
    noise, spans = span_count(n, density, span)
    assert (restore_spans(left, out, sentinels) == ids).all()
    assert len(left) + len(out) - 2 * spans == n
    assert len(out) == noise + spans and 1 <= noise <= n - 1
    marks = [t for t in left if t > 9_000]
    assert marks == [t for t in out if t > 9_000] == list(sentinels)[:spans]


def test_the_lengths_of_the_published_byte_models():
    assert raw_length(1024, 0.15, 20) == (1193, 189)
    assert span_count(1193, 0.15, 20) == (179, 9)
    sentinels = byte_sentinels()
    assert sentinels[:3] == (258, 257, 256) and len(sentinels) == 11
    assert min(sentinels) - 3 == 0xF5  # no such byte stands in UTF-8
    text = "mawu anyamulidwa, é " * 80
    ids = np.frombuffer(text.encode()[:1193], np.uint8).astype(np.int64) + 3
    batch = span_noise(batch_of(ids), sentinels, 1, seed=0, density=0.15, mean_span=20.0)
    assert batch.prompts == (1024,) and batch.lengths == (1024 + 189,)
    left, out = batch.ids[:1023], batch.ids[1024:-1]
    assert (restore_spans(left, out, sentinels) == ids).all()
    assert batch.ids[1023] == batch.ids[-1] == 1
    assert batch.targets() == 189


def test_more_spans_than_sentinels_are_refused():
    with pytest.raises(ConfigError, match=r"cut in 15 spans, but there are 11 sentinels"):
        cut_spans(np.arange(2000), byte_sentinels(), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="length 2"):
        raw_length(2, 0.15, 3.0)


@given(sizes=st.lists(st.integers(3, 60), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_masks_hide_the_share_and_spare_what_is_special(sizes, seed):
    pieces = [np.concatenate([[1], np.random.default_rng(n).integers(5, 50, n), [2]]) for n in sizes]
    whole = batch_of(*pieces)
    noised = mask_noise(whole, mask=4, vocabulary=50, special=[1, 2, 4], seed=seed, share=0.15)
    for before, after, answer in zip(pieces, noised.split(), noised.answers, strict=True):
        chosen = answer != IGNORED
        assert (before[chosen] == answer[chosen]).all() and (before[~chosen] == after[~chosen]).all()
        assert not chosen[0] and not chosen[-1]
        assert chosen.sum() == max(1, round(0.15 * (len(before) - 2)))
    alone = mask_noise(whole.take([0]), mask=4, vocabulary=50, special=[1, 2, 4], seed=seed, share=0.15)
    assert (alone.ids == noised.split()[0]).all()


def test_of_many_chosen_tokens_four_fifths_are_masked_and_a_tenth_is_kept():
    ids = np.full(20_000, 7)
    noised = mask_noise(batch_of(ids), mask=4, vocabulary=1000, special=[], seed=0, share=0.5)
    chosen = noised.answers[0] != IGNORED
    assert chosen.sum() == 10_000
    assert abs((noised.ids[chosen] == 4).mean() - 0.8) < 0.02
    assert abs((noised.ids[chosen] == 7).mean() - 0.1) < 0.02
