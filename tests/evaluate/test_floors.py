import math
import random

import pytest

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.evaluate.floors import floors
from calque.evaluate.lm import lm
from calque.vocab.tokens import Tokens

from .conftest import VERSES, corpus


def text(lines, language="nya_Latn"):
    return Corpus.of(Example(str(i), {language: line}, group=f"g{i}") for i, line in enumerate(lines))


def bits(table, system):
    return {r["item"]: r["value"] for r in table.where(system=system, metric="bits").rows()}


@pytest.mark.parametrize("compressor", ["zstd", "xz"])
def test_what_stands_in_the_training_text_costs_next_to_nothing(compressor):
    rng = random.Random(0)
    known, foreign = ("".join(rng.choices("abcdefgh ", k=2000)) for _ in range(2))
    held = text([known, foreign])
    table = floors({"t": held}, text(["x", known, "y"]), compressors=[compressor])
    found = bits(table, compressor)
    entropy = 2000 * math.log2(9)
    assert found["g0"] < 0.03 * entropy
    assert 0.97 * entropy < found["g1"] < 1.25 * entropy
    without = bits(floors({"t": held}, compressors=[compressor]), compressor)
    assert without["g0"] == pytest.approx(without["g1"], rel=0.02)
    assert without["g0"] > 0.97 * entropy


def test_training_text_of_the_same_language_helps():
    held, training = corpus(documents=2), corpus(documents=2, lines=5)
    with_it, alone = floors({"t": held}, training), floors({"t": held})
    for compressor in ("zstd", "xz"):
        assert sum(bits(with_it, compressor).values()) < sum(bits(alone, compressor).values())


def test_the_uniform_floor_joins_the_models_of_the_same_text(tiny, tokenizer):
    held = corpus()
    tokens = Tokens.of(tokenizer)
    floor = floors({"t": held}, None, {"m": tokens}, compressors=[], max_bytes=1800)
    scored = lm({"m": tiny}, {"t": held}, max_bytes=1800)
    both = scored.join(floor)
    assert both.values("system") == ["m", "uniform, m"]
    for row in floor.where(metric="bits").rows():
        (tokens_row,) = scored.where(metric="tokens", item=row["item"]).rows()
        assert row["value"] == pytest.approx(tokens_row["value"] * math.log2(len(tokenizer)))
    (bytes_a, bytes_b) = (both.where(system=s).measure("bytes").aggregates[0] for s in both.values("system"))
    assert bytes_a.estimate == bytes_b.estimate


def test_counts_of_the_training_text_beat_equal_tokens(tokenizer):
    held, training = corpus(documents=2), corpus(documents=2, lines=5)
    floor = floors({"t": held}, training, {"m": Tokens.of(tokenizer)}, compressors=[])
    assert floor.values("system") == ["uniform, m", "trigram, m"]
    assert sum(bits(floor, "trigram, m").values()) < 0.9 * sum(bits(floor, "uniform, m").values())


def test_a_language_without_training_text_has_no_compressor():
    held = {"nya": corpus(documents=2), "eng": text(["In the beginning", "God created"], "eng_Latn")}
    table = floors(held, text(VERSES))
    assert table.values("task") == ["lm/nya"]
    assert table.values("system") == ["zstd", "xz"]
    assert "dictionary:" in next(table.rows())["signature"]


def test_the_dictionary_is_bounded_and_said():
    table = floors({"t": corpus(documents=1)}, corpus(documents=3), dictionary_bytes=100)
    assert all("dictionary:101|" in row["signature"] for row in table.rows())
