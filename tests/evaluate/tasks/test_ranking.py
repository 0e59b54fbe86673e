import json

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.pack import LanguagePack
from calque.evaluate.score import score
from calque.evaluate.source import Source

TASK = benchmark("ranking")
PACK = LanguagePack.of("eng_Latn")


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def item():
    return TASK.item(TASK.sample["eng_Latn"][0], "eng_Latn", "test")


def test_an_answer_is_a_list_or_scores_or_words():
    for answer in (
        Answer("", value=["x", "eggs"]),
        Answer("", value={"eggs": 1, "x": 2}),
        Answer("x eggs"),
    ):
        found = TASK.score(item(), answer, PACK)
        assert found["rr"] == 0.5 and found["ap"] == 0.25 and found["recall@100"] == 0.5
    assert TASK.score(item(), Answer(""), PACK)["ap"] == 0
    assert TASK.score(item(), Answer("eggs kitchen"), PACK)["ndcg@10"] == 1


def test_a_file_of_rankings_is_scored(tmp_path):
    data = jsonl(tmp_path / "test.jsonl", TASK.sample["eng_Latn"])
    answers = jsonl(
        tmp_path / "answers.jsonl", [{"id": "q1", "prediction": "", "value": ["eggs", "kitchen"]}]
    )
    table = score({"s": answers}, {"ranking": Source.open(data)}, languages=["eng"])
    assert next(iter(table.measure("ap"))).estimate.value == 0.5
    assert next(iter(table.measure("missing"))).estimate.value == 0.5


def test_qrels_in_a_folder(tmp_path):
    (tmp_path / "test.qrels").write_text("q1 0 a 1\nq2 0 b 2\n")
    items = Source.open(tmp_path).items(TASK, "nya_Latn", "test")
    assert [(i.id, i.gold) for i in items] == [("q1", {"a": 1}), ("q2", {"b": 2})]


@pytest.mark.parametrize(
    "row,message",
    [
        ({"id": "q"}, "no 'relevant'"),
        ({"relevant": ["a"]}, "no 'id'"),
        ({"id": "q", "relevant": {"a": "much"}}, "grade 'much'; expected a whole number"),
    ],
)
def test_wrong_records(tmp_path, row, message):
    data = jsonl(tmp_path / "test.jsonl", [row])
    with pytest.raises(DataError, match=rf"test\.jsonl:1: {message}"):
        Source.open(data).items(TASK, "eng_Latn", "test")


def test_a_document_twice_is_refused():
    with pytest.raises(DataError, match="document 'eggs' stands twice"):
        TASK.score(item(), Answer("eggs x eggs"), PACK)
