"""A sweep is every combination, each a run of its own, in one table."""

import json

import pytest

from calque import sweep
from calque.errors import ConfigError
from calque.evaluate.table import Table


def test_points_are_the_product_by_name():
    found = sweep.points(["steps.a.with.lr=1e-4,3e-4", "steps.a.with.part=all,lora"])
    assert [*found] == ["lr=1e-4,part=all", "lr=1e-4,part=lora", "lr=3e-4,part=all", "lr=3e-4,part=lora"]
    assert found["lr=3e-4,part=all"] == ['steps.a.with.lr="3e-4"', 'steps.a.with.part="all"']
    assert [*sweep.points(["steps.a.with.n=1,2", "steps.b.with.n=3"])] == ["a.n=1,b.n=3", "a.n=2,b.n=3"]
    assert [*sweep.points(["steps.a.with.file=x/y"])] == ["file=x_y"]
    for wrong in (["steps.a.with.lr"], ["steps.a.with.lr="], ["a=1", "a=2"], ["a={"]):
        with pytest.raises(ConfigError, match="--over"):
            sweep.points(wrong)


def rows(system, value):
    for metric, number in (("bits", value), ("bytes", 4.0)):
        yield {
            "system": system, "task": "lm/x", "language": "nya_Latn", "item": "1", "metric": metric,
            "value": number, "signature": "s",
        }  # fmt: skip


@pytest.fixture
def runs(monkeypatch):
    """Runs that only note what they were asked for."""
    seen = []

    def run(recipe, changes, out, *, share):
        seen.append((out.name, changes))
        if "lr=3" in out.name:
            return 2, "calque: no"
        step = out / "steps" / "scored"
        step.mkdir(parents=True)
        Table.of(rows("model", float(out.name[-1]))).save(step / "table.parquet")
        notes = {"stage 0": {"loss": 1.5, "best": None}, "settings": {}}
        (out / "steps" / "scored" / "training.json").write_text(json.dumps(notes))
        return 0, ""

    monkeypatch.setattr(sweep, "_run", run)
    return seen


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "steps:\n  t:\n    do: train/lm\n    of: {model: m, text: x}\n    with: {steps: 1, lr: 1.0}\n"
    )
    return file


def test_every_run_lands_in_one_table(recipe, runs, tmp_path):
    table = sweep.sweep(recipe, ["steps.t.with.lr=1,2"], tmp_path / "out", jobs=2, changes=["seed=3"])
    assert table.values("system") == ["model [lr=1]", "lr=1", "model [lr=2]", "lr=2"]
    assert sorted(runs) == [(f"lr={n}", ["seed=3", f"steps.t.with.lr={n}"]) for n in (1, 2)]
    text = sweep.to_text(table)
    assert "bits per byte" in text and "0.250" in text and "0.500" in text and "1.5" in text
    assert len(Table.load(tmp_path / "out" / "table.parquet")) == 6


def test_a_failed_run_is_said_and_the_others_are_kept(recipe, runs, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"1 of 2 runs failed \(lr=3\)"):
        sweep.sweep(recipe, ["steps.t.with.lr=1,3"], tmp_path / "out")
    assert Table.load(tmp_path / "out" / "table.parquet").values("system") == ["model [lr=1]", "lr=1"]
    assert "lr=3: calque: no" in capsys.readouterr().err


def test_values_that_can_not_be_are_found_before_any_run(recipe, runs, tmp_path):
    with pytest.raises(ConfigError, match="'lr' = -1"):
        sweep.sweep(recipe, ["steps.t.with.lr=1,-1"], tmp_path / "out")
    assert runs == []


def test_a_real_run_in_a_process_of_its_own(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps:\n  t:\n    do: data/corpus\n    of: {source: nowhere.txt}\n    with: {}\n")
    code, words = sweep._run(recipe, [], tmp_path / "out", share=1)
    assert code == 2 and "nowhere.txt" in words


@pytest.mark.slow  # its servers may take a port that a test of several processes has just found free
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_on_a_local_ray(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = dict(sweep._on_ray({"a": lambda: (0, "one"), "b": lambda: (2, "two")}, 1, "local"))
    assert found == {"a": (0, "one"), "b": (2, "two")}
