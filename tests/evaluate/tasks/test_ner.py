"""Names: spans from tags, exact, strict, partial and word by word."""

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer
from calque.evaluate.pack import LanguagePack
from calque.evaluate.tasks.ner import BENCHMARK

PACK = LanguagePack.of("eng_Latn")
ITEM = BENCHMARK.item(
    {
        "words": ["Anna", "Banda", "saw", "New", "York"],
        "tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"],
        "where": "f:1",
    },
    "eng_Latn",
    "test",
)


def score(tags, **more):
    return BENCHMARK.score(ITEM, Answer("", value=tags.split()), PACK)


def test_scores():
    perfect = score("B-PER I-PER O B-LOC I-LOC")
    assert (perfect["tp"], perfect["fp"], perfect["fn"], perfect["illegal"]) == (2, 0, 0, 0)
    assert (perfect["tp.PER"], perfect["correct"], perfect["words"]) == (1, 5, 5)
    half = score("I-PER I-PER O O B-LOC")
    assert (half["tp"], half["fp"], half["fn"], half["illegal"]) == (1, 1, 1, 1)
    assert (half["strict.tp"], half["strict.fp"], half["strict.fn"]) == (0, 1, 2)
    assert (half["partial.tp"], half["partial.fp"], half["partial.fn"]) == (2, 0, 0)
    assert half["correct"] == 4
    assert score("B-ORG I-ORG O O O")["fp.ORG"] == 1


def test_written_answers_and_prompts():
    shot = BENCHMARK.item(BENCHMARK.sample["eng_Latn"][1], "eng_Latn", "test")
    prompt = BENCHMARK.prompt(ITEM, PACK, [shot])
    assert prompt.text.startswith("O B-DATE I-DATE") and prompt.text.endswith("New York\nAnswer:")
    answer = Answer("Anna\tB-PER\nBanda\tI-PER\nNew\tB-LOC\nYork\tI-LOC")
    found = BENCHMARK.score(ITEM, answer, PACK)
    assert (found["tp"], found["fn"], found["unparsed"]) == (2, 0, 1)
    assert BENCHMARK.score(ITEM, Answer(""), PACK)["fn"] == 2


def test_wrong_input():
    with pytest.raises(DataError, match="item 1: 2 tags for 5 words"):
        score("O O")
    with pytest.raises(DataError, match="item 1: word 1: 'PER' is no tag"):
        score("PER O O O O")
    with pytest.raises(DataError, match="f:4: word 1: 'NOUN' is no tag"):
        BENCHMARK.item({"words": ["a"], "tags": ["NOUN"], "where": "f:4"}, "eng_Latn", "test")
