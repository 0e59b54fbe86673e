"""Counts of n-grams: they are distributions, and say what the text says."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.data.ngram import Ngrams

V = 7
DOCUMENTS = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), min_size=1, max_size=6)


def dense(ngrams: Ngrams, ids: np.ndarray, lengths: list[int]) -> np.ndarray:
    found = ngrams.followers(ids, lengths)
    table_TV = found.rest[:, None] * ngrams.base
    np.add.at(table_TV, (found.rows, found.columns), found.values)
    return table_TV


@given(DOCUMENTS, DOCUMENTS, st.sampled_from([2, 3]))
def test_every_position_gets_a_distribution(text, other, order):
    ngrams = Ngrams.of_documents(text, V, order=order)
    ids = np.array([token for document in other for token in document])
    table_TV = dense(ngrams, ids, [len(document) for document in other])
    assert (table_TV > 0).all()
    np.testing.assert_allclose(table_TV.sum(1), 1, atol=1e-9)


@given(DOCUMENTS, DOCUMENTS)
def test_surprise_is_what_the_distributions_say(text, other):
    ngrams = Ngrams.of_documents(text, V)
    for document in other:
        table_TV = dense(ngrams, np.array(document), [len(document)])
        expected = -math.log2(ngrams.base[document[0]])
        expected -= sum(math.log2(table_TV[i, token]) for i, token in enumerate(document[1:]))
        assert ngrams.surprise(document) == pytest.approx(expected)


def test_a_bigram_by_hand():
    # After 1: 2 twice, 3 once; of all pairs, 3 came once and 1 twice: discount 3 / (3 + 2) = 0.6.
    ngrams = Ngrams.of_documents([[1, 2, 4], [1, 2], [0, 1, 3]], V, order=2)
    counts = Counter([2, 4, 2, 1, 3])
    base = np.array([(counts[token] + 0.1) / (5 + 0.1 * V) for token in range(V)])
    np.testing.assert_allclose(ngrams.base, base)
    found = ngrams.followers(np.array([1]), [1])
    assert found.columns.tolist() == [2, 3]
    np.testing.assert_allclose(found.values, [(2 - 0.6) / 3, (1 - 0.6) / 3])
    np.testing.assert_allclose(found.rest, [0.6 * 2 / 3])


def test_nothing_is_counted_across_the_end_of_a_piece():
    apart = Ngrams.of_documents([[1, 2], [3, 4]], V)
    assert apart.followers(np.array([2]), [1]).rows.size == 0
    joined = Ngrams.of_documents([[1, 2, 3, 4]], V)
    assert joined.followers(np.array([2]), [1]).columns.tolist() == [3]


def test_a_longer_context_says_more():
    text = [[1, 2, 3] if i % 2 else [4, 2, 5] for i in range(50)]
    three, two = (Ngrams.of_documents(text, V, order=order) for order in (3, 2))
    assert three.surprise([1, 2, 3]) < two.surprise([1, 2, 3]) - 0.5


def test_an_empty_text_leaves_everything_to_the_base():
    ngrams = Ngrams.of_documents([[5]], V)
    np.testing.assert_allclose(dense(ngrams, np.array([1, 2]), [2]), 1 / V)
