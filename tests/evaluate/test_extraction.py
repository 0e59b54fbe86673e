"""Tuples and events: formats, scores, identities, and published values where there are any."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.data.example import Span
from calque.errors import DataError
from calque.evaluate import events, extraction
from calque.evaluate.events import Event
from calque.evaluate.extraction import Extraction

FILE = Path(__file__).parents[1] / "golden" / "32-basque-event-extraction-typology.json"
MARKED = [case for case in json.loads(FILE.read_text())["cases"] if case["kind"] == "marked_trigger"]

words = st.lists(st.sampled_from(["a", "b", "c", "d", "be", "is"]), min_size=1, max_size=4).map(" ".join)
tuples = st.lists(
    st.builds(Extraction, words, st.tuples(words, words), st.sampled_from([0.2, 0.5, 0.9])), max_size=4
)


def one(relation, *arguments, confidence=1.0):
    return Extraction(relation, arguments, confidence)


@given(tuples.filter(bool))
def test_gold_against_itself_is_perfect(gold):
    lexical, carb = extraction.lexical_counts(gold, gold), extraction.carb_counts(gold, gold)
    assert lexical["lexical.fp"] == lexical["lexical.fn"] == 0
    assert carb["carb.precise"] == pytest.approx(carb["carb.made"])
    assert carb["carb.recalled"] == pytest.approx(carb["carb.gold"])
    facts = extraction.fact_counts([[g] for g in dict.fromkeys(gold)], gold)
    assert facts["fact.fp"] == 0


@given(tuples, tuples)
def test_best_pairs_are_no_worse_than_the_published_ones(gold, made):
    carb = extraction.carb_counts(gold, made, english=True)
    assert carb["carb.precise"] >= carb["carb/published.precise"] - 1e-12
    assert 0 <= carb["carb.precise"] <= carb["carb.made"]
    lexical = extraction.lexical_counts(gold, made)
    assert lexical["lexical.tp"] + lexical["lexical.fn"] == len(gold)
    assert lexical["lexical.tp"] + lexical["lexical.fp"] == len(made)


@given(st.lists(st.tuples(tuples, tuples), max_size=2))
@settings(max_examples=30)
def test_the_last_point_of_a_curve_is_the_sum_over_sentences(sentences):
    for curve, name in (
        (extraction.lexical_curve(sentences), "lexical"),
        (extraction.carb_curve(sentences), "carb"),
    ):
        assert np.all(np.diff(curve.confidence) < 0) and 0 <= curve.area <= 1 + 1e-9
        if name == "lexical" and len(curve.recall):
            sums = [extraction.lexical_counts(*pair) for pair in sentences]
            tp, fn = (sum(s[f"lexical.{x}"] for s in sums) for x in ("tp", "fn"))
            assert curve.recall[-1] == pytest.approx(tp / (tp + fn) if tp + fn else 0)


def test_lexical_match_counts_words_once():
    gold, made = one("the the", "x", "y"), one("the", "the", "z")
    assert extraction.lexical_counts([gold], [made])["lexical.tp"] == 0  # the, the: 2 of 4
    assert extraction.lexical_counts([gold], [made])["lexical/published.tp"] == 1  # 4 pairs of 4 words
    assert extraction.lexical_counts([gold] * 3, [])["lexical.fn"] == 3
    assert extraction.lexical_counts([gold] * 3, [])["lexical/published.fn"] == 9


def test_lexical_match_pairs_as_many_as_possible():
    first, second = one("ate", "Anna", "bread"), one("ate", "Anna", "bread slowly today again")
    both = one("ate", "Anna", "bread slowly today again")
    found = extraction.lexical_counts([second, first], [both, first])
    assert found["lexical.tp"] == 2 and found["lexical/published.tp"] == 2
    greedy = extraction.lexical_counts([first, second], [both, first])
    assert greedy["lexical.tp"] == 2 and greedy["lexical/published.tp"] == 1


def test_tuple_scores_by_hand():
    gold = one("was born in", "Anna", "Zomba")
    assert extraction.tuple_scores(gold, one("born in", "Anna", "Zomba Malawi")) == (4 / 5, 4 / 5)
    assert extraction.tuple_scores(gold, one("lives", "Anna", "Zomba")) == (0, 0)
    assert extraction.tuple_scores(gold, one("born", "Anna")) == (0, 0)
    assert extraction.tuple_scores(gold, one("be", "Anna", "Zomba")) == (0, 0)
    assert extraction.tuple_scores(gold, one("be", "Anna", "Zomba"), english=True) == (1.0, 3 / 5)
    rest = one("gave", "Anna", "bread", "to Ben")
    assert extraction.tuple_scores(rest, one("gave", "Anna", "bread to Ben")) == (1.0, 1.0)


def test_greedy_precision_is_the_published_one():
    gold = [one("r", "a", "b"), one("r", "a", "b c d")]
    made = [one("r", "a", "b"), one("r", "x", "b")]
    carb = extraction.carb_counts(gold, made)
    assert carb["carb.precise"] == pytest.approx(1 + 2 / 3) and carb["carb.recalled"] == pytest.approx(
        1 + 3 / 5
    )


def test_curve_by_hand():
    gold = [one("r", "a", "b"), one("s", "c", "d")]
    made = [one("r", "a", "b", confidence=0.9), one("q", "x", "y", confidence=0.4)]
    for curve in (extraction.lexical_curve([(gold, made)]), extraction.carb_curve([(gold, made)])):
        assert curve.confidence.tolist() == [0.9, 0.4]
        assert curve.precision.tolist() == [1.0, 0.5] and curve.recall.tolist() == [0.5, 0.5]
        assert curve.best == pytest.approx((1.0, 0.5, 2 / 3)) and curve.area == pytest.approx(0.5)
    empty = extraction.carb_curve([(gold, [])])
    assert empty.best == (0, 0, 0) and empty.area == 0


def test_facts_with_wordings_and_optional_words():
    facts = [
        [
            one("served as", "[the] man", "[the first] minister [of Malawi]"),
            one("served", "he", "as minister"),
        ],
        [one("died in", "he", "1990")],
    ]
    made = [
        one("served as", "man", "the first minister"),
        one("served", "he", "as minister"),
        one("served as", "man", "the minister"),
        one("died in", "he", ""),
    ]
    assert extraction.fact_counts(facts, made) == {"fact.tp": 1, "fact.fp": 1, "fact.fn": 1}


def test_tuples_from_answers():
    assert extraction.parse('Sure: [["a", "r", "b"], {"relation": "s", "subject": "c"}, 7]') == (
        (one("r", "a", "b"), one("s", "c")),
        1,
    )
    assert extraction.parse("(Anna; ate; bread)\nAnna\tsaw\tBen\tin Zomba\nnothing here\n") == (
        (one("ate", "Anna", "bread"), one("saw", "Anna", "Ben", "in Zomba")),
        1,
    )
    assert extraction.parse("") == ((), 0)


@pytest.mark.parametrize(
    "row",
    [
        5,
        ["a"],
        ["a", 3],
        {"relation": "r"},
        {"arguments": ["a"]},
        {"relation": " ", "arguments": ["a"]},
        {"relation": "r", "arguments": [1]},
        {"relation": "r", "arguments": []},
        {"relation": "r", "arguments": ["a"], "confidence": "high"},
        {"relation": "r", "arguments": ["a"], "confidence": True},
    ],
)
def test_what_is_no_tuple(row):
    with pytest.raises(DataError, match="line 3: "):
        extraction.of_row(row, "line 3")


@pytest.mark.parametrize("case", MARKED)
def test_marked_triggers_as_published(case):
    event = Event(Span(*case["trigger"]), tuple(Span(*argument) for argument in case["arguments"]))
    marked, labels = events.mark(case["tokens"], event)
    assert marked == case["marked_tokens"] and labels == case["labels"]
    assert events.unmark(marked, labels) == (case["tokens"], event)


GOLD = (Event(Span(1, 2, "Attack"), (Span(0, 1, "Agent"), Span(3, 4, "Place"))), Event(Span(5, 6, "Die")))


def test_the_four_scores_of_events():
    made = (
        Event(Span(1, 2, "Attack"), (Span(0, 1, "Target"), Span(3, 4, "Place"))),
        Event(Span(5, 6, "Attack"), (Span(3, 4, "Place"),)),
    )
    found = events.counts(GOLD, made)
    got = {name: [found[f"{name}.{x}"] for x in ("tp", "fp", "fn")] for name in
           ("trigger_id", "trigger", "argument_id", "argument")}  # fmt: skip
    assert got == {
        "trigger_id": [2, 0, 0],
        "trigger": [1, 1, 1],
        "argument_id": [2, 0, 0],
        "argument": [1, 1, 1],
    }


def test_events_written_and_read_again():
    text = ["a", "b", "c", "d", "e", "f"]
    assert events.from_json(events.to_json(GOLD, text), text) == (GOLD, 0)
    numbers = '[{"trigger": [1, 2], "type": "Attack", "arguments": [[0, 1, "Agent"], [3, 4, "Place"]]}]'
    assert events.from_json(numbers, text) == (GOLD[:1], 0)
    lost = '[{"trigger": "z", "type": "A"}, {"trigger": "a", "type": "A", "arguments": {"R": ["b", "y"]}}]'
    assert events.from_json(lost, text) == ((Event(Span(0, 1, "A"), (Span(1, 2, "R"),)),), 2)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[{", "not valid JSON"),
        ("{}", "dict; expected a list of events"),
        ("[3]", "3 is no event"),
        ('[{"trigger": "a"}]', "is no event"),
        ('[{"trigger": [0, 9], "type": "A"}]', "outside 2 words"),
        ('[{"trigger": "a", "type": "A", "arguments": [[1, 5, "R"]]}]', "span 1..5 'R' outside 2 words"),
        ('[{"trigger": "a", "type": "A", "arguments": 3}]', "expected a list of spans"),
    ],
)
def test_wrong_events(value, says):
    with pytest.raises(DataError, match=says):
        events.from_json(value, ["a", "b"])


def test_wrong_marks():
    with pytest.raises(DataError, match="1 marks"):
        events.unmark(["a", "$$$", "b"], ["O"] * 3)
    with pytest.raises(DataError, match="2 tags for 4 words"):
        events.unmark(["$$$", "a", "$$$", "b"], ["O"] * 2)
    with pytest.raises(DataError, match="outside the 2 words"):
        events.mark(["a", "b"], Event(Span(1, 3)))
    with pytest.raises(DataError, match="is the mark"):
        events.mark(["a", "$$$"], Event(Span(0, 1)))
