import json
from pathlib import Path

import pytest
import yaml

from calque import runner
from calque.errors import ConfigError, DataError
from calque.evaluate.benchmark import benchmark
from calque.evaluate.harness import export, import_results
from calque.evaluate.source import Source

SAMPLE = Source("sample")


def exported(tmp_path, task="classify", **settings):
    made = export({task: SAMPLE}, **{"languages": ["nya"], "shots": 0, **settings})
    made.save(tmp_path / "out")
    name = f"calque_{task}_nya_Latn"
    config = yaml.safe_load((tmp_path / f"out/{name}.yaml").read_text())
    return config, [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines()]


def sample(doc, number, responses, **more):
    return {
        "doc_id": number,
        "doc": doc,
        "target": "0",
        "arguments": {},
        "resps": [responses],
        "filtered_resps": responses,
        "filter": "none",
        "metrics": ["acc"],
        "acc": 1.0,
        **more,
    }


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def likely(choices, best):
    return [[str(-1.0 if place == best else -9.5), "False"] for place in range(choices)]


def test_choices_become_a_multiple_choice_task(tmp_path):
    config, rows = exported(tmp_path)
    assert config["output_type"] == "multiple_choice" and config["target_delimiter"] == ""
    assert config["dataset_kwargs"] == {"data_files": {"test": "calque_classify_nya_Latn.jsonl"}}
    task = benchmark("classify")
    for row, given in zip(rows, task.sample["nya_Latn"], strict=True):
        assert row["choices"][row["gold"]] == f" {given['label']}" and not row["prompt"].endswith(" ")


def test_examples_are_not_asked(tmp_path):
    _, rows = exported(tmp_path, shots=1, limit=1)
    assert [row["id"] for row in rows] == ["2"] and "dzulo" in rows[0]["prompt"]


def test_samples_are_scored_by_the_benchmark(tmp_path):
    _, rows = exported(tmp_path)
    answers = [sample(row, n, likely(3, row["gold"] if n else 0), acc=0.0) for n, row in enumerate(rows)]
    file = jsonl(tmp_path / "samples_calque_classify_nya_Latn_2026-11-21T10-00-00.0.jsonl", answers)
    table = import_results({"m": file})
    assert next(iter(table.measure("accuracy"))).estimate.value == pytest.approx(2 / 3)
    assert table.values("task") == ["classify"] and table.values("language") == ["nya_Latn"]
    assert "asked:lm-eval" in table.arrow["signature"][0].as_py()
    assert import_results({"m": tmp_path}).arrow.equals(table.arrow)


def test_samples_of_other_tasks_keep_their_metrics(tmp_path):
    answers = [sample({"question": "?"}, n, [["-1", "True"]], acc=float(n)) for n in range(2)]
    file = jsonl(tmp_path / "samples_arc_easy_2026-11-21T10-00-00.0.jsonl", answers)
    table = import_results({"m": file}, language="eng")
    assert table.values("task") == ["arc_easy"] and table.values("item") == ["0", "1"]
    assert next(iter(table.measure("acc"))).estimate.value == 0.5
    with pytest.raises(ConfigError, match="arc_easy does not say its language"):
        import_results({"m": file})


def test_a_results_file_has_aggregates(tmp_path, capsys):
    values = {"alias": "x", "acc,none": 0.25, "acc_stderr,none": 0.1, "exact_match,strict": 0.5}
    file = tmp_path / "results_2026-11-21T10-00-00.0.json"
    file.write_text(json.dumps({"results": {"calque_mgsm_swh_Latn": values}, "configs": {}}))
    table = import_results({"m": file})
    assert [(r["metric"], r["value"], r["item"]) for r in table.rows()] == [
        ("acc", 0.25, "all"),
        ("exact_match,strict", 0.5, "all"),
    ]
    assert table.values("language") == ["swh_Latn"] and "aggregates only" in capsys.readouterr().err


def test_from_the_registry(tmp_path):
    runner.call(
        "evaluate/export", {"tasks": {"classify": "sample"}}, {"languages": ["nya"]}, tmp_path / "out"
    )
    assert (tmp_path / "out/calque_classify_nya_Latn.yaml").is_file()
    rows = [
        json.loads(line)
        for line in (tmp_path / "out/calque_classify_nya_Latn.jsonl").read_text().splitlines()
    ]
    jsonl(tmp_path / "samples_x_2026-11-21T10-00-00.0.jsonl", [sample(r, 0, likely(3, 0)) for r in rows])
    runner.call(
        "evaluate/import", {"results": {"m": str(next(tmp_path.glob("samples*")))}}, {}, tmp_path / "table"
    )
    assert (Path(tmp_path) / "table/table.parquet").is_file()


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda r: r.pop("doc"), ":1: no sample of lm-eval"),
        (lambda r: r.pop("filtered_resps"), ":1: no sample of lm-eval"),
        (lambda r: r["filtered_resps"].pop(), ":1: 2 log-likelihoods for 3 choices"),
        (lambda r: r.update(filtered_resps=["a", "b", "c"]), "are no log-likelihoods"),
    ],
)
def test_damaged_samples(tmp_path, change, message):
    _, rows = exported(tmp_path)
    broken = sample(rows[0], 0, likely(3, 0))
    change(broken)
    with pytest.raises(DataError, match=message):
        import_results({"m": jsonl(tmp_path / "samples_x.jsonl", [broken])})


def test_wrong_calls(tmp_path):
    with pytest.raises(ConfigError, match="nothing to export"):
        export({})
    with pytest.raises(ConfigError, match="3 items, of which 3 are examples"):
        export({"classify": SAMPLE}, languages=["nya"], shots=3)
    with pytest.raises(ConfigError, match="nothing to import"):
        import_results({})
    with pytest.raises(DataError, match="no samples_"):
        import_results({"m": tmp_path})
    other = tmp_path / "results.json"
    other.write_text("[]")
    with pytest.raises(DataError, match="no results of lm-eval"):
        import_results({"m": other})
    _, rows = exported(tmp_path)
    twice = [sample(rows[0], 0, likely(3, 0))] * 2
    with pytest.raises(DataError, match=r"samples_t\.jsonl:2: item '1' of classify is there twice"):
        import_results({"m": jsonl(tmp_path / "samples_t.jsonl", twice)})
