"""Calls of functions: every published value, and what is meant where that differs."""

import json
from collections import Counter
from pathlib import Path

import pytest

from calque.errors import DataError
from calque.evaluate import arguments, calls, calls_published
from calque.evaluate.calls import Call, Parsed, judge, parse

FILE = Path(__file__).parents[1] / "golden" / "03-tucan-tool-language.json"
CASES = json.loads(FILE.read_text())["cases"]
BUL = "bul_Cyrl"


def of(kind):
    return [case for case in CASES if case["kind"] == kind]


def short(case):
    return json.dumps(
        {k: v for k, v in case.items() if k in ("response", "expected", "produced")}, ensure_ascii=False
    )[:60]


def published_verdict(case, response):
    marks = case.get("start_mark", "```tool_call"), case.get("end_mark", "```")
    failed = case.get("backend_error", False)
    return calls_published.verdict(case["expected_behavior"], response, *marks, failed=failed)


def intended_verdict(case, response):
    """As the task asks: expectation to expected calls, then the judge."""
    if case.get("backend_error"):
        return "API_ERROR"
    expected = calls.expectation(case["expected_behavior"])
    made = parse(response)
    return (
        "DATA_FORMAT_ERROR"
        if expected is None and not made.malformed
        else judge(expected or (), made, language=BUL).verdict
    )


@pytest.mark.parametrize("case", of("parse"), ids=short)
def test_parsing_as_published(case):
    given = case["response"], case["start_mark"], case["end_mark"]
    if case.get("raises"):
        with pytest.raises(calls_published.Crash):
            calls_published.parse(*given)
    else:
        assert calls_published.parse(*given) == case["returned"]


# Marks of the user's own are a setting of the published parser alone; its test above has them.
MARKED = [case for case in of("parse") if (case["start_mark"], case["end_mark"]) in calls.MARKS]


@pytest.mark.parametrize("case", MARKED, ids=short)
def test_parsing_as_intended(case):
    wanted = case.get("as_intended", case)["returned"]
    found = parse(case["response"])
    if wanted is None:
        assert not found.calls or "json" in case["response"]  # a ```json block is read too
    elif "error" in wanted:
        assert found.malformed and not found.calls
    else:
        assert (found.calls[0].name, found.calls[0].arguments) == (wanted["name"], wanted["parameters"])


@pytest.mark.parametrize("case", of("value"), ids=short)
def test_values(case):
    pair = case["expected"], case["produced"]
    assert calls_published.equivalent(*pair) is case["equivalent"]
    assert arguments.equal(*pair, BUL) is case.get("as_intended", case["equivalent"])


@pytest.mark.parametrize("case", of("parameters"), ids=short)
def test_parameters(case):
    pair = case["expected"], case["produced"]
    assert calls_published.same_parameters(*pair) is case["equivalent"]
    made = Parsed((Call("f", pair[1] or {}),))
    assert (judge([Call("f", pair[0] or {})], made).verdict == "CORRECT") is case["equivalent"]


@pytest.mark.parametrize("case", of("verdict"), ids=short)
def test_verdicts(case):
    published = "CRASHED" if case.get("raises") else case["verdict"]
    assert published_verdict(case, case["response"]) == published
    if "as_intended" in case:
        intended = case["as_intended"]["verdict"]
    else:
        intended = "WRONG_PARAMETERS" if case.get("raises") else case["verdict"]
    assert intended_verdict(case, case["response"]) == intended


@pytest.mark.parametrize("case", of("aggregate"), ids=lambda case: str(len(case["samples"])))
def test_aggregates(case):
    summary = case["summary"]
    for verdict in (published_verdict, intended_verdict):
        found = [verdict(sample, sample["model_response"]) for sample in case["samples"]]
        assert found == summary["verdicts"] and Counter(found) == summary["error_distribution"]


WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "default": 1},
            "units": {"type": "string", "default": "C"},
            "at": {"type": "array", "items": {"type": "integer"}},
            "box": {"type": "dict", "properties": {"x": {"type": "float"}}},
        },
        "required": ["city"],
    },
}
F = Call("get_weather", {"city": "Zomba", "days": 2})
G = Call("book", {"n": 1})


