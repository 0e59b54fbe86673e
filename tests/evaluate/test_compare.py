"""Comparing systems: what is tested how, what is left out and said, and what can not be compared."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from calque.errors import ConfigError, DataError
from calque.evaluate.compare import compare, tables_of, together
from calque.evaluate.comparison import Comparison
from calque.evaluate.export import export
from calque.evaluate.table import Table


def rows(
    system, language, values, *, metric="correct", task="quiz", group="", made="quiz:1|shots:0", first=0
):
    return [
        {
            "system": system, "task": task, "language": language, "item": str(first + i), "metric": metric,
            "value": float(value), "signature": made, "group": f"{group}{i // 3}" if group else "",
        }
        for i, value in enumerate(values)
    ]  # fmt: skip


def answers(rng, count, share, like=None, differ=0.3):
    fresh = rng.uniform(size=count) < share
    return fresh if like is None else np.where(rng.uniform(size=count) < differ, fresh, like)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    listed = []
    for language in ("nya_Latn", "swh_Latn", "eng_Latn"):
        base = answers(rng, 150, 0.4)
        better = base | (rng.uniform(size=150) < 0.3)
        listed += rows("base", language, base) + rows("adapted", language, better)
        listed += rows("other", language, answers(rng, 150, 0.4, base)) if language != "eng_Latn" else []
    return Table.of(listed)


def test_every_system_and_language_has_a_line(table):
    found = compare({"t": table})
    assert found.baseline == "base" and found.systems() == ["adapted", "other"]
    assert [(line.system, line.group["language"]) for line in found.lines] == [
        ("adapted", "nya_Latn"), ("other", "nya_Latn"), ("adapted", "swh_Latn"), ("other", "swh_Latn"),
        ("adapted", "eng_Latn"),
    ]  # fmt: skip
    line = found.lines[0]
    values = {
        a.group["system"]: a.estimate.value for a in table.where(language="nya_Latn").measure("accuracy")
    }
    assert (line.value, line.base) == (values["adapted"], values["base"])
    assert line.difference.value == pytest.approx(line.value - line.base)
    assert line.test == "mcnemar" and line.measure == "accuracy" and line.items == 150
    assert line.difference.p <= line.p_holm <= line.p_bonferroni
    assert line.verdict(0.05) == "better" and found.lines[1].verdict(0.05) == "unclear"
    assert 0.05 < line.detectable < 0.25


def test_means_are_over_languages_that_all_systems_ran(table):
    found = compare({"t": table})
    adapted, other = found.macros
    assert adapted.languages == other.languages == ("nya_Latn", "swh_Latn")
    lines = [line for line in found.lines if line.system == "adapted"]
    assert adapted.value == pytest.approx(np.mean([line.value for line in lines[:2]]))
    assert adapted.difference.value == pytest.approx(adapted.value - adapted.base)
    assert adapted.difference.low > 0 and adapted.difference.p < 0.01
    assert (adapted.ahead, adapted.of, adapted.clearly_ahead, adapted.clearly_behind) == (3, 3, 3, 0)
    assert adapted.difference.units == 150  # the same items in both languages are drawn together
    said = found.to_text()
    assert "adapted is better than base in 3 of 3 languages" in said
    assert "mean over the 2 languages that all systems ran" in said
    assert "only base and not other has quiz / eng_Latn: left out" in said


def test_swapping_the_baseline_turns_every_sign(table):
    pair = table.where(system=("base", "adapted"))
    one, two = compare({"t": pair}), compare({"t": pair}, baseline="adapted")
    for a, b in zip(one.lines, two.lines, strict=True):
        assert a.difference.value == -b.difference.value and a.p_holm == b.p_holm
        assert {a.verdict(0.05), b.verdict(0.05)} in ({"better", "worse"}, {"unclear"})


def test_gold_against_itself_is_no_difference():
    same = [*rows("a", "nya_Latn", [1, 0, 1]), *rows("b", "nya_Latn", [1, 0, 1])]
    (line,) = compare({"t": Table.of(same)}).lines
    assert (line.difference.value, line.p_holm, line.verdict(0.05)) == (0, 1, "unclear")


def test_items_of_a_passage_are_swapped_together():
    rng = np.random.default_rng(1)
    base = answers(rng, 90, 0.5)
    listed = rows("a", "x", base, group="p") + rows("b", "x", base | (rng.uniform(size=90) < 0.2), group="p")
    (line,) = compare({"t": Table.of(listed)}).lines
    assert line.test == "randomisation" and line.difference.units == 30 and line.items == 90
    with pytest.raises(ConfigError, match="'mcnemar' does not fit 'accuracy': items share a passage"):
        compare({"t": Table.of(listed)}, test="mcnemar")


def test_less_is_better_where_it_is():
    rng = np.random.default_rng(2)
    listed = []
    for system, level in (("base", 3.0), ("adapted", 2.0)):
        listed += rows(system, "nya_Latn", rng.normal(level, 0.2, 40) * 100, metric="bits", task="lm/x")
        listed += rows(system, "nya_Latn", [100] * 40, metric="bytes", task="lm/x")
    (line,) = compare({"t": Table.of(listed)}).lines
    assert line.measure == "bits_per_byte" and line.better == "lower" and line.difference.value < 0
    assert line.gain > 0 and line.verdict(0.05) == "better" and line.test == "randomisation"
    (again,) = compare({"t": Table.of(listed)}, metric=["bits/bytes"], test="bootstrap").lines
    assert again.difference.value == line.difference.value and again.test == "bootstrap"


def test_only_common_items_count_and_the_rest_is_said():
    listed = rows("a", "x", [1] * 10) + rows("b", "x", [0] * 10, first=4)
    found = compare({"t": Table.of(listed)})
    assert found.lines[0].items == 6 and found.lines[0].left_out == 8
    assert "b against a, quiz / x: 6 items in common, 8 that only one has are left out" in found.notes


def test_items_without_the_metric_and_missing_answers_are_said():
    listed = rows("a", "x", [1, 0, 1]) + rows("b", "x", [1, 0, 1])
    listed += rows("a", "x", [1] * 5, metric="length") + rows("b", "x", [1] * 5, metric="length")
    listed += rows("b", "x", [0, 0, 1, 0, 0], metric="missing")
    found = compare({"t": Table.of(listed)})
    assert "a / quiz / x: 2 of 5 items have no 'accuracy' and are left out" in found.notes
    assert "b / quiz / x: 1 of 5 answers are missing and count as wrong" in found.notes


def test_what_was_asked_differently_is_said():
    listed = rows("a", "x", [1, 0]) + rows("b", "x", [1, 0], made="quiz:1|shots:5|tokenizer:ab")
    found = compare({"t": Table.of(listed)})
    assert found.notes == ("b and a were not scored alike, quiz / x: shots 5 and 0",)
    assert len(found.signatures) == 1
    other = compare({"t": Table.of(listed[:2] + rows("c", "x", [1, 0], made="floors|level:9"))})
    assert other.notes == ("c and a were not scored alike, quiz / x: by floors and by quiz",)


def test_tables_of_one_system_lend_it_their_name():
    one = Table.of(rows("model", "x", [1, 0]))
    both = Table.of(rows("base", "x", [1, 1]) + rows("zstd", "x", [0, 1]))
    assert together({"new": one, "old": both}).values("system") == ["new", "base", "zstd"]
    assert together({"a": both, "b": both}).values("system") == ["a/base", "a/zstd", "b/base", "b/zstd"]
    assert together({"t": both}).values("system") == ["base", "zstd"]
    assert compare({"old": one, "new": one}).lines[0].group == {"task": "quiz", "language": "x"}


def test_languages_can_be_taken_together_or_columns_added(table):
    pooled = compare({"t": table.where(system=("base", "adapted"))}, by=[])
    assert [line.group for line in pooled.lines] == [{"task": "quiz"}]
    assert pooled.lines[0].items == 450 and pooled.lines[0].difference.units == 150
    assert pooled.lines[0].test == "randomisation" and not pooled.macros
    finer = compare({"t": table}, by=["language", "prompt_language"])
    assert [*finer.lines[0].group] == ["task", "language", "prompt_language"]


def test_a_comparison_on_disk_is_the_comparison(table, tmp_path):
    found = compare({"t": table})
    found.save(tmp_path / "out")
    assert Comparison.load(tmp_path / "out") == found
    json.dumps(found.plain(), allow_nan=False)
    (tmp_path / "out/comparison.json").write_text('{"lines": [{}]}')
    with pytest.raises(DataError, match="not a comparison"):
        Comparison.load(tmp_path / "out")
    with pytest.raises(DataError, match="holds no comparison"):
        Comparison.load(tmp_path)


def test_one_item_has_no_interval_and_proves_nothing(tmp_path):
    listed = rows("a", "x", [1]) + rows("b", "x", [0])
    found = compare({"t": Table.of(listed)})
    assert np.isnan(found.lines[0].difference.low) and found.lines[0].p_holm == 1
    found.save(tmp_path / "out")
    assert np.isnan(Comparison.load(tmp_path / "out").lines[0].difference.low)


def test_exports_hold_every_line(table, tmp_path):
    found = compare({"t": table})
    listed = [*found.rows()]
    with export(found, tmp_path / "c.csv").open() as stream:
        read = [*csv.DictReader(stream)]
    assert [float(row["difference"]) for row in read] == [row["difference"] for row in listed]
    assert pq.read_table(export(found, tmp_path / "c.parquet")).to_pylist() == listed
    assert json.loads(export(found, tmp_path / "c.json").read_text()) == listed
    lines = export(found, tmp_path / "c.md").read_text().splitlines()
    assert len(lines) == 2 + len(listed) and lines[0].startswith("| system | baseline | task |")
    latex = export(table.where(language="nya_Latn").measure("accuracy"), tmp_path / "c.tex").read_text()
    assert latex.count(r"\\") == 4 and r"nya\_Latn" in latex
    with pytest.raises(DataError, match=r"no format '\.xlsx'"):
        export(found, tmp_path / "c.xlsx")
    with pytest.raises(DataError, match="there is no row"):
        export(Table.of([]), tmp_path / "c.csv")


PAIR = rows("a", "x", [1]) + rows("b", "x", [1])
APART = rows("a", "x", [1]) + rows("b", "y", [1])


@pytest.mark.parametrize(
    ("listed", "settings", "error", "message"),
    [
        ([], {}, DataError, "nothing to compare: the table is empty"),
        (rows("a", "x", [1]), {}, DataError, "nothing to compare: only system 'a'"),
        (APART, {}, DataError, "'a' has no item in common with b.*languages x, y"),
        (rows("a", "x", [1]) + rows("b", "x", [1], first=5), {}, DataError, "no item in common"),
        (PAIR, {"baseline": "c"}, ConfigError, "no system 'c'.*there are a, b"),
        (PAIR, {"metric": ["corect"]}, ConfigError, "did you mean 'correct'"),
        (PAIR, {"metric": ["chrf"]}, ConfigError, "'chrf' needs the metrics"),
        (PAIR, {"by": ["langage"]}, ConfigError, "did you mean 'language'"),
        (PAIR, {"by": ["system"]}, ConfigError, "by 'system'"),
        (rows("a", "x", [2]) + rows("b", "x", [1]), {"test": "mcnemar"}, ConfigError, "right or wrong"),
        ([r | {"metric": "k"} for r in PAIR], {}, ConfigError, "no task has a measure of its own.*metric: k"),
    ],
)
def test_what_can_not_be_compared_is_refused(listed, settings, error, message):
    with pytest.raises(error, match=message):
        compare({"t": Table.of(listed)}, **settings)


def test_the_tables_of_a_run_are_found(tmp_path):
    for step, system in (("one", "a"), ("two", "b")):
        Table.of(rows(system, "x", [1, 0])).save(tmp_path / "run/steps" / step / "table.parquet")
    assert tables_of(tmp_path / "run").values("system") == ["a", "b"]
    assert tables_of(tmp_path / "run/steps/one").values("system") == ["a"]
    with pytest.raises(DataError, match="holds no table"):
        tables_of(tmp_path)
    with pytest.raises(DataError, match="no table"):
        tables_of(tmp_path / "none.parquet")
    twice = tmp_path / "twice.jsonl"
    line = json.dumps(rows("a", "x", [1])[0])
    twice.write_text(f"{line}\n{line}\n")
    with pytest.raises(DataError, match="2 rows for system 'a'"):
        tables_of(twice)
    twice.write_text(line.replace("1.0", "NaN"))
    with pytest.raises(DataError, match="every value must be finite"):
        tables_of(twice)
    with pytest.raises(DataError, match="no table"):
        together({})
