"""Training, extending and pruning byte-level BPE."""

import json
import string
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from calque.errors import ConfigError, DataError
from calque.vocab.bpe import count_words, learn, replay
from calque.vocab.tokenizer import train_tokenizer
from calque.vocab.tokens import Tokens
from calque.vocab.words import whole_words, with_variants

MODES = ["words", "replace", "extend", "prune_extend"]
EDGES = ["", " ", "  x", "\n\n\t", "héllo wörld 🎉 ⵣ 12345", "\u0000\ud7ff\ufeff", "<s>", "a</s>b", "ﷺ\u200d"]


@pytest.fixture(scope="session")
def trained(english, chichewa, corpus_of):
    text = corpus_of(chichewa)
    return {mode: train_tokenizer(english, text, mode=mode, keep=120, min_count=3) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(EDGES))
def test_any_text_survives(trained, mode, text):
    tokens = trained[mode]
    assert tokens.decode(tokens.encode(text)) == text


@pytest.mark.parametrize("mode", MODES)
def test_ids_and_special_tokens(trained, english, mode):
    tokens = trained[mode]
    spec = json.loads(tokens.backend.to_str())
    assert sorted(spec["model"]["vocab"].values()) == list(range(len(tokens)))
    assert tokens.roles == english.roles
    assert set(english.special) <= set(tokens.special)
    assert tokens.special["<pad>"] == 0
    assert tokens.special["<s>"] == 1
    made = {first + second for first, second in spec["model"]["merges"]}
    assert made <= set(tokens.strings)
    if mode == "extend":
        assert tokens.strings[: len(english)] == english.strings


@pytest.mark.parametrize("mode", MODES)
def test_the_target_text_gets_shorter(trained, english, chichewa, mode):
    def length(tokens):
        return sum(map(len, tokens.encode_batch(chichewa)))

    assert length(trained[mode]) < 0.5 * length(english)


def test_kept_merges_cut_as_before(english, corpus_of):
    text = corpus_of(["zzxx qqvv zzxx qqvv"] * 9)
    everything = len(json.loads(english.backend.to_str())["model"]["merges"])
    tokens = train_tokenizer(english, text, mode="prune_extend", keep=everything, min_count=2)
    for line in ("The children went to the water", "near the king's 12 houses"):
        names = [english.strings[token] for token in english.encode(line)]
        assert [tokens.strings[token] for token in tokens.encode(line)] == names


def test_needed_tokens_stay(english, chichewa, corpus_of):
    replay_text = corpus_of(["children children children"])
    options = {"mode": "prune_extend", "keep": 10, "min_count": 99}
    without = train_tokenizer(english, corpus_of(chichewa), **options)
    tokens = train_tokenizer(english, corpus_of(chichewa), replay_text, need=2, **options)
    names = [english.strings[token] for token in english.encode(" children")]
    assert [tokens.strings[token] for token in tokens.encode(" children")] == names
    assert len(without.encode(" children")) > len(names)


def test_sizes(english, chichewa, corpus_of):
    text = corpus_of(chichewa)
    assert len(train_tokenizer(english, text, mode="replace", size=300, min_count=1)) == 300
    assert len(train_tokenizer(english, text, mode="extend", new=25, min_count=1)) == len(english) + 25
    with pytest.raises(ConfigError, match="not both"):
        train_tokenizer(english, text, size=300, new=5)
    with pytest.raises(ConfigError, match="less than the"):
        train_tokenizer(english, text, mode="extend", size=300)
    with pytest.raises(DataError, match="no words"):
        train_tokenizer(english, corpus_of([""]))


def test_digits_are_split_in_a_new_tokenizer(english, corpus_of):
    plain = Tokenizer.from_str(english.backend.to_str())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens = train_tokenizer(Tokens.wrap(plain), corpus_of(["1994 1994 1994 1994"] * 9), mode="replace")
    assert [tokens.decode([token]) for token in tokens.encode("1994")] == list("1994")


def test_other_kinds_are_replaced_or_refused(chichewa, corpus_of):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(["the children and the water"] * 20, trainer)
    base = Tokens.wrap(backend, roles={"unk": "<unk>"})
    tokens = train_tokenizer(base, corpus_of(chichewa), mode="replace", size=80)
    assert tokens.kind == "metaspace"
    assert tokens.roles["unk"] == "<unk>"
    for mode in ("extend", "prune_extend"):
        with pytest.raises(ConfigError, match="byte-level BPE"):
            train_tokenizer(base, corpus_of(chichewa), mode=mode)


