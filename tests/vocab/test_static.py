"""Word vectors from files and from text, and dictionaries."""

import sys

import numpy as np
import pytest

from calque.data.lexicon import Lexicon
from calque.errors import DataError, MissingExtra
from calque.vocab.focus import focus
from calque.vocab.static import Vectors, WordSpaces, read_dictionary, train_vectors, word_spaces
from calque.vocab.tokenizer import train_tokenizer
from calque.vocab.wechsel import wechsel

VEC = "3 2\nnyumba 1 2.5\nmu dzi 0 -1\nnyumba 9 9\nana 3e-1 4\n"


def test_text_format(tmp_path):
    (tmp_path / "a.vec").write_text(VEC, encoding="utf-8")
    vectors = Vectors.open(tmp_path / "a.vec")
    assert vectors.words == ("nyumba", "mu dzi", "ana")
    np.testing.assert_allclose(vectors.matrix, [[1, 2.5], [0, -1], [0.3, 4]])
    assert vectors.counts.tolist() == [3, 1, 1]
    assert vectors.look_up("x") is None
    vectors.save(tmp_path / "b.vec")
    np.testing.assert_allclose(Vectors.open(tmp_path / "b.vec").matrix, vectors.matrix)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nyumba 1 2\n", r":1: expected"),
        ("2 2\na 1 2\nb 1\n", r":3:"),
        ("1 2\na 1 x\n", r":2: not 2 numbers"),
        ("0 2\n", "no vectors"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "a.vec").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Vectors.open(tmp_path / "a.vec")
    with pytest.raises(DataError, match="no word vectors"):
        Vectors.open(tmp_path / "absent.vec")


def test_dictionaries_of_both_forms(tmp_path):
    file = tmp_path / "dictionary.tsv"
    file.write_text("house\tnyumba\ngood morning\tmwadzuka bwanji\nking mfumu\n\none two three\n\tx\n")
    assert read_dictionary(file) == (
        ("house", "nyumba"),
        ("good morning", "mwadzuka bwanji"),
        ("king", "mfumu"),
    )
    file.write_text("one two three\n")
    with pytest.raises(DataError, match="no word pairs"):
        read_dictionary(file)
    with pytest.raises(DataError, match="no dictionary"):
        read_dictionary(tmp_path / "absent.tsv")


def test_training_repeats_under_a_seed(chichewa):
    pytest.importorskip("gensim")
    lines = [line.split() for line in chichewa]
    first, again = (train_vectors(lines, dimension=8, epochs=2) for _ in range(2))
    np.testing.assert_array_equal(first.matrix, again.matrix)
    assert first.counts[first.places["ndi"]] == sum(line.count("ndi") for line in lines)
    assert first.look_up("nyumbayo") is not None
    with pytest.raises(DataError, match="no word occurs"):
        train_vectors([["a"]], min_count=2)


def test_without_gensim_the_extra_is_named(monkeypatch, tmp_path):
    for name in ("gensim", "gensim.models", "gensim.models.fasttext"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"calque\[static\]"):
        train_vectors([["a", "b"]])
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(MissingExtra, match=r"calque\[static\]"):
        Vectors.open(tmp_path / "a.bin")


def test_from_text_to_maps(english, chichewa, corpus_of, tmp_path):
    pytest.importorskip("gensim")
    text = corpus_of(chichewa)
    target = train_tokenizer(english, text, mode="extend", new=60, min_count=2)
    pairs = Lexicon(("house", "the"), ("nyumba", "ndi"), np.array([9.0, 5.0]), np.array([0.9, 0.5]))
    source_text = corpus_of([english.decode(english.encode("the house of the king and the people"))] * 9)
    spaces = word_spaces(source_text, text, pairs, dimension=6, epochs=2)
    assert spaces.pairs == (("house", "nyumba"), ("the", "ndi"))
    spaces.save(tmp_path / "spaces")
    again = WordSpaces.open(tmp_path / "spaces")
    assert again.pairs == spaces.pairs
    np.testing.assert_allclose(again.target.matrix, spaces.target.matrix, rtol=1e-4)
    vocab_map = wechsel(english, target, spaces)
    assert vocab_map.counts()["nearest"] > 60
    mixed = focus(english, target, text, epochs=2)
    assert mixed.counts()["similar"] > 0
