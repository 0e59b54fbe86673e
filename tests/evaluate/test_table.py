import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.errors import DataError
from calque.evaluate.table import KEY, Table, signature

word = st.text(st.characters(codec="utf-8"), max_size=6)
row = st.fixed_dictionaries(
    {
        **{name: word for name in KEY},
        "value": st.floats(allow_nan=False, allow_infinity=False),
        "signature": word,
        "output": st.none() | word,
    }
)
rows = st.lists(row, max_size=12, unique_by=lambda r: tuple(r[name] for name in KEY))


def score(system="base", item="1", metric="bits", value=1.0, **other):
    return {
        "system": system,
        "task": "lm/books",
        "language": "nya_Latn",
        "item": item,
        "metric": metric,
        "value": value,
        "signature": "s",
        **other,
    }


def bits(system, numbers, **other):
    return [
        score(system, str(i), metric, value, **other)
        for i, pair in enumerate(numbers)
        for metric, value in zip(("bits", "bytes"), pair, strict=True)
    ]


@settings(max_examples=40)
@given(rows, st.sampled_from(["table.parquet", "table.jsonl"]))
def test_a_table_on_disk_is_the_table(tmp_path_factory, listed, name):
    path = tmp_path_factory.mktemp("t") / name
    table = Table.of(listed)
    table.save(path)
    again = Table.load(path)
    assert again.arrow.equals(table.arrow)
    assert list(again.rows()) == [{**r, "value": float(r["value"])} for r in table.rows()]
    assert [p.name for p in path.parent.iterdir()] == [name]


@given(rows.filter(len), st.data())
def test_a_key_has_one_row(listed, data):
    again = data.draw(st.sampled_from(listed))
    with pytest.raises(DataError, match="2 rows for "):
        Table.of([*listed, {**again, "value": 7.0}])
    with pytest.raises(DataError, match="a key has one row"):
        Table.of(listed).join(Table.of([again]))


@given(rows)
def test_splitting_by_a_column_and_joining_again_loses_nothing(listed):
    table = Table.of(listed)
    parts = [table.where(system=name) for name in table.values("system")]
    joined = Table.of([]).join(*parts)
    assert sorted(map(str, joined.rows())) == sorted(map(str, table.rows()))


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=1, max_size=8), st.randoms())
def test_a_ratio_does_not_depend_on_the_order_of_rows(numbers, random):
    listed = bits("a", numbers)
    shuffled = listed.copy()
    random.shuffle(shuffled)
    (one,), (two,) = (Table.of(r).measure("bits/bytes") for r in (listed, shuffled))
    expected = sum(n for n, _ in numbers) / sum(d for _, d in numbers)
    assert one.estimate.value == pytest.approx(expected)
    assert two.estimate.value == pytest.approx(expected)
    assert one.group == {"system": "a", "task": "lm/books", "language": "nya_Latn"}
    assert one.measure == "bits/bytes" and one.signatures == ("s",)


def test_groups_over_languages_are_clustered_by_item():
    english = bits("a", [(2, 1), (8, 2), (3, 1)])
    copies = [{**r, "language": "eng_Latn"} for r in english]
    (one,) = Table.of(english).measure("bits/bytes", by=("system",))
    (both,) = Table.of(english + copies).measure("bits/bytes", by=("system",))
    assert both.estimate == one.estimate and both.estimate.units == 3


def test_items_can_be_clustered_by_what_they_belong_to():
    listed = [{**r, "item": f"GEN.{r['item']}"} for r in bits("a", [(2, 1), (8, 2), (3, 1)])]
    listed += [{**r, "item": r["item"].replace("GEN", "RUT")} for r in listed]
    (found,) = Table.of(listed).measure("bits/bytes", cluster=lambda item: item.split(".")[0])
    assert found.estimate.units == 2


def test_mean_and_pivot():
    table = Table.of(
        [score(s, str(i), "correct", v) for s, v in (("a", 1), ("b", 0)) for i in range(3)]
        + [score("a", "0", "correct", 0.5, task="other")]
    )
    view = table.measure("correct")
    grid = view.pivot()
    assert {s: {t: e.estimate.value for t, e in line.items()} for s, line in grid.items()} == {
        "a": {"lm/books": 1.0, "other": 0.5},
        "b": {"lm/books": 0.0},
    }
    assert view.to_text().splitlines() == [
        "system              lm/books  other",
        "a       1.000 [1.000, 1.000]  0.500",
        "b       0.000 [0.000, 0.000]      -",
    ]
    with pytest.raises(DataError, match="pivot by 'item'"):
        view.pivot("item")
    with pytest.raises(DataError, match="two aggregates for system 'a', language 'nya_Latn'"):
        view.pivot("system", "language")