def test_special_tokens_of_a_template_get_their_new_ids(english, chichewa, corpus_of):
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer.from_str(english.backend.to_str())
    backend.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", english.special["</s>"])]
    )
    tokens = train_tokenizer(
        Tokens.wrap(backend, roles=english.roles), corpus_of(chichewa), mode="prune_extend", keep=20
    )
    assert tokens.backend.encode("a").ids[-1] == tokens.special["</s>"] != english.special["</s>"]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("abc", min_size=1, max_size=7), min_size=1, max_size=25),
    st.integers(1, 20),
    st.integers(1, 3),
)
def test_learning_equals_counting_afresh(words, limit, least):
    counts: dict[tuple[str, ...], int] = {}
    for place, word in enumerate(words):
        counts[tuple(word)] = counts.get(tuple(word), 0) + place % 5 + 1
    merges = learn(counts, set("abc"), limit=limit, min_count=least)
    cut = {word: list(word) for word in counts}
    tokens = set("abc")
    for merge in merges:
        pairs: dict[tuple[str, str], int] = {}
        for word, symbols in cut.items():
            for pair in pairwise(symbols):
                pairs[pair] = pairs.get(pair, 0) + counts[word]
        assert pairs[merge] == max(pairs.values()) >= least
        tokens.add("".join(merge))
        cut = {word: _join(symbols, merge) for word, symbols in cut.items()}
    assert len(tokens) - 3 <= limit
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for word, symbols in cut.items():
        assert replay("".join(word), ranks)[0] == symbols


def _join(symbols, merge):
    place = 0
    while place < len(symbols) - 1:
        if (symbols[place], symbols[place + 1]) == merge:
            symbols[place : place + 2] = ["".join(merge)]
        place += 1
    return symbols


def test_replay_equals_the_library(english):
    spec = json.loads(english.backend.to_str())
    ranks = {tuple(pair): rank for rank, pair in enumerate(spec["model"]["merges"])}
    words = count_words(
        english.backend, ["The children of the kings went away, 3 days ago", string.printable]
    )
    for word in words:
        assert replay(word, ranks)[0] == [piece.value for piece in english.backend.model.tokenize(word)]


@pytest.mark.asset("smollm2-135m")
@pytest.mark.asset("bible-nya")
def test_the_real_tokenizer_is_carried_over():
    from calque.data.corpus import Corpus

    base = Tokens.open("smollm2-135m")
    text = Corpus.open("bible-nya").sample(100_000)
    tokens = train_tokenizer(base, text, mode="prune_extend", keep=8_000, new=1_000, min_count=2)
    lines = list(text.texts())[:200]
    for line in lines:
        assert tokens.decode(tokens.encode(line)) == line
    assert sum(map(len, tokens.encode_batch(lines))) < 0.68 * sum(map(len, base.encode_batch(lines)))
    assert {name: tokens.special[name] for name in base.special} == dict(base.special)
    english_line = "The children went to the water, and the woman gave them some bread."
    assert len(tokens.encode(english_line)) <= len(base.encode(english_line)) + 2
    assert tokens.config["chat_template"] == base.config["chat_template"]


def test_whole_words_leave_every_other_word_as_it_was(english, chichewa, corpus_of):
    text = corpus_of(chichewa)
    made = train_tokenizer(english, text, mode="words", keep=10**6, new=20, min_count=2, variants=0)
    added = set(made.strings) - set(english.strings)
    assert len(added) == 20 and json.loads(made.backend.to_str())["model"]["ignore_merges"]
    for word in [*" ".join(chichewa[:5]).split(), "Zanzibar", "1994", "river", "ng'ombe"]:
        cut = [made.strings[token] for token in made.encode(" " + word)]
        if not set(cut) & added:
            assert cut == [english.strings[token] for token in english.encode(" " + word)]


def test_words_are_ranked_by_the_tokens_they_save():
    cut = {("a", "b"): 5, ("c", "d", "e"): 3, ("f", "g", "h", "i"): 1, ("1", "2"): 90, ("j",): 50}
    assert whole_words(cut, None, 2) == ["cde", "ab"]
    assert whole_words(cut, 1, 1) == ["cde"]


def test_variants_count_the_forms_a_word_takes_elsewhere():
    counts = with_variants({"Ġmoyo": 10, "Munthu": 10, "Ġ12": 10}, 0.5)
    assert counts == {
        **{"Ġmoyo": 10, "Moyo": 5, "ĠMoyo": 1, "moyo": 1},
        **{"Munthu": 10, "Ġmunthu": 5, "Ġ12": 10},
    }
    assert with_variants({"Ġmoyo": 10}, 0) == {"Ġmoyo": 10}
