import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.errors import ConfigError, DataError, MissingExtra
from calque.evaluate.ranking import best_first, ranking, read_judgements, read_run, score_query, score_run

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/07-modular-clir-reranking.json").read_text())
CASES = [case for case in GOLDEN["cases"] if case["kind"] == "map"]
NAMES = {"recip_rank": "rr", "P_5": "p@5", "recall_100": "recall@100", "ndcg_cut_10": "ndcg@10"}


def write(path, text):
    path.write_text(text)
    return path


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def qrels(tmp_path, text="q1 0 a 1\nq1 0 b 0\nq2 0 b 2\n"):
    return write(tmp_path / "test.qrels", text)


@pytest.mark.parametrize("case", CASES, ids=[str(n) for n in range(len(CASES))])
def test_as_trec_eval_and_as_published(case, tmp_path):
    judged = jsonl(tmp_path / "j.jsonl", [{"query": q, "relevant": d} for q, d in case["relevant"].items()])
    run = jsonl(tmp_path / "r.jsonl", [{"query": q, "ranking": d} for q, d in case["ranking"].items()])
    table = ranking({"s": run}, judged, language="swh")
    found = {(row["item"], row["metric"]): row["value"] for row in table.rows()}
    for query, value in case["ap_trec"].items():
        assert found[query, "ap"] == pytest.approx(value, abs=1e-9)
        for name, expected in (case["other_trec"][query] or {}).items():
            assert found[query, NAMES[name]] == pytest.approx(expected, abs=1e-9)
    assert next(iter(table.measure("ap"))).estimate.value == pytest.approx(case["map_trec"], abs=1e-9)
    if case["map_published"] != "nan":
        published = next(iter(table.measure("map_published"))).estimate.value
        assert published == pytest.approx(case["map_published"], abs=1e-9)


def test_ties_are_broken_as_trec_eval_does():
    assert best_first({"b": 1.0, "a": 1.0, "c": 1.0 + 1e-9}) == ["c", "b", "a"]
    assert score_query(["c", "b", "a"], {"a": 1, "b": 0}, ("ap", "rr@2", "ndcg@10")) == pytest.approx(
        {
            "ap/published": 1 / 3,
            "found": 1,
            "relevant": 1,
            "retrieved": 3,
            "ap": 1 / 3,
            "rr@2": 0,
            "ndcg@10": 0.5,
        }
    )


@given(st.integers(0, 999))
def test_equal_to_ir_measures(seed):
    ir_measures = pytest.importorskip("ir_measures")
    r = np.random.default_rng(seed)
    docs = [f"d{n}" for n in range(12)]
    judged = {f"q{q}": {d: int(r.integers(-1, 4)) for d in docs if r.random() < 0.6} for q in range(4)}
    ranked = {f"q{q}": {d: float(r.integers(0, 5)) for d in docs if r.random() < 0.7} for q in range(3)}
    judged["q0"]["d0"] = ranked["q0"]["d0"] = 1
    names = {"AP": "ap", "nDCG@5": "ndcg@5", "nDCG": "ndcg", "RR": "rr", "R@5": "recall@5", "P@5": "p@5"}
    ours = score_run(ranked, judged, list(names.values()))
    for metric in ir_measures.iter_calc([ir_measures.parse_measure(n) for n in names], judged, ranked):
        assert ours[metric.query_id][names[str(metric.measure)]] == pytest.approx(metric.value, abs=1e-6)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_the_ideal_ranking_has_ndcg_one(grades):
    named = {f"d{n}": grade for n, grade in enumerate(grades)}
    best = sorted(named, key=lambda d: -named[d])
    values = score_query(best, named, ("ndcg@10", "recall@20"))
    best = 1 if any(grades) else 0
    assert values["ndcg@10"] == pytest.approx(best) and values["recall@20"] == best


def test_trec_files(tmp_path, capsys):
    run = write(tmp_path / "a.run", "q1 Q0 b 1 2.5 x\nq1 Q0 a 2 2.0 x\nq9 Q0 a 1 1 x\n")
    table = ranking({"s": run}, qrels(tmp_path), language="eng_Latn", measures=("rr", "ndcg@10"))
    found = {(row["item"], row["metric"]): row["value"] for row in table.rows()}
    assert found["q1", "rr"] == 0.5 and found["q2", "rr"] == 0 and found["q2", "missing"] == 1
    said = capsys.readouterr().err
    assert (
        "1 queries without judgements left out, such as 'q9'" in said
        and "1 judged queries have no rank" in said
    )


