import json

from calque.evaluate.benchmark import Answer
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source
from calque.evaluate.tasks.continuation import BENCHMARK, _halves


def corpus(folder, lines, language="nya_Latn"):
    rows = [{"id": str(n), "sides": {language: line}, "group": f"g{n // 2}"} for n, line in enumerate(lines)]
    (folder / "examples.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return Source.open(folder)


LINES = [f"mawu {n} a chiganizo ichi ndi {n * n} basi" for n in range(6)]


def test_the_halves_of_a_sentence_and_those_of_others(tmp_path):
    items = corpus(tmp_path, [*LINES, "pafupi kwambiri"]).items(BENCHMARK, "nya_Latn", "test")
    assert len(items) == 6  # two words are not cut
    for item, line in zip(items, LINES, strict=True):
        prompt = BENCHMARK.prompt(item, LanguagePack.of("nya"), ())
        assert prompt.text + prompt.choices[item.gold] == line
        assert len(set(prompt.choices)) == 4
        assert BENCHMARK.score(item, Answer("", item.gold), LanguagePack.of("nya")) == {"correct": 1.0}
        assert BENCHMARK.score(item, Answer("", None), LanguagePack.of("nya")) == {"correct": 0.0}
    assert items[3].group == "g1"


def test_examples_stand_before_the_item(tmp_path):
    first, second, *_ = corpus(tmp_path, LINES).items(BENCHMARK, "nya_Latn", "test")
    prompt = BENCHMARK.prompt(second, LanguagePack.of("nya"), (first,))
    assert prompt.text == f"{LINES[0]}\n{second.fields['question']}"


def test_a_language_without_blanks_is_cut_between_letters():
    assert _halves("ภาษาไทยเป็นภาษา", "tha_Thai") == ("ภาษาไทย", "เป็นภาษา")
    assert _halves("สั้น", "tha_Thai") is None


def test_the_sample_has_its_right_choice_first():
    for language in ("eng_Latn", "nya_Latn"):
        for item in Source("sample").items(BENCHMARK, language, "test"):
            assert item.gold == 0 and len(item.fields["choices"]) == 2
