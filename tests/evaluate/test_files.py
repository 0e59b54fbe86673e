import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calque.errors import DataError
from calque.evaluate.files import locate, needed, records, squad, unique

ROWS = [{"id": "1", "question": "Who?"}, {"id": "2", "question": "Nani?"}]


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def nest(*answers, context="The cat sat.", **more):
    question = {"id": "q1", "question": "Who sat?", "answers": list(answers), **more}
    return json.dumps({"data": [{"title": "T", "paragraphs": [{"context": context, "qas": [question]}]}]})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("b.json", json.dumps({"data": ROWS})),
        ("a.tsv", "id\tquestion\n1\tWho?\n2\tNani?\n"),
        ("a.csv", 'id,question\n1,"Who?"\n2,Nani?\n'),
    ],
)
def test_every_format_gives_the_same_records_with_their_places(tmp_path, name, text):
    path = written(tmp_path, name, text)
    found = list(records(path))
    assert [{k: v for k, v in row.items() if k != "where"} for row in found] == ROWS
    assert all(str(path) in row["where"] for row in found)


def test_parquet_and_packed_files_are_read(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [row["question"] for row in records(tmp_path / "a.parquet")] == ["Who?", "Nani?"]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(json.dumps(ROWS[0]))
    assert [row["id"] for row in records(tmp_path / "a.jsonl.gz")] == ["1"]


def test_a_file_without_a_header_takes_the_names_given(tmp_path):
    path = written(tmp_path, "a.tsv", 'How "many"?\t18\n')
    assert list(records(path, ("question", "answer"))) == [
        {"question": 'How "many"?', "answer": "18", "where": f"{path}:1"}
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = written(tmp_path, "a.csv", "\ufeffid,question\n1,Who?\n")
    assert next(records(path))["id"] == "1"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"id": 1}\n{"id": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"id": 1}\n["x"]\n', r"a\.jsonl:2: list .*expected an object"),
        ("a.jsonl", "\n\n", r"a\.jsonl: no record"),
        ("a.json", "[1]", r"\[0\]: int 1; expected an object"),
        ("a.json", '{"a": 1}', r"expected a list of objects"),
        ("a.json", '[{"a":\n 1,}]', r"a\.json:2: not valid JSON"),
        ("a.json", "", r"an empty file"),
        ("a.tsv", "id\tquestion\n1\n", r"a\.tsv:2: 1 columns, expected 2 \(id, question\)"),
        ("a.tsv", "", r"no record"),
        ("a.tsv", "id\tid\n1\t2\n", r"a\.tsv:1: the first line must name every column, each once"),
        ("a.csv", "id,\n1,2\n", r"a\.csv:1: the first line must name every column"),
        ("a.csv", 'id,q\n1,"open\n', r"a\.csv:\d: not valid CSV"),
        ("a.parquet", "not parquet", r"not a sound Parquet file"),
        ("a.xlsx", "x", r"unknown kind of file"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, name, text, said):
    with pytest.raises(DataError, match=said):
        list(records(written(tmp_path, name, text)))


def test_a_file_that_is_not_there_and_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(records(tmp_path / "none.jsonl"))
    (tmp_path / "latin.tsv").write_bytes(b"id\tq\n1\tqu\xe9\n")
    with pytest.raises(DataError, match=r"latin\.tsv:2: not UTF-8"):
        list(records(tmp_path / "latin.tsv"))


def test_squad_is_flattened(tmp_path):
    path = written(tmp_path, "a.json", nest({"text": "The cat", "answer_start": 0}))
    (row,) = squad(path)
    assert (row["id"], row["question"], row["context"]) == ("q1", "Who sat?", "The cat sat.")
    assert (row["answers"], row["passage"], row["title"]) == ([("The cat", 0)], "0.0", "T")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nest({"text": "The cat", "answer_start": 3}), r"answers\[0\]: 'The cat' is not at 3"),
        (nest({"text": "cat", "answer_start": 99}), "is not at 99"),
        (nest({"text": "sat.", "answer_start": -4}), "is not at -4"),
        (nest({"text": "cat"}), "no 'answer_start'"),
        (nest(question=" "), r"qas\[0\]: 'question' is blank"),
        (nest(id=7), "'id' is 7, expected str"),
        (nest(answers=None), "no list 'answers'"),
        (nest(context=""), "'context' is blank"),
        ('{"data": [{"paragraphs": [{"context": "x", "qas": []}]}]}', "no question in it"),
        ('{"data": [{}]}', "no list 'paragraphs'"),
        ("[]", "not SQuAD's format"),
    ],
)
def test_broken_squad_is_refused_with_its_place(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        list(squad(written(tmp_path, "a.json", text)))


def test_needed_unique_and_locate_say_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=r"x:1: no 'gold'; the record has id"):
        needed({"id": "1", "where": "x:1"}, "gold", str)
    with pytest.raises(DataError, match="'label' is True, expected int"):
        needed({"label": True}, "label", int)
    with pytest.raises(DataError, match=r"x:2: id '1' is given twice, first at x:1"):
        list(unique([{"id": "1", "where": "x:1"}, {"id": "1", "where": "x:2"}], "id"))
    with pytest.raises(DataError, match="no such file or folder"):
        locate(tmp_path / "none", "a")
    with pytest.raises(DataError, match=r"no a\.tsv or b\.tsv in this folder"):
        locate(tmp_path, "a.tsv", "b.tsv")
    path = written(tmp_path, "b.tsv", "x")
    assert locate(tmp_path, "a.tsv", "b.tsv") == path == locate(path, "other")
