"""Calls as a task: published forms of records, prompts, scores as meant and as published."""

import json

import pytest

from calque.errors import DataError
from calque.evaluate import calls
from calque.evaluate.benchmark import Answer
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source
from calque.evaluate.tasks.tool_calls import BENCHMARK

PACK = LanguagePack.of("bul_Cyrl")
TOOL = {
    "name": "f",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}
TUCAN = {
    "user_message": "Направи а.",
    "functions": json.dumps([TOOL]),
    "expected_behavior": {
        "should_call_function": True,
        "expected_function": "f",
        "expected_parameters": {"a": 1},
    },
    "scenario_type": "function_call_required",
}
BFCL = {
    "id": "simple_1",
    "question": [[{"role": "user", "content": "Do a."}]],
    "function": [TOOL],
    "ground_truth": [{"f": {"a": [1, 2], "b": ["", "x"]}}],
}


def score(row, text, value=None, language="bul_Cyrl"):
    item = BENCHMARK.item({**row, "where": "f:7"}, language, "test")
    return BENCHMARK.score(item, Answer(text, value=value), PACK)


def test_records_of_both_forms(tmp_path):
    (tmp_path / "bg").mkdir()
    (tmp_path / "bg" / "test.jsonl").write_text(json.dumps(TUCAN) + "\n" + json.dumps(BFCL) + "\n")
    first, second = Source.open(tmp_path).items(BENCHMARK, "bul_Cyrl", "test")
    assert first.gold == (calls.Call("f", {"a": 1}),) and first.id == "1"
    assert second.fields["question"] == "Do a." and second.fields["possible"] and second.id == "simple_1"
    prompt = BENCHMARK.prompt(second, PACK, [first])
    assert '[{"name": "f", "arguments": {"a": 1}}]' in prompt.text and prompt.text.endswith(PACK["answer"])
    assert json.loads(prompt.grammar)["items"]["anyOf"][0]["properties"]["name"] == {"const": "f"}


def test_scores():
    right = score(TUCAN, '```tool_call\n{"name": "f", "arguments": {"a": 1}}\n```')
    assert right["correct"] == right["correct/published"] == right["typed"] == right["tp"] == 1
    assert right["correct.function_call_required"] == 1 and not any(right[f"error.{e}"] for e in calls.ERRORS)
    text = score(TUCAN, '```tool_call\n{"name": "f", "arguments": {"a": "١"}}\n```')
    assert (text["correct"], text["typed"]) == (1, 0)
    listed = score(TUCAN, '```tool_call\n[{"name": "f", "arguments": {"a": 1}}]\n```')
    assert (listed["correct"], listed["crashed"], listed["error.MALFORMED_JSON"]) == (0, 1, 1)
    bare = score(TUCAN, '[{"name": "f", "arguments": {"a": 1}}]')
    assert (bare["correct"], bare["correct/published"]) == (1, 0)  # the published scorer sees blocks only
    assert score(TUCAN, "")["error.NO_CALL_WHEN_EXPECTED"] == 1
    assert score(TUCAN, "", {"failed": True})["error.API_ERROR"] == 1
    assert score(BFCL, "[f(a=2)]")["correct"] == 1 and score(BFCL, "[f(a=2, b='X')]")["correct"] == 1
    assert score(BFCL, "[f(a=3)]")["error.WRONG_PARAMETERS"] == 1


def test_perfect_silent_and_eager_models_on_the_sample():
    items = [
        BENCHMARK.item({"where": "s:1", **row}, "nya_Latn", "test") for row in BENCHMARK.sample["nya_Latn"]
    ]
    prompt = BENCHMARK.prompt(items[0], PACK, items[1:])
    shown = [block.rpartition("[{")[1:] for block in prompt.text.split("\n\n")[:-1]]
    assert len(shown) == 3
    perfect = [json.dumps([{"name": c.name, "arguments": c.arguments} for c in item.gold]) for item in items]
    for answers, right in ((perfect, [1, 1, 1, 1]), ([""] * 4, [0, 0, 0, 1]), (["[stop()]"] * 4, [0] * 4)):
        found = [BENCHMARK.score(item, Answer(a), PACK) for item, a in zip(items, answers, strict=True)]
        assert [score["correct"] for score in found] == right
        for one in found:
            assert one["correct"] + sum(one[f"error.{name}"] for name in calls.ERRORS) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"functions": "[{"}, "f:7: not valid JSON"),
        ({"functions": {"name": "f"}}, "expected a list of definitions"),
        ({"functions": [{}]}, "with names"),
        ({"user_message": " "}, "question is ' '"),
        ({"expected_behavior": "call f"}, "f:7: None; expected a list of calls"),
        ({"ground_truth": [3]}, "3 is no call"),
    ],
)
def test_wrong_records(change, says):
    with pytest.raises(DataError, match=says):
        BENCHMARK.item({**TUCAN, "where": "f:7", **change}, "bul_Cyrl", "test")