def test_three_columns_with_names(tmp_path):
    path = write(tmp_path / "beir.tsv", "query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\t0\n")
    assert read_judgements(path) == {"q1": {"a": 1, "b": 0}}


def test_other_measures_come_from_ir_measures(tmp_path):
    pytest.importorskip("ir_measures")
    run = jsonl(tmp_path / "r.jsonl", [{"query": "q1", "ranking": {"a": 2, "b": 1}}])
    table = ranking({"s": run}, qrels(tmp_path), language="eng", measures=("ap", "Rprec"))
    assert [row["value"] for row in table.where(metric="Rprec").rows()] == [1.0, 0.0]


def test_ir_measures_may_be_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ir_measures", None)
    run = jsonl(tmp_path / "r.jsonl", [{"query": "q1", "ranking": ["a"]}])
    with pytest.raises(MissingExtra, match="calque\\[retrieve\\]"):
        ranking({"s": run}, qrels(tmp_path), language="eng", measures=("Rprec",))


def test_queries_for_which_nothing_is_relevant_are_said(tmp_path, capsys):
    run = jsonl(tmp_path / "r.jsonl", [{"query": "q1", "ranking": ["a"]}])
    table = ranking({"s": run}, qrels(tmp_path, "q1 0 a 0\nq2 0 a 1\n"), language="eng")
    assert "1 of 2 judged queries have no relevant document" in capsys.readouterr().err
    assert [row["value"] for row in table.where(metric="ap").rows()] == [0, 0]


@pytest.mark.parametrize(
    "reader,text,message",
    [
        (read_judgements, "q1 0 a 1\nq1 0 a 0\n", "f:2: document 'a' is judged twice"),
        (read_judgements, "q1 0 a high\n", "f:1: grade 'high'; expected a whole number"),
        (read_judgements, "q1 0 a 1 x y\n", "f:1: 6 columns; qrels have"),
        (read_judgements, "\n", "f: no judgement in it"),
        (read_run, "q1 Q0 a 1 2 x\nq1 Q0 a 2 1 x\n", "f:2: document 'a' stands twice"),
        (read_run, "q1 Q0 a 1 best x\n", "f:1: score 'best'; expected a number"),
        (read_run, "q1 Q0 a 1 nan x\n", "f:1: score 'nan'; expected a finite"),
        (read_run, "q1 a 2\n", "f:1: 3 columns; a run has"),
        (read_run, "", "f: no ranking in it"),
    ],
)
def test_damaged_lines(tmp_path, reader, text, message):
    with pytest.raises(DataError, match=message):
        reader(write(tmp_path / "f", text))


def test_wrong_calls(tmp_path):
    run = write(tmp_path / "a.run", "q7 Q0 b 1 2.5 x\n")
    with pytest.raises(DataError, match="none of its 1 queries is among the 2 judged ones"):
        ranking({"s": run}, qrels(tmp_path), language="eng")
    with pytest.raises(ConfigError, match="no ranking to score"):
        ranking({}, qrels(tmp_path), language="eng")
    with pytest.raises(ConfigError, match="no measure 'p'"):
        score_query(["a"], {"a": 1}, ("p",))
    bad = jsonl(tmp_path / "bad.jsonl", [{"query": "q1", "ranking": "a b"}])
    with pytest.raises(DataError, match=r"bad\.jsonl:1: ranking 'a b'; expected a list"):
        read_run(bad)


def test_an_unknown_measure_names_the_nearest(tmp_path):
    pytest.importorskip("ir_measures")
    run = jsonl(tmp_path / "r.jsonl", [{"query": "q1", "ranking": ["a"]}])
    with pytest.raises(ConfigError, match="no measure 'ndgc@10', did you mean 'ndcg@10'"):
        ranking({"s": run}, qrels(tmp_path), language="eng", measures=("ndgc@10",))
