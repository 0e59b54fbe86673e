"""Tags, JSON and tagged text to spans and back; what is illegal is counted or refused; published values."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.data.example import Span
from calque.errors import ConfigError, DataError
from calque.evaluate import spans

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = {"PER": "Person", "LOC": "Location", "ORG": "Organization"}


def cases(name, kind):
    return [case for case in json.loads((GOLDEN / name).read_text())["cases"] if case["kind"] == kind]


TAGS = cases("31-cross-lingual-sequence-labelling.json", "tags")
TAGGED = cases("31-cross-lingual-sequence-labelling.json", "parse_tagged")
SPAN_F1 = cases("32-basque-event-extraction-typology.json", "span_f1")


@pytest.mark.parametrize("case", TAGS, ids=lambda case: " ".join(case["tags"]) or "none")
def test_schemes_as_published(case):
    found, n = spans.from_tags(case["tags"], scheme="bio").spans, len(case["tags"])
    assert spans.to_tags(found, n, scheme="iob1") == case["iob"]
    assert spans.to_tags(found, n, scheme="bio") == case["iob2"]
    bilou = [tag.replace("E-", "L-").replace("S-", "U-") for tag in spans.to_tags(found, n, scheme="iobes")]
    assert bilou == case["bilou"]
    for scheme, name in (("iob1", "iob"), ("bio", "iob2"), ("iobes", "bilou")):
        assert spans.from_tags(case[name], scheme=scheme) == (found, 0)


@pytest.mark.parametrize("case", TAGGED, ids=lambda case: case["text"] or "empty")
def test_tagged_text_as_published(case):
    names = {NAMES[label]: label for label in case["types"]}
    found = spans.from_tagged(case["text"], names, keep_punctuation=case["keep_punctuation"])
    assert [text for _, text in found] == case["entities"]
    assert [label for label, _ in found] == case["entity_types"]


@pytest.mark.parametrize("case", SPAN_F1)
@pytest.mark.parametrize(("rule", "name"), [("repair", "lenient"), ("drop", "strict_iob2")])
def test_span_f1_of_seqeval(case, rule, name):
    sums = {}
    for gold, made in zip(case["gold"], case["predicted"], strict=True):
        pair = [spans.from_tags(tags, rule=rule).spans for tags in (gold, made)]
        for metric, value in spans.counts(*pair).items():
            sums[metric] = sums.get(metric, 0) + value
    assert spans.f1(sums) == pytest.approx(case[name], abs=1e-9)


@st.composite
def labelled(draw):
    length = draw(st.integers(0, 12))
    cuts = sorted(draw(st.lists(st.integers(0, length), unique=True, max_size=8)))
    found = [
        Span(a, b, draw(st.sampled_from(["PER", "LOC"])))
        for a, b in itertools.pairwise(cuts)
        if draw(st.booleans())
    ]
    return length, tuple(found)


@given(labelled(), st.sampled_from(["bio", "iob1", "iobes"]))
def test_written_and_read_again(made, scheme):
    length, found = made
    for rule in ("repair", "drop", "refuse"):
        read = spans.from_tags(spans.to_tags(found, length, scheme=scheme), scheme=scheme, rule=rule)
        assert read == (found, 0)
    words = [f"w{n}" for n in range(length)]
    assert spans.from_json(spans.to_json(found), words) == (found, 0)
    assert spans.from_json(spans.to_json(found, words), words) == (found, 0)


@given(labelled(), labelled())
def test_counts_add_up(one, other):
    gold, made = one[1], other[1]
    exact, partial = spans.counts(gold, made, each=True), spans.partial_counts(gold, made)
    for sums, prefix in ((exact, ""), (partial, "partial.")):
        assert sums[f"{prefix}tp"] + sums[f"{prefix}fp"] == len(made)
        assert sums[f"{prefix}tp"] + sums[f"{prefix}fn"] == len(gold)
    assert partial["partial.tp"] >= exact["tp"]
    assert sum(v for k, v in exact.items() if k.startswith("tp.")) == exact["tp"]
    loose = spans.counts(gold, made, labels=False, prefix="id.")
    assert loose["id.tp"] >= exact["tp"] and not any(name.startswith("id.tp.") for name in loose)
    assert spans.f1(spans.counts(gold, gold))["f1"] == (1.0 if gold else 0.0)


@given(st.lists(st.sampled_from(["O", *(f"{p}-{x}" for p in "BI" for x in "XY")]), max_size=10))
def test_any_tags_are_read(tags):
    """Repair keeps every labelled word; drop keeps only spans that B begins."""
    repaired, dropped = spans.from_tags(tags), spans.from_tags(tags, rule="drop")
    assert repaired.illegal == dropped.illegal
    assert sum(s.end - s.start for s in repaired.spans) == sum(tag != "O" for tag in tags)
    assert len(dropped.spans) == sum(tag.startswith("B-") for tag in tags)


def test_illegal_tags_of_iobes():
    read = spans.from_tags(["B-X", "I-X", "O", "E-Y", "U-Z", "L-Z"], scheme="iobes")
    assert read == ((Span(0, 2, "X"), Span(3, 4, "Y"), Span(4, 5, "Z"), Span(5, 6, "Z")), 3)
    assert spans.from_tags(["B-X", "I-X", "O", "E-Y", "U-Z", "L-Z"], scheme="iobes", rule="drop") == (
        (Span(4, 5, "Z"),),
        3,
    )


def test_partial_match_takes_each_span_once():
    gold = [Span(0, 2, "A"), Span(2, 4, "A")]
    assert spans.partial_counts(gold, [Span(1, 3, "A")]) == {
        "partial.tp": 1,
        "partial.fp": 0,
        "partial.fn": 1,
    }
    assert spans.partial_counts(gold, [Span(0, 4, "A"), Span(0, 1, "A")])["partial.tp"] == 2
    assert spans.partial_counts(gold, [Span(0, 2, "B")])["partial.tp"] == 0


def test_word_counts():
    assert spans.word_counts(["N", "V", "N"], ["N", "N", "N"]) == {
        "correct": 2,
        "words": 3,
        "tp.N": 2,
        "fn.V": 1,
        "fp.N": 1,
    }


def test_json_texts_are_found_in_order():
    words = ["Paris", "likes", "paris", "and", "New", "York"]
    read = spans.from_json('{"LOC": ["Paris", "Paris", "New York", "Rome"], "PER": "likes"}', words)
    assert read == (
        (Span(0, 1, "LOC"), Span(1, 2, "PER"), Span(2, 3, "LOC"), Span(4, 6, "LOC")),
        1,
    )


@pytest.mark.parametrize(
    ("tags", "scheme", "says"),
    [
        (["O", "I-PER"], "bio", r"word 2: illegal tag 'I-PER' after O \(bio\)"),
        (["I-PER"], "bio", "after the beginning"),
        (["B-PER", "I-LOC"], "bio", "word 2: illegal tag 'I-LOC' after B-PER"),
        (["B-PER", "O"], "iobes", "word 1: illegal tag 'B-PER'"),
        (["O", "E-PER"], "iobes", "word 2: illegal"),
        (["S-PER"], "bio", "word 1: 'S-PER' is no tag"),
        (["B"], "bio", "'B' is no tag"),
        (["B-"], "bio", "no tag"),
        (["NOUN"], "iobes", "word 1: 'NOUN' is no tag"),
        ([""], "bio", "'' is no tag"),
    ],
)
def test_wrong_tags_are_refused(tags, scheme, says):
    with pytest.raises(DataError, match=says):
        spans.from_tags(tags, scheme=scheme, rule="refuse")


def test_unknown_scheme():
    with pytest.raises(ConfigError, match="no scheme of tags 'bilo'; there are bio"):
        spans.from_tags(["O"], scheme="bilo")  # pyright: ignore


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([Span(0, 2, "A"), Span(1, 3, "B")], "span 0..2 'A' and span 1..3 'B' overlap"),
        ([Span(2, 5, "A")], "span 2..5 'A' lies outside the 4 words"),
        ([Span(-1, 1, "A")], "outside"),
        ([Span(1, 1, "A")], "is empty"),
    ],
)
def test_spans_that_no_tags_can_mark(found, says):
    with pytest.raises(DataError, match=says):
        spans.to_tags(found, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"label": "A", "start": 0, "end": 1}', "not valid JSON"),
        ('"A"', "str; expected a list"),
        ("5", "int; expected a list"),
        ("[5]", "5 is no span"),
        ('[{"start": 0, "end": 1}]', "is no span"),
        ('[{"label": "A", "start": 0}]', "start and end must be whole numbers"),
        ('[{"label": "A", "start": 0.0, "end": 1}]', "whole numbers"),
        ('[{"label": "A", "start": true, "end": 2}]', "whole numbers"),
        ('[[0, 4, "A"]]', "span 0..4 'A' outside 3 words"),
        ('[[1, 1, "A"]]', "span 1..1"),
    ],
)
def test_wrong_json_is_refused(text, says):
    with pytest.raises(DataError, match=says):
        spans.from_json(text, ["a", "b", "c"], where="answer 7")


def test_rows_of_different_lengths():
    with pytest.raises(DataError, match="3 tags for 2 words"):
        spans.word_counts(["N", "V"], ["N", "V", "N"])
