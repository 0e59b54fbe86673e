import json

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source

TASK = benchmark("classify")
PACK = LanguagePack.of("nya_Latn")
ROWS = [{"id": "1", "text": "goal goal", "label": "sport"}, {"id": "2", "text": "beans", "label": "food"}]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def items(tmp_path, rows=ROWS):
    return Source.open(jsonl(tmp_path / "nya_Latn.test.jsonl", rows)).items(TASK, "nya_Latn", "test")


def test_every_class_is_a_choice(tmp_path):
    first, second = items(tmp_path)
    prompt = TASK.prompt(first, PACK, [second])
    assert prompt.choices == (" food", " sport") and prompt.text.startswith("beans\n")
    assert prompt.text.endswith(":") and " food\n\ngoal goal" in prompt.text


@pytest.mark.parametrize(
    "answer,expected",
    [
        (Answer("", choice=1), {"correct": 1, "tp.sport": 1, "unknown_label": 0}),
        (Answer("", choice=0), {"correct": 0, "fn.sport": 1, "fp.food": 1, "unknown_label": 0}),
        (Answer(" Sport "), {"correct": 1, "tp.sport": 1, "unknown_label": 0}),
        (Answer("", value="food"), {"correct": 0, "fn.sport": 1, "fp.food": 1, "unknown_label": 0}),
        (Answer("music"), {"correct": 0, "fn.sport": 1, "unknown_label": 1}),
        (Answer(""), {"correct": 0, "fn.sport": 1, "unknown_label": 1}),
    ],
)
def test_scores(tmp_path, answer, expected):
    assert TASK.score(items(tmp_path)[0], answer, PACK) == expected


def test_one_class_only_is_refused(tmp_path):
    with pytest.raises(DataError, match="one label, 'sport'; there is nothing to tell apart"):
        items(tmp_path, ROWS[:1])


def test_a_missing_label_is_at_its_line(tmp_path):
    with pytest.raises(DataError, match=r"nya_Latn\.test\.jsonl:2: no label"):
        items(tmp_path, [ROWS[0], {"text": "x"}])


def test_a_label_outside_the_list_is_refused():
    with pytest.raises(DataError, match="label 'music'; known are food, sport"):
        TASK.item({"id": "1", "text": "x", "label": "music", "labels": ["food", "sport"]}, "eng_Latn", "test")


def test_the_sample_is_sound():
    for language, rows in TASK.sample.items():
        for row in rows:
            item = TASK.item(row, language, "test")
            assert len(TASK.prompt(item, LanguagePack.of(language), ()).choices) == 3
