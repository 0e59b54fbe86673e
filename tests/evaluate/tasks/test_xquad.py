import json

import pytest

from calque.errors import ConfigError, DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source

B = benchmark("xquad")
ZH = LanguagePack.of("zh")


def put(folder, short, context, question, answer, name="q1"):
    answers = [{"text": answer, "answer_start": context.index(answer)}]
    qas = [{"id": name, "question": question, "answers": answers}]
    nest = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}
    (folder / f"xquad.{short}.json").write_text(json.dumps(nest), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, "en", "The old tower stands in Rome.", "Where is the tower?", "Rome")
    put(tmp_path, "zh", "这座古塔位于罗马市。", "塔在哪里？", "罗马市")
    return tmp_path


def test_question_and_context_may_be_in_two_languages(folder):
    source = Source.open(folder)
    (item,) = source.items(B, "zho_Hans", "test:en")
    assert item.fields["question"] == "Where is the tower?" and item.fields["question_language"] == "eng_Latn"
    assert item.gold == ("罗马市",) and item.language == "zho_Hans" and item.group == "0.0"
    (same,) = source.items(B, "zho_Hans", "test")
    assert same.fields["question"] == "塔在哪里？" and same.id == item.id
    assert B.prompt(item, ZH, ()).text == "文章：这座古塔位于罗马市。\n问题：Where is the tower?\n答案："


def test_words_are_those_of_the_context_s_language(folder):
    source = Source.open(folder)
    (english,), (chinese,) = source.items(B, "eng_Latn", "test:zh"), source.items(B, "zho_Hans", "test:en")
    assert B.score(english, Answer("the Rome"), ZH)["em"] == 1.0
    found = B.score(chinese, Answer("罗马"), LanguagePack.of("en"))
    assert found["f1"] == pytest.approx(0.8) and found["f1/published"] == 0.0 and found["em"] == 0.0
    assert B.score(chinese, Answer("the 罗马市"), ZH) | {"chrf": 0, "edit_similarity": 0} == {
        "em": 0.0, "f1": pytest.approx(6 / 7), "em/published": 1.0, "f1/published": 1.0, "chrf": 0,
        "edit_similarity": 0,
    }  # fmt: skip


def test_no_answer_is_wrong_and_a_span_outside_is_refused(folder):
    (item,) = Source.open(folder).items(B, "eng_Latn", "test")
    assert set(B.score(item, Answer(""), ZH).values()) == {0.0}
    assert B.score(item, Answer("Rome", value=(24, 28)), ZH)["em"] == 1.0
    with pytest.raises(DataError, match="span 24 to 99 is outside its context of 29 characters"):
        B.score(item, Answer("Rome", value=(24, 99)), ZH)


def test_records_of_the_hub_are_read_too():
    row = {"id": "a", "context": "In Rome.", "question": "Where?", "where": "hub:1"}
    assert B.item(row | {"answers": {"text": ["Rome"], "answer_start": [3]}}, "eng_Latn", "test").gold == (
        "Rome",
    )
    with pytest.raises(DataError, match="hub:1: answer 'Rome' is not at 5 of the context"):
        B.item(row | {"answers": {"text": ["Rome"], "answer_start": [5]}}, "eng_Latn", "test")
    with pytest.raises(DataError, match="no answer"):
        B.item(row | {"answers": {"text": [], "answer_start": []}}, "eng_Latn", "test")


def test_files_that_do_not_go_together_are_refused(folder):
    put(folder, "es", "La torre está en Roma.", "¿Dónde?", "Roma", name="q2")
    source = Source.open(folder)
    with pytest.raises(DataError, match=r"xquad\.es\.json has no question 'q1'"):
        source.items(B, "eng_Latn", "test:es")
    with pytest.raises(DataError, match=r"no xquad\.ny\.json"):
        source.items(B, "nya_Latn", "test")
    with pytest.raises(ConfigError, match="unknown language"):
        source.items(B, "eng_Latn", "test:klingonese")
    with pytest.raises(DataError, match="one part, validation or test"):
        source.items(B, "eng_Latn", "train")
    with pytest.raises(DataError, match="a file; give the folder"):
        Source.open(folder / "xquad.en.json").items(B, "eng_Latn", "test")
