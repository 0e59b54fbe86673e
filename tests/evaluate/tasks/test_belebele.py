import json

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source
from calque.language import Language

B = benchmark("belebele")
ROW = dict(B.sample["eng_Latn"][0])


def items(folder, *rows, language="eng_Latn", name="eng_Latn"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return Source.open(folder).items(B, language, "test")


def test_questions_of_a_passage_share_their_group_and_the_letters_are_chosen_from(tmp_path):
    first, second = items(tmp_path, ROW, ROW | {"question_number": 2})
    assert first.group == second.group and first.id != second.id and first.gold == 1
    prompt = B.prompt(second, LanguagePack.of("en"), (first,))
    assert prompt.choices == (" A", " B", " C", " D")
    assert "D. Salt\nAnswer: B\n\n" in prompt.text and prompt.text.endswith("D. Salt\nAnswer:")
    assert B.prompt(second, LanguagePack.of("zh"), ()).choices == ("A", "B", "C", "D")


def test_a_choice_may_be_taken_by_index_letter_or_text():
    item = B.item(ROW, "eng_Latn", "test")
    pack = LanguagePack.of("en")
    for answer in (Answer("", choice=1), Answer(" B."), Answer("Fish")):
        assert B.score(item, answer, pack) == {"correct": 1.0, "unparsed": 0.0}
    assert B.score(item, Answer("the fish, I think"), pack) == {"correct": 0.0, "unparsed": 1.0}


def test_its_languages_are_122_and_korean_has_its_own_file(tmp_path):
    assert len(set(B.languages)) == 122 and all(Language(code) for code in B.languages)
    assert items(tmp_path, ROW, language="kor_Kore", name="kor_Hang")[0].language == "kor_Kore"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"correct_answer_num": "5"},
            r"eng_Latn\.jsonl:1: 'correct_answer_num' is '5', expected one of 1",
        ),
        ({"mc_answer3": None}, "no 'mc_answer3'"),
        ({"flores_passage": ""}, "'flores_passage' is blank"),
        ({"link": 3}, "'link' is 3, expected str"),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        items(tmp_path, ROW | change)


def test_twice_the_same_and_a_missing_language_are_refused(tmp_path):
    with pytest.raises(DataError, match="two items are named 'a#1'"):
        items(tmp_path, ROW, ROW)
    with pytest.raises(DataError, match=r"no tha_Thai\.jsonl"):
        items(tmp_path, ROW, language="tha_Thai")
