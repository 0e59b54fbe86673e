import json

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source
from calque.evaluate.tasks.matching import BENCHMARK

PAIRS = [("water", "madzi"), ("house", "nyumba"), ("book", "buku"), ("fish", "nsomba"), ("child", "mwana")]


def parallel(folder, pairs=PAIRS):
    rows = [{"id": e, "sides": {"eng_Latn": e, "nya_Latn": n}} for e, n in pairs]
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Source.open(folder)


@pytest.mark.parametrize(("language", "asked", "side"), [("nya_Latn", 0, 1), ("eng_Latn", 1, 0)])
def test_a_translation_among_others_of_its_language(tmp_path, language, asked, side):
    items = parallel(tmp_path).items(BENCHMARK, language, "test")
    for item, pair in zip(items, PAIRS, strict=True):
        prompt = BENCHMARK.prompt(item, LanguagePack.of(language), ())
        assert prompt.choices[item.gold] == f" {pair[side]}"
        assert pair[asked] in prompt.text
        assert set(c.strip() for c in prompt.choices) <= {p[side] for p in PAIRS}
        assert BENCHMARK.score(item, Answer("", item.gold), LanguagePack.of(language))["correct"] == 1


def test_the_prompt_names_both_languages(tmp_path):
    first, second, *_ = parallel(tmp_path).items(BENCHMARK, "nya_Latn", "test")
    prompt = BENCHMARK.prompt(second, LanguagePack.of("nya"), (first,))
    assert prompt.text == "English: water\nChichewa: madzi\nEnglish: house\nChichewa:"


def test_text_in_one_language_is_refused(tmp_path):
    (tmp_path / "examples.jsonl").write_text(json.dumps({"id": "1", "sides": {"nya_Latn": "madzi"}}))
    with pytest.raises(DataError, match="one side, nya_Latn; translations are picked for another"):
        Source.open(tmp_path).items(BENCHMARK, "nya_Latn", "test")


def test_the_sample_names_the_right_word():
    for language in ("nya_Latn", "eng_Latn"):
        assert len(Source("sample").items(BENCHMARK, language, "test")) == 4
