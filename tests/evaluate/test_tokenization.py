import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.errors import ConfigError
from calque.evaluate.tokenization import sentences, tokenization
from calque.vocab.tokens import Tokens, byte_alphabet

from .conftest import VERSES, byte_level, corpus


def text(*lines, language="nya_Latn"):
    return Corpus.of(Example(str(i), {language: line}, group="doc") for i, line in enumerate(lines))


def only_bytes():
    backend = Tokenizer(models.BPE({char: byte for char, byte in byte_alphabet().items()}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokens.wrap(backend)


def whole_words(*known):
    vocabulary = {word: place for place, word in enumerate(("<unk>", *known))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokens.wrap(backend, roles={"unk": "<unk>"})


def fallback():
    """A sentencepiece-like vocabulary: a few pieces, and a token for each byte."""
    vocabulary = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}}
    for piece in ("▁", "m", "o", "y", "▁m", "▁mo", "▁moy", "▁moyo"):
        vocabulary[piece] = len(vocabulary)
    merges = [("▁", "m"), ("▁m", "o"), ("▁mo", "y"), ("▁moy", "o")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return Tokens.wrap(backend, roles={"unk": "<unk>"})


def counts(tokens, *lines, language="nya_Latn"):
    table = tokenization({"t": tokens}, {"x": text(*lines, language=language)}, examples=0)
    return {row["metric"]: row["value"] for row in table.rows()}


def test_a_vocabulary_of_bytes_has_a_token_for_each_byte():
    found = counts(only_bytes(), *VERSES)
    assert found["tokens"] == found["bytes"] == len("\n".join(VERSES).encode())
    assert found["characters"] == len("\n".join(VERSES))
    assert found["split_words"] == found["words"] == sum(len(v.split()) for v in VERSES)
    foreign = sum(len(c.encode()) for c in "\n".join(VERSES) if ord(c) > 127)
    assert found["crumb_bytes"] == foreign
    assert found["covered_characters"] == sum(ord(c) < 128 for c in "\n".join(VERSES))
    assert found["unknown"] == 0


def test_a_vocabulary_of_whole_words_has_fertility_one():
    found = counts(whole_words("moyo", "wanga"), "moyo wanga moyo")
    assert (found["tokens"], found["words"], found["split_words"], found["unknown"]) == (3, 3, 0, 0)
    found = counts(whole_words("moyo"), "moyo wanga")
    assert (found["tokens"], found["unknown"]) == (2, 1)


def test_byte_fallback_is_counted_in_bytes():
    found = counts(fallback(), "moyo ሰ")
    # ▁moyo, ▁, and three bytes of one Ethiopic letter
    assert found["tokens"] == 5 and found["crumb_bytes"] == 3
    assert found["split_words"] == 1
    assert found["covered_characters"] == len("moyo ")


def test_trained_pieces_leave_words_whole_and_marks_around_them_do_not_count():
    tokens = Tokens.of(byte_level(900))
    found = counts(tokens, "ndipo Mulungu, ndipo “Mulungu”")
    assert found["words"] == 4 and found["split_words"] == 0
    assert counts(tokens, "zzqzz")["split_words"] == 1


def test_scripts_without_blanks_count_characters():
    found = counts(only_bytes(), "你好 吗", language="zho_Hans")
    assert (found["words"], found["split_words"], found["crumb_bytes"]) == (3, 3, 9)


def test_the_pieces_of_example_sentences_put_together_are_the_sentence():
    tokens = Tokens.of(byte_level())
    table = tokenization({"t": tokens}, {"x": corpus()}, examples=2)
    found = list(table.where(metric="pieces").rows())
    assert [row["item"] for row in found] == ["example 1", "example 2"]
    for row, sentence in zip(found, sentences(corpus(), "nya_Latn", 2), strict=True):
        pieces = json.loads(row["output"])
        assert len(pieces) == row["value"]
        if sentence.isascii():
            assert "".join(pieces) == sentence


def test_example_sentences_fit_on_a_line():
    lines = ["short", "x" * 300, *VERSES]
    assert sentences(text(*lines), "nya_Latn", 2) == [VERSES[0], VERSES[2]]
    assert sentences(text("short"), "nya_Latn", 3) == ["short"]


def test_no_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="no tokenizer"):
        tokenization({}, {"x": corpus()})
