"""Measures against direct counting, and what can not be a measure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.errors import ConfigError, DataError
from calque.evaluate.measures import MEASURES, measure
from calque.evaluate.table import Table


def rows(system, metrics, *, task="ner", language="nya_Latn", group=""):
    """One row for each item and metric: {metric: values of the items, None where an item lacks it}."""
    return [
        {
            "system": system, "task": task, "language": language, "item": str(number), "metric": metric,
            "value": value, "signature": "s", "group": group and f"{group}{number // 2}",
        }
        for metric, values in metrics.items()
        for number, value in enumerate(values)
        if value is not None
    ]  # fmt: skip


def value(table, name, **other):
    (found,) = table.measure(name, by=(), **other)
    return found.estimate.value


labels = st.lists(st.sampled_from("abc"), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(st.data(), labels)
def test_macro_f1_is_the_mean_over_the_classes_that_occur(data, gold):
    said = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(gold), max_size=len(gold)))
    listed = []
    for number, (g, s) in enumerate(zip(gold, said, strict=True)):
        hits = {f"tp.{g}": 1.0} if g == s else {f"fn.{g}": 1.0, f"fp.{s}": 1.0}
        listed += [r | {"item": str(number)} for r in rows("a", {name: [v] for name, v in hits.items()})]
    expected = []
    for label in set(gold) | set(said):
        tp = sum(g == s == label for g, s in zip(gold, said, strict=True))
        expected.append(2 * tp / (gold.count(label) + said.count(label)))
    assert value(Table.of(listed), "macro_f1") == pytest.approx(np.mean(expected))


def test_measures_of_spans_are_made_of_sums_not_of_items():
    table = Table.of(rows("a", {"tp": [1, 0, 3], "fp": [1, 0, 0], "fn": [0, 2, 1]}))
    assert value(table, "precision") == pytest.approx(4 / 5)
    assert value(table, "recall") == pytest.approx(4 / 7)
    assert value(table, "f1") == pytest.approx(8 / 12)
    nothing = Table.of(rows("a", {"tp": [0], "fp": [0], "fn": [2]}))
    assert value(nothing, "precision") == value(nothing, "f1") == 0


def test_a_name_means_a_measure_then_a_metric_then_a_ratio():
    metrics = ("bits", "bytes", "em", "em/published", "f1", "correct")
    assert measure("bits_per_byte", metrics).better == "lower"
    assert measure("em/published", metrics).needs == ("em/published", "#")
    assert measure("f1", metrics).needs == ("f1", "#")
    assert measure("f1").needs == ("tp", "fp", "fn")
    assert measure("bits/bytes", metrics).better == "lower"
    assert measure("bits").better == "lower" and measure("em").better == "higher"
    assert measure("accuracy", metrics) is MEASURES["accuracy"]
    both = Table.of(rows("a", {"em": [1, 0], "em/published": [1, 1]}))
    assert (value(both, "em"), value(both, "em/published")) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "metrics", "message"),
    [
        (
            "acuracy",
            ("correct",),
            r"no measure or metric 'acuracy', did you mean 'accuracy'.*accuracy, correct",
        ),
        ("chrff", ("chrf.h1", "em"), "there are chrf.h1, em"),
        ("chrf", ("chrf.h1", "em"), "measure 'chrf' needs the metrics chrf.h1, chrf.h2"),
        ("bits/byte", ("bits", "bytes"), "no measure or metric 'bits/byte'.*there are .*bits, bytes"),
        ("macro_f1", ("em",), r"needs the metrics tp\.\*, fp\.\*, fn\.\*; there are em"),
        ("em", (), "there are none"),
    ],
)
def test_an_unknown_name_is_answered_with_known_ones(name, metrics, message):
    with pytest.raises(ConfigError, match=message):
        measure(name, metrics)


def test_what_is_not_defined_is_refused_by_group():
    with pytest.raises(DataError, match="'f1' is not defined for b / ner / nya_Latn"):
        Table.of(
            rows("a", {"tp": [1], "fp": [0], "fn": [0]}) + rows("b", {"tp": [0], "fp": [0], "fn": [0]})
        ).measure("f1")
    with pytest.raises(DataError, match="no 'fn' for a / ner / nya_Latn / test / 1; 'f1' needs it"):
        Table.of(rows("a", {"tp": [1, 1], "fp": [0, 0], "fn": [0, None]})).measure("f1")
    with pytest.raises(ConfigError, match="no measure or metric 'emm', did you mean 'em'"):
        Table.of(rows("a", {"em": [1]})).measure("emm")
    with pytest.raises(DataError, match="group by 'sytem'"):
        Table.of(rows("a", {"em": [1]})).measure("em", by=("sytem",))
    assert len(Table.of([]).measure("em")) == 0


def test_items_of_a_passage_are_drawn_together():
    numbers = {"em": [1, 1, 0, 0, 1, 1, 0, 0]}
    (alone,) = Table.of(rows("a", numbers)).measure("em")
    (passages,) = Table.of(rows("a", numbers, group="passage")).measure("em")
    assert (alone.estimate.units, passages.estimate.units) == (8, 4)
    assert passages.estimate.high - passages.estimate.low > alone.estimate.high - alone.estimate.low


def test_items_of_two_tasks_with_one_name_are_not_one_item():
    both = Table.of(rows("a", {"em": [1, 0]}) + rows("a", {"em": [1, 1]}, task="qa"))
    (found,) = both.measure("em", by=())
    assert found.estimate.units == 4 and found.estimate.value == 0.75


def test_systems_are_compared_on_any_measure():
    one = {"tp.x": [1, 0, 1, 1], "fp.y": [0, 1, 0, 0], "fn.x": [0, 1, 0, 0]}
    two = {"tp.x": [1, 0, 0, 0], "fp.z": [0, 1, 1, 1], "fn.x": [0, 1, 1, 1]}
    table = Table.of(rows("one", one) + rows("two", two))
    (found,) = table.compare("two", "macro_f1", how="difference")
    values = {a.group["system"]: a.estimate.value for a in table.measure("macro_f1")}
    assert found.estimate.value == pytest.approx(values["one"] - values["two"])
    assert found.measure == "macro_f1 - two"
    (same,) = (
        table.join(Table.of(rows("three", two))).where(system=("two", "three")).compare("two", "macro_f1")
    )
    assert (same.estimate.value, same.estimate.p) == (1.0, 1.0)
