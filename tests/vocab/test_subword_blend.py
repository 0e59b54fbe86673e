"""The pieces of a token: their mean, both ends, and their share in rows that have translations."""

import numpy as np
import pytest

from calque.data.lexicon import Lexicon
from calque.vocab.subword import subword
from calque.vocab.tokenizer import train_tokenizer
from calque.vocab.transtoken import transtoken


@pytest.fixture(scope="module")
def both(english, chichewa, corpus_of):
    return english, train_tokenizer(english, corpus_of(chichewa), mode="words", new=30, min_count=2)


def lexicon(english, chichewa):
    words = tuple(dict.fromkeys(w for line in chichewa for w in line.split() if w.isalpha()))[:20]
    ones = np.ones(len(words))
    return Lexicon(("water",) * len(words), words, ones * 9, ones / len(words))


def test_both_ends_are_the_first_and_the_last_piece(both):
    source, target = both
    ends, mean = subword(source, target, pieces="ends"), subword(source, target)
    for token in range(len(target)):
        pieces = source.encode_surface(target.surface[token]) if target.surface[token] else []
        row = dict(zip(ends.input[token].indices.tolist(), ends.input[token].data.tolist(), strict=True))
        if len(pieces) > 1 and target.strings[token] not in source.strings:
            assert set(row) == {pieces[0], pieces[-1]} and sum(row.values()) == pytest.approx(1)
    assert np.allclose(mean.input.sum(1)[mean.covered], 1)


def test_a_blend_of_one_is_the_pieces_and_of_zero_the_translations(both, english, chichewa):
    source, target = both
    evidence = lexicon(english, chichewa)
    plain, half, full = (transtoken(source, target, evidence, blend=b) for b in (0, 0.5, 1))
    pieces = subword(source, target)
    aligned = np.flatnonzero(np.isin(full.how, [full.how_names.index(n) for n in ("aligned", "relatives")]))
    assert len(aligned)
    assert np.allclose(full.input[aligned].toarray(), pieces.input[aligned].toarray())
    middle = 0.5 * plain.input[aligned].toarray() + 0.5 * pieces.input[aligned].toarray()
    assert np.allclose(half.input[aligned].toarray(), middle)
