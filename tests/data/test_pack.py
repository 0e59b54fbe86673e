"""Each token of each document is predicted once."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from calque.data.pack import IGNORED, Batch, pack
from calque.errors import ConfigError, DataError

LETTERS = st.text("abcdefgh", max_size=40)
ONE_BYTE = np.concatenate([np.ones(100, dtype=np.int64), np.zeros(4, dtype=np.int64)])
BEGIN, END = 100, 101


def letters(texts):
    return [[ord(c) - 97 for c in text] for text in texts]


def made(documents, file, **settings):
    return pack(documents, letters, file=file, token_bytes=ONE_BYTE, **settings)


@settings(max_examples=60)
@given(documents=st.lists(LETTERS, min_size=1, max_size=5), length=st.integers(2, 9))
def test_every_token_is_predicted_once(tmp_path_factory, documents, length):
    file = tmp_path_factory.mktemp("pack") / "ids"
    if not any(documents):
        with pytest.raises(DataError):
            made(documents, file, length=length, begin=BEGIN, end=END)
        return
    for begin in (BEGIN, None):
        pieces = made(documents, file, length=length, begin=begin, end=END)
        predicted = [int(token) for n in range(len(pieces)) for token in pieces.piece(n)[1:]]
        skipped = 0 if begin else 1
        expected = [t for ids in letters(documents) if ids for t in [*ids, END][skipped:]]
        assert predicted == expected
        assert max(pieces.size(n) for n in range(len(pieces))) <= length
        assert pieces.nbytes.sum() == len([t for t in expected if t != END])


def test_labels_and_positions_begin_anew_with_each_piece():
    batch = Batch(np.array([5, 6, 7, 8, 9]), (3, 2), 0, (5,), (0, 0))
    assert batch.labels().tolist() == [6, 7, IGNORED, 9, IGNORED]
    assert batch.positions().tolist() == [0, 1, 2, 0, 1]
    assert batch.targets() == 3


def test_hash_tells_text_and_length_apart(tmp_path):
    one = made(["abcdef"], tmp_path / "a", length=4, begin=BEGIN, end=END).sha256
    assert one == made(["abcdef"], tmp_path / "a", length=4, begin=BEGIN, end=END).sha256
    assert one != made(["abcdef"], tmp_path / "a", length=5, begin=BEGIN, end=END).sha256
    assert one != made(["abcdeg"], tmp_path / "a", length=4, begin=BEGIN, end=END).sha256


def test_too_short_a_length(tmp_path):
    with pytest.raises(ConfigError, match="length 1"):
        made(["ab"], tmp_path / "a", length=1, begin=BEGIN, end=END)
