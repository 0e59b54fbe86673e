import json

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source

B = benchmark("xcopa")
ROW = {"premise": "มีฝน", "choice1": "พื้นเปียก", "choice2": "แดดออก", "question": "effect", "label": 0, "idx": 4}


def items(folder, *rows, language="tha_Thai", split="test"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "test.th.jsonl").write_text(text, encoding="utf-8")
    return Source.open(folder).items(B, language, split)


def test_without_blanks_nothing_is_put_between_and_nothing_cut_off(tmp_path):
    (item,) = items(tmp_path, ROW)
    prompt = B.prompt(item, LanguagePack.of("th"), ())
    assert prompt.text == "มีฝนดังนั้น" and prompt.choices == ("พื้นเปียก", "แดดออก")


def test_the_end_mark_gives_way_to_the_connector():
    first, second = Source.open("sample").items(B, "ita_Latn", "test")
    prompt = B.prompt(second, LanguagePack.of("it"), (first,))
    assert prompt.text == "Il bambino è caduto perché il pavimento era bagnato.\nHa piovuto molto quindi"
    assert prompt.choices == (" lui ha letto un libro.", " il fiume è straripato.")


def test_the_choice_taken_is_right_or_wrong_and_none_is_wrong():
    item = Source.open("sample").items(B, "ita_Latn", "test")[1]
    pack = LanguagePack.of("it")
    assert [B.score(item, Answer("", choice=n), pack)["correct"] for n in (0, 1)] == [0.0, 1.0]
    assert B.score(item, Answer("Il fiume è straripato."), pack)["correct"] == 1.0
    assert B.score(item, Answer(""), pack) == {"correct": 0.0, "unparsed": 1.0}
    with pytest.raises(DataError, match="item 1: choice 2; its choices are 0 to 1"):
        B.score(item, Answer("", choice=2), pack)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 2}, r"test\.th\.jsonl:1: 'label' is 2, expected one of 0, 1"),
        ({"label": None}, "'label' is None"),
        ({"question": "why"}, "question is 'why', expected cause or effect"),
        ({"choice2": ""}, "'choice2' is blank"),
        ({"idx": "x"}, "'idx' is 'x', expected int"),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        items(tmp_path, ROW | change)


def test_twice_the_same_and_missing_parts_are_refused(tmp_path):
    with pytest.raises(DataError, match="two items are named '4'"):
        items(tmp_path, ROW, ROW)
    with pytest.raises(DataError, match=r"no val\.th\.jsonl"):
        items(tmp_path, ROW, split="validation")
    with pytest.raises(DataError, match="asked for 'train'"):
        items(tmp_path, ROW, split="train")