def test_further_grouping_columns_stand_with_the_columns():
    rows = [score("a", "0", "correct", n, language=code) for n, code in enumerate(("nya_Latn", "swh_Latn"))]
    view = Table.of(rows).measure("correct", by=("system", "task", "language"))
    assert view.to_text().splitlines() == [
        "system  lm/books nya_Latn  lm/books swh_Latn",
        "a                   0.000              1.000",
    ]


def test_parts_of_a_split_are_the_same_items():
    rows = [score("a", str(i), "correct", 1, split=f"test:{code}") for i in range(3) for code in ("es", "de")]
    (found,) = Table.of(rows).measure("correct")
    assert found.estimate.units == 3


def test_systems_are_compared_on_common_items_only(capsys):
    table = Table.of(bits("base", [(4, 1), (8, 2), (3, 1)]) + bits("new", [(2, 1), (4, 2)]))
    (found,) = table.compare("base", "bits/bytes")
    assert found.group == {"system": "new", "task": "lm/books", "language": "nya_Latn"}
    assert found.estimate.value == pytest.approx(0.5) and found.estimate.units == 2
    assert found.measure == "bits/bytes / base"
    assert "2 items in common" in capsys.readouterr().err
    (found,) = table.compare("base", "bits/bytes", how="difference")
    assert found.estimate.value == pytest.approx(2.0 - 4.0)
    with pytest.raises(DataError, match=r"no system 'bse'.*base, new"):
        table.compare("bse", "bits/bytes")


def test_a_metric_that_an_item_lacks_is_not_guessed():
    table = Table.of([*bits("a", [(2, 1)]), score("a", "lonely", "bits", 3)])
    with pytest.raises(DataError, match=r"no 'bytes' for .*lonely"):
        table.measure("bits/bytes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "value nan of system 'base'.*must be finite"),
        ({"value": float("inf")}, "value inf"),
        ({"value": "3"}, "'value' is '3'; expected a number"),
        ({"value": True}, "'value' is True"),
        ({"task": None}, "'task' is None; expected text"),
        ({"score": 1.0}, r"unknown column \['score'\]"),
    ],
)
def test_a_row_that_is_no_row_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        Table.of([{**score(), **change}])
    with pytest.raises(DataError, match="row 1: no 'item'"):
        Table.of([score(), {k: v for k, v in score().items() if k != "item"}])


def test_damaged_files_are_named(tmp_path):
    lines = tmp_path / "t.jsonl"
    lines.write_text(json.dumps(score()) + "\n{broken\n")
    with pytest.raises(DataError, match=r"t\.jsonl:2: not valid JSON"):
        Table.load(lines)
    lines.write_text("[1]\n")
    with pytest.raises(DataError, match=r"t\.jsonl:1: expected an object"):
        Table.load(lines)
    parquet = tmp_path / "t.parquet"
    with pytest.raises(DataError, match=r"no table .*t\.parquet"):
        Table.load(parquet)
    parquet.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a readable parquet file"):
        Table.load(parquet)
    pq.write_table(pa.table({"system": ["a"]}), parquet)
    with pytest.raises(DataError, match="no column task, language"):
        Table.load(parquet)
    full = Table.of([score()]).arrow
    pq.write_table(full.set_column(7, "value", pa.array(["x"])), parquet)
    with pytest.raises(DataError, match="another type"):
        Table.load(parquet)
    with pytest.raises(DataError, match=r"kept as \.parquet or \.jsonl"):
        Table.of([score()]).save(tmp_path / "t.csv")


def test_the_terminal_form_and_the_signature():
    text = Table.of([score(value=0.25)]).to_text()
    assert text.splitlines()[0].split() == [*KEY, "value"]
    assert text.splitlines()[1].split() == ["base", "lm/books", "nya_Latn", "test", "1", "bits", "0.25"]
    assert signature("lm", {"length": 4, "start": "<|x|>"}) == "lm|length:4|start:</x/>"