def verdict(expected, text, **more):
    return judge(expected, parse(text), tools=[WEATHER], **more).verdict


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (json.dumps([{"name": call.name, "arguments": call.arguments} for call in (G, F)]), 2),
        ("[book(n=1), get_weather(days=2, city='Zomba')]", 2),
        ("get_weather(city='Zomba', days=2)", 1),
        ('[{"get_weather": {"city": "Zomba", "days": 2}}]', 1),
        ('```json\n{"name": "get_weather", "arguments": {"city": "Zomba", "days": 2}}\n```', 1),
        ('{"name": "get_weather", "arguments": {"city": "Zomba", "days": 2}} and more', 1),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Zomba", "days": 2}}</tool_call>', 1),
    ],
)
def test_forms_and_orders(text, right):
    for expected in ([F, G], [G, F]) if right == 2 else ([F],):
        assert judge(expected, parse(text), tools=[WEATHER]) == ("CORRECT", "", right)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "NO_CALL_WHEN_EXPECTED"),
        ("It rains (always).", "NO_CALL_WHEN_EXPECTED"),
        ("[]", "NO_CALL_WHEN_EXPECTED"),
        ('[{"name": "get_weather", "arguments": {"city": "Zomba"', "MALFORMED_JSON"),
        ("[get_weather(", "MALFORMED_JSON"),
        ("[get_weather('Zomba')]", "MALFORMED_JSON"),
        ("[get_weather(city=town)]", "MALFORMED_JSON"),
        ("[3]", "MALFORMED_JSON"),
        ('```tool_call\n[{"name": "get_weather"}]\n```', "MALFORMED_JSON"),
        ('```tool_call\n"get_weather"\n```', "MALFORMED_JSON"),
        ('```tool_call\n{"name": "x"}\n```\n```tool_call\n{oops\n```', "MALFORMED_JSON"),
        ("get_wether(city='Zomba', days=2)", "WRONG_FUNCTION"),
        ("get_weather(days=2)", "WRONG_PARAMETERS"),
        ("get_weather(city='Zomba', days=2, wind=True)", "WRONG_PARAMETERS"),
        ("get_weather(city='Zomba', days=2, units='F')", "WRONG_PARAMETERS"),
        ("get_weather(city='Zomba', days=2, units='C')", "CORRECT"),
        ("get_weather(city='Zomba', days=True)", "WRONG_PARAMETERS"),
        ("[get_weather(city='Zomba', days=2), get_weather(city='Zomba', days=2)]", "UNEXPECTED_CALL"),
        ('{"name": "get_weather", "arguments": ["Zomba", 2]}', "WRONG_PARAMETERS"),
        ('{"name": "get_weather", "arguments": null}', "WRONG_PARAMETERS"),
    ],
)
def test_each_error_has_its_name(text, wanted):
    assert verdict([F], text) == wanted


def test_defaults_may_be_left_out_and_reasons_name_the_place():
    one = Call("get_weather", {"city": "Zomba", "days": 1})
    assert verdict([one], "get_weather(city='Zomba')") == "CORRECT"
    found = judge([F], parse("get_weather(city='Zomba', days=3)"), tools=[WEATHER])
    assert found == ("WRONG_PARAMETERS", "days: 3 instead of 2", 0)
    assert judge([F, G], parse("book(n=1)")) == ("NO_CALL_WHEN_EXPECTED", "no call of get_weather", 1)
    assert judge([], parse("book(n=1)")).verdict == "UNEXPECTED_CALL"


def test_the_best_matching_is_found():
    """The first expected call would also take the only answer that fits the second."""
    expected = [Call("f", {"a": [1, 2]}), Call("f", {"a": [1]})]
    assert judge(expected, parse("[f(a=1), f(a=2)]"), possible=True).verdict == "CORRECT"


def test_possible_answers():
    gold = calls.of_gold(
        [{"f": {"city": ["Zomba", "ZA"], "n": [5, ""], "box": [{"x": [1, ""], "y": ["a"]}]}}], "g"
    )

    def right(text):
        return judge(gold, parse(text), possible=True).verdict == "CORRECT"

    assert right("f(city='za', n=5, box={'y': 'A'})") and right("f(city='Zomba', box={'x': 1, 'y': 'a'})")
    assert not right("f(city='Lilongwe', box={'y': 'a'})") and not right("f(n=5, box={'y': 'a'})")
    assert not right("f(city='ZA', box={'x': 1})") and not right("f(city='ZA', box={'y': 'a', 'z': 1})")


def test_strings_and_digits_of_every_script():
    assert arguments.equal("caf\u00e9", "cafe\u0301") and arguments.equal("ＡＢＣ", "abc")
    assert arguments.equal(15, "১৫") and arguments.equal("๑๕", 15) and arguments.equal("٣٫٥", 3.5)
    assert not arguments.equal(15, "১৬") and not arguments.equal(True, "1")
    assert arguments.equal("София", "Sofia", BUL) and not arguments.equal("София", "Sofia")


def test_types_by_the_schema():
    def wrong(**given):
        return calls.mistyped(Call("get_weather", given), [WEATHER])

    assert not wrong(city="Zomba", days=2, at=[1, 2], box={"x": 1.5}, unknown=3)
    assert wrong(days="2").startswith("days: str '2', expected integer")
    assert wrong(days=True).startswith("days: bool") and wrong(days=2.0).startswith("days: float")
    assert wrong(at=[1, "2"]).startswith("at[1]: str") and wrong(box={"x": "y"}).startswith("box.x: str")
    assert not calls.mistyped(Call("unknown", {"a": 1}), [WEATHER])


@pytest.mark.parametrize(
    "gold", [3, {}, [3], [[]], [{"arguments": {}}], [{"name": "f", "arguments": 3}], ["f()"]]
)
def test_wrong_gold(gold):
    with pytest.raises(DataError, match="line 4: "):
        calls.of_gold(gold, "line 4")
