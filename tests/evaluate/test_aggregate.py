"""Level, parity and effects over languages against the golden numbers, and their laws."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.errors import DataError
from calque.evaluate import aggregate
from calque.evaluate.aggregate import Level
from calque.evaluate.table import Table

CASES = json.loads((Path(__file__).parents[1] / "golden/25-multiloko.json").read_text())["cases"]
PLACE = next(i for i, case in enumerate(CASES) if case["kind"] == "effects")
EFFECTS, MATERIAL = CASES[PLACE], CASES[PLACE - 1]


def rows(system, language, values, task="local", **other):
    return [
        {
            "system": system, "task": task, "language": language, "item": str(item), "metric": "em",
            "value": float(value), "signature": "s", **other,
        }
        for item, value in (values.items() if isinstance(values, dict) else enumerate(values))
    ]  # fmt: skip


def right(partition):
    """Which questions of a partition of the golden material are right; lower case and marks apart."""
    said = {(p["language"], p["id"]): p["prediction"] for p in MATERIAL["predictions"]}

    def plain(text):
        return "".join(c for c in text.lower().removeprefix("the ") if c not in ".!").strip()

    return {
        q["id"]: any(plain(said.get((partition, q["id"]), "")) == plain(t) for t in q["targets"])
        for q in MATERIAL["references"][partition]
    }


def tables():
    local = [r for name in EFFECTS["local_partitions"] for r in rows("m", name, right(name))]
    in_english, translated = [], []
    for name in ("czech", "thai"):
        in_english += rows("m", name, right(f"{name}_translated_human_english"), "in_english")
        translated += rows("m", name, right(f"english_translated_human_{name}"), "translated")
    return [Table.of(part) for part in (local, in_english, translated)]


def test_levels_and_effects_are_the_golden_ones():
    local, in_english, translated = tables()
    found = aggregate.level(local, "em")
    assert 100 * found.average == pytest.approx(EFFECTS["average"], abs=1e-9)
    assert 100 * found.two_errors == pytest.approx(EFFECTS["two_standard_errors"], abs=1e-9)
    assert 100 * found.gap == pytest.approx(EFFECTS["gap"])
    assert (found.best, found.worst) == (EFFECTS["max_language"], EFFECTS["min_language"])
    assert {k: 100 * v for k, v in found.by_language.items()} == pytest.approx(
        {k: EFFECTS["score_percent"][k] for k in EFFECTS["local_partitions"]}
    )
    tongue = aggregate.effect(local, in_english, "em")
    assert {k: 100 * v for k, v in tongue.by_language.items()} == pytest.approx(
        EFFECTS["mother_tongue_effect"]
    )
    assert 100 * tongue.average == pytest.approx(EFFECTS["mean_mother_tongue_effect"])
    locality = aggregate.effect(local, translated, "em")
    assert {k: 100 * v for k, v in locality.by_language.items()} == pytest.approx(EFFECTS["locality_effect"])
    assert 100 * locality.average == pytest.approx(EFFECTS["mean_locality_effect"])
    same = aggregate.consistency(local, in_english, "em")
    assert same.by_language == pytest.approx(EFFECTS["consistency"])
    assert same.average == pytest.approx(EFFECTS["mean_consistency"])


scores = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.booleans(), min_size=3, max_size=6), min_size=1
)


@settings(max_examples=25, deadline=None)
@given(scores)
def test_laws_of_the_effects(by_language):
    one = Table.of(r for language, values in by_language.items() for r in rows("m", language, values))
    other = Table.of(r for language, values in by_language.items() for r in rows("m", language, values[::-1]))
    gap = aggregate.level(one, "em").gap
    assert gap >= 0 and (len(by_language) > 1 or gap == 0)
    forth, back = aggregate.effect(one, other, "em"), aggregate.effect(other, one, "em")
    assert forth.by_language == {k: -v for k, v in back.by_language.items()}
    assert set(aggregate.effect(one, one, "em").by_language.values()) == {0.0}
    if any(any(values) for values in by_language.values()):
        same = aggregate.consistency(one, one, "em")
        assert same.average == 1
        assert all(math.isnan(same.by_language[k]) != any(v) for k, v in by_language.items())
        mixed = aggregate.consistency(one, other, "em")
        assert all(math.isnan(v) or 0 <= v <= 1 for v in mixed.by_language.values())


def test_one_language_has_no_spread():
    found = Level.of({"nya_Latn": 0.4})
    assert (found.average, found.gap, found.best) == (0.4, 0.0, "nya_Latn") and math.isnan(found.two_errors)


def test_orders_of_languages_are_correlated():
    human, machine = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.5}, {"a": 2.0, "b": 1.9, "c": 0.2, "e": 9.0}
    assert aggregate.rank_correlation(human, machine) == pytest.approx(1.0)
    assert aggregate.rank_correlation(human, {k: -v for k, v in human.items()}) == pytest.approx(-1.0)


def grid():
    rng = np.random.default_rng(0)
    level = {("nya", "nya"): 0.8, ("nya", "swh"): 0.5, ("swh", "nya"): 0.4, ("swh", "swh"): 0.9}
    return Table.of(
        r
        for (trained, tested), share in level.items()
        for r in rows(f"on {trained}", tested, rng.uniform(size=80) < share)
    )


def test_transfer_is_a_matrix_of_training_and_test_language():
    view = aggregate.transfer(grid(), "em", lambda system: system.removeprefix("on "))
    found = view.pivot("trained_on", "language")
    assert [*found] == ["nya", "swh"] and [*found["nya"]] == ["nya", "swh"]
    assert found["nya"]["nya"].estimate.value > found["nya"]["swh"].estimate.value
    named = aggregate.transfer(grid(), "em", {"on nya": "nya", "on swh": "swh"})
    assert named == view
    assert "trained_on" in view.to_text("trained_on", "language")


def test_the_matrix_has_an_interval_in_every_cell():
    view = aggregate.matrix(grid(), "em")
    assert len(view) == 4 and all(e.estimate.low < e.estimate.value < e.estimate.high for e in view)


def test_forgetting_is_after_minus_before():
    listed = (
        rows("before", "x", [1, 1, 1, 0]) + rows("after", "x", [1, 0, 0, 0]) + rows("third", "x", [1] * 4)
    )
    (found,) = aggregate.forgetting(Table.of(listed), "em", "before", "after")
    assert found.estimate.value == -0.5 and found.group["system"] == "after"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate.level(Table.of([]), "em"), "rows of one system, found none"),
        (lambda: aggregate.level(Table.of(rows("a", "x", [1]) + rows("b", "x", [1])), "em"), "found a, b"),
        (
            lambda: aggregate.effect(Table.of(rows("a", "x", [1])), Table.of(rows("a", "y", [1])), "em"),
            "no language in common: x and y",
        ),
        (
            lambda: aggregate.consistency(
                Table.of(rows("a", "x", [1, 0])), Table.of(rows("a", "x", [1])), "em"
            ),
            "x: 1 questions are on one side only",
        ),
        (
            lambda: aggregate.consistency(
                Table.of(rows("a", "x", [0.5])), Table.of(rows("a", "x", [1])), "em"
            ),
            "'em' in x is not 0 or 1",
        ),
        (
            lambda: aggregate.consistency(Table.of(rows("a", "x", [0])), Table.of(rows("a", "x", [0])), "em"),
            "no language has a value: x",
        ),
        (lambda: aggregate.rank_correlation({"a": 1, "b": 2}, {"a": 1, "b": 2}), "2 in common"),
        (lambda: aggregate.rank_correlation(dict.fromkeys("abc", 1), dict.fromkeys("abc", 1)), "no order"),
        (
            lambda: aggregate.transfer(grid(), "em", {"on nya": "nya"}),
            "no training language for system 'on swh'",
        ),
        (
            lambda: aggregate.transfer(grid(), "em", lambda _: "nya"),
            "two systems were trained on one language",
        ),
        (lambda: aggregate.forgetting(grid(), "em", "on nya", "later"), "no system 'later'"),
    ],
)
def test_what_has_no_aggregate_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
