"""Events as a task: tags of triggers, tags of one event's roles, whole events."""

import pytest

from calque.errors import DataError
from calque.evaluate.benchmark import Answer
from calque.evaluate.pack import LanguagePack
from calque.evaluate.tasks.events import BENCHMARK

PACK = LanguagePack.of("eng_Latn")
TRIGGERS = {
    "tokens": ["Anna", "visited", "Zomba"],
    "labels": ["B-PER", "O", "B-LOC"],
    "triggers": ["O", "B-Visit", "O"],
}
ROLES = {"tokens": ["Anna", "$$$", "visited", "$$$", "Zomba"], "labels": ["B-Who", "O", "O", "O", "B-Where"]}
WHOLE = {
    "words": ["Anna", "visited", "Zomba"],
    "events": [{"trigger": [1, 2], "type": "Visit", "arguments": [[0, 1, "Who"], [2, 3, "Where"]]}],
}


def item(row):
    return BENCHMARK.item({**row, "where": "f:3"}, "eus_Latn", "test")


def score(row, answer):
    return BENCHMARK.score(item(row), answer, PACK)


def test_tags_of_triggers():
    found = score(TRIGGERS, Answer("", value=["O", "B-Meet", "O"]))
    assert found == {"trigger_id.tp": 1, "trigger_id.fp": 0, "trigger_id.fn": 0, "trigger.tp": 0,
                     "trigger.fp": 1, "trigger.fn": 1, "unparsed": 0}  # fmt: skip


def test_tags_of_roles():
    found = score(ROLES, Answer("", value=["B-Who", "O", "O", "O", "B-Who"]))
    assert [found[f"argument.{x}"] for x in ("tp", "fp", "fn")] == [1, 1, 1] and found["argument_id.tp"] == 2
    assert "trigger.tp" not in found  # it was given
    written = score(ROLES, Answer('[{"trigger": "visited", "type": "X", "arguments": {"Where": "Zomba"}}]'))
    assert [written[f"argument.{x}"] for x in ("tp", "fp", "fn")] == [1, 0, 1]


def test_whole_events():
    text = BENCHMARK.prompt(item(WHOLE), PACK, [item(WHOLE)]).text
    told = text.split("Answer: ")[1].split("\n")[0]
    perfect = score(WHOLE, Answer(f"Sure: {told}"))
    assert perfect["trigger.tp"] == 1 and perfect["argument.tp"] == 2 and perfect["unparsed"] == 0
    for text in ("", "nothing happened", "[{]", '[{"trigger": 3}]'):
        missed = score(WHOLE, Answer(text))
        assert missed["trigger.fn"] == 1 and missed["argument.fn"] == 2
    given = score(WHOLE, Answer("", value=WHOLE["events"]))
    assert given["argument.tp"] == 2
    tags = score(WHOLE, Answer("", value=["O", "B-Visit", "O"]))
    assert (tags["trigger.tp"], tags["argument.fn"]) == (1, 2)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"words": "Anna", "events": []}, "f:3: 'words' is"),
        ({**WHOLE, "events": [{"trigger": [1, 9], "type": "V"}]}, "f:3: span 1..9"),
        ({**WHOLE, "events": [{"trigger": "slept", "type": "V"}]}, "f:3: 1 parts of its events"),
        ({**TRIGGERS, "triggers": ["O"]}, "f:3: 1 tags for 3 words"),
        ({**TRIGGERS, "triggers": ["O", "Visit", "O"]}, "'Visit' is no tag"),
        ({"tokens": ["$$$", "a"], "labels": ["O", "O"]}, "1 marks"),
    ],
)
def test_wrong_records(row, says):
    with pytest.raises(DataError, match=says):
        item(row)


def test_samples_and_wrong_answers():
    for language, rows in BENCHMARK.sample.items():
        assert len([BENCHMARK.item({**row, "where": "s:1"}, language, "test") for row in rows]) == 3
    with pytest.raises(DataError, match="item 3: 1 tags for 3 words"):
        score(WHOLE, Answer("", value=["O"]))
