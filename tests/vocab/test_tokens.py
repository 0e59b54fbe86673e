"""A tokenizer as bytes: every kind of vocabulary, round trips, words, pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from calque.errors import ModelError
from calque.vocab.tokens import Tokens, byte_alphabet


def _wordpiece():
    backend = Tokenizer(
        models.WordPiece({"[UNK]": 0, "dog": 1, "##s": 2, ",": 3, "##dog": 4, "d": 5}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return Tokens.wrap(backend, roles={"unk": "[UNK]"})


def _metaspace():
    names = ["<unk>", "<0x00>", "<0xFF>", "<0xE2>", "▁", "▁dog", "dog", "s", "▁▁", "d", "o", "g", "og"]
    vocabulary = {name: place for place, name in enumerate(names)}
    merges = [("o", "g"), ("d", "og"), ("▁", "dog")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_tokens([AddedToken("▁literal")])
    return Tokens.wrap(backend, roles={"unk": "<unk>"})


def test_surfaces_agree_across_kinds(english):
    wordpiece, metaspace = _wordpiece(), _metaspace()
    assert (wordpiece.kind, metaspace.kind, english.kind) == ("wordpiece", "metaspace", "bytelevel")
    assert wordpiece.surface == (None, b" dog", b"s", b",", b"dog", b" d")
    assert metaspace.surface[1:4] == (b"\x00", b"\xff", b"\xe2")
    assert metaspace.surface[4:9] == (b" ", b" dog", b"dog", b"s", b"  ")
    assert metaspace.surface[-1] == "▁literal".encode()
    assert english.surface[english.strings.index("Ġthe")] == b" the"
    assert wordpiece.by_surface[b" dog"] == 1


def test_special_tokens_by_role_and_string(english):
    assert english.special["bos"] == english.special["<s>"] == 1
    assert english.special["eos"] == english.special["</s>"] == len(english) - 1
    assert all(english.surface[token] is None for token in english.special_ids)
    assert english.roles["unk"] == "<pad>"


def test_a_piece_of_bytes_that_is_no_character_is_shown_as_bytes(english):
    token = english.by_surface[b"\xe2"]
    assert english.show(token) == "<0xE2>"
    assert english.show(english.special["bos"]) == "<s>"


@given(st.text())
def test_the_pieces_of_a_surface_write_it(english_text):
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    backend = Tokenizer(models.BPE({letters[byte]: byte for byte in range(256)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens = Tokens.wrap(backend)
    surface = english_text.encode()
    assert bytes(tokens.encode_surface(surface)) == surface


def test_pieces_of_other_kinds():
    assert _wordpiece().encode_surface(b" dogs") == [1, 2]
    assert _wordpiece().encode_surface(b" d") == [5]
    metaspace = _metaspace()
    assert metaspace.encode_surface(b"dogs") == [6, 7]
    assert metaspace.encode_surface(b" dogs") == [5, 7]
    assert metaspace.encode_surface(b"\xe2\xff") == [3, 2]


def test_words_keep_pieces_together(english):
    text = "Unbelievable kingdoms, 42"
    groups = english.words(text)
    assert [token for group in groups for token in group] == english.encode(text)
    shown = ["".join(english.decode([token]) for token in group) for group in groups]
    assert [word.strip() for word in shown] == ["Unbelievable", "kingdoms", ",", "", "4", "2"]


def test_words_of_scripts_without_blanks_stay_apart(english):
    assert len(english.words("水火")) == 2


def test_save_and_load(english, tmp_path):
    english.save(tmp_path / "tokenizer")
    again = Tokens.load(tmp_path / "tokenizer")
    assert again.strings == english.strings
    assert again.surface == english.surface
    assert dict(again.special) == dict(english.special)
    assert again.encode("The king's house") == english.encode("The king's house")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer at"):
        Tokens.open(tmp_path)


@pytest.mark.asset("smollm2-135m")
def test_the_real_tokenizer():
    tokens = Tokens.open("smollm2-135m")
    assert len(tokens) == 49_152
    assert tokens.config["chat_template"]
    text = "Mulungu 1984 ⵣ\n\n x"
    assert tokens.decode(tokens.encode(text)) == text
    assert b"".join(tokens.surface[token] or b"" for token in tokens.encode(text)) == text.encode()
    assert [tokens.decode([token]) for token in tokens.encode("1984")] == list("1984")
