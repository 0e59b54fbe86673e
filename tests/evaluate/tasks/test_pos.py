"""Parts of speech: items, prompts and scores."""

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, Item
from calque.evaluate.pack import LanguagePack
from calque.evaluate.tasks.pos import BENCHMARK

PACK = LanguagePack.of("eng_Latn")


def items(language="eng_Latn"):
    return [BENCHMARK.item(row, language, "test") for row in BENCHMARK.sample[language]]


def test_the_gold_answer_written_as_in_the_examples_is_all_right():
    first, second, *_ = items()
    prompt = BENCHMARK.prompt(first, PACK, [second])
    assert prompt.text.endswith("Text: The child sees a bird .\nAnswer:")
    assert "\nAnna\tPROPN\nand\tCCONJ\n" in prompt.text and prompt.stop == ("\n\n",)
    told = "".join(f"\n{w}\t{t}" for w, t in zip(first.fields["words"], first.gold, strict=True))
    score = BENCHMARK.score(first, Answer(told), PACK)
    assert (score["correct"], score["words"], score["unparsed"]) == (6, 6, 0)
    assert score["tp.DET"] == 2 and not any(name.startswith("f") for name in score)


def test_words_without_a_tag_are_missed_and_no_class():
    score = BENCHMARK.score(items()[0], Answer("The\tDET"), PACK)
    assert (score["correct"], score["unparsed"], score["fn.NOUN"]) == (1, 5, 2)
    assert "fp._" not in score
    assert BENCHMARK.score(items()[0], Answer(""), PACK)["correct"] == 0


def test_samples_and_records():
    for language in BENCHMARK.sample:
        assert all(isinstance(item, Item) for item in items(language))
    with pytest.raises(DataError, match="f:9: 'NN' is no universal tag"):
        BENCHMARK.item({"words": ["a"], "tags": ["NN"], "where": "f:9"}, "eng_Latn", "test")
