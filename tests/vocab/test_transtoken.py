"""Trans-tokenization beyond the authors' numbers: what its formula promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from calque.data.lexicon import Lexicon
from calque.vocab.tokenizer import train_tokenizer
from calque.vocab.tokens import Tokens
from calque.vocab.translation import smooth, word_counts
from calque.vocab.transtoken import transtoken


def lexicon(*rows):
    source, target, count = zip(*rows, strict=True)
    return Lexicon(source, target, np.array(count, float), np.full(len(rows), 0.5))


@pytest.fixture(scope="session")
def target(english, chichewa, corpus_of):
    return train_tokenizer(english, corpus_of(chichewa), mode="replace", min_count=2)


def way(vocab_map, token):
    return vocab_map.how_names[vocab_map.how[token]]


@given(st.integers(1, 7), st.integers(1, 7), st.floats(0.5, 1e4))
def test_every_new_piece_gets_the_whole_count(m, n, count):
    counts = word_counts([(range(m), range(n), count)], (n, m)).toarray()
    np.testing.assert_allclose(counts.sum(1), count if m == n == 1 else [count] * n)
    if m == n > 1:
        np.testing.assert_allclose(np.diag(counts), count / 2 + count / (2 * m))


def test_one_translation_is_copied_exactly(english, target):
    vocab_map = transtoken(english, target, lexicon(("people", "anthu", 20.0)), keep=False)
    token, old = target.by_surface[b" anthu"], english.by_surface[b" people"]
    table = np.random.default_rng(0).standard_normal((len(english), 3)).astype(np.float32)
    np.testing.assert_array_equal(vocab_map.apply(table)[token], table[old])


def test_equal_languages_map_every_word_to_itself(english):
    words = [("people", 9.0), ("children", 8.0), ("the", 30.0), ("houses", 4.0), ("river", 3.0)]
    vocab_map = transtoken(english, english, lexicon(*((w, w, c) for w, c in words)), keep=False)
    for word, _ in words:
        pieces = english.encode_surface(f" {word}".encode())
        for token in pieces:
            assert vocab_map.input[token].argmax() == token


def test_forms_share_evidence(english, target):
    names = [b"Nyumba", b" nyumba"]
    capital, small = (target.by_surface[name] for name in names)
    evidence = lexicon(("house", "nyumba", 9.0))
    vocab_map = transtoken(english, target, evidence, keep=False)
    assert way(vocab_map, capital) == way(vocab_map, small) == "aligned"
    bare = transtoken(english, target, evidence, keep=False, spread=0.0, relatives=False)
    assert way(bare, small) == "aligned"
    assert way(bare, capital) != "aligned"


def test_keeping_rows_or_letting_evidence_win(english, target):
    both = sorted(english.by_surface.keys() & target.by_surface.keys())
    name = next(surface for surface in both if surface[:1] == b" " and surface[1:].isalpha())
    evidence = lexicon(("people", name.decode().strip(), 50.0))
    shared = target.by_surface[name]
    kept = transtoken(english, target, evidence)
    assert kept.provenance(shared) == [(name.decode(), 1.0)]
    moved = transtoken(english, target, evidence, keep=False)
    assert moved.provenance(shared)[0][0] == " people"


def test_rare_translations_are_dropped(english, target):
    evidence = lexicon(("people", "anthu", 4.0), ("river", "mtsinje", 30.0))
    vocab_map = transtoken(english, target, evidence, min_count=10.0, relatives=False)
    assert way(vocab_map, target.by_surface[b" anthu"]) == "pieces"


@pytest.mark.parametrize(("unmapped", "expected"), [("subword", "pieces"), ("unk", "unknown")])
def test_tokens_without_any_evidence(english, target, unmapped, expected):
    vocab_map = transtoken(
        english, target, lexicon(("river", "mtsinje", 30.0)), relatives=False, unmapped=unmapped
    )
    token = target.by_surface[b" anthu"]
    assert way(vocab_map, token) == expected
    if unmapped == "unk":
        assert vocab_map.provenance(token) == [("<pad>", 1.0)]


def test_smoothing_does_not_depend_on_the_order_of_the_vocabulary(english, target):
    counts = word_counts([([9], [target.by_surface[b" an"]], 5.0), ([11], [target.by_surface[b"a"]], 2.0)],
                         (len(target), len(english)))  # fmt: skip
    straight, made = smooth(counts, english, target)
    order = np.random.default_rng(0).permutation(len(target))
    shuffled = Tokens(
        target.backend,
        tuple(target.strings[place] for place in order),
        tuple(target.surface[place] for place in order),
        {},
    )
    turned, made_again = smooth(csr_matrix(counts[order]), english, shuffled)
    assert made.any()
    np.testing.assert_array_equal(made_again, made[order])
    np.testing.assert_allclose(turned.toarray(), straight[order].toarray(), atol=1e-9)
