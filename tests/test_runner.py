import json
from pathlib import Path

import pytest
import yaml

from calque import registry, runner
from calque.errors import ConfigError, DataError
from calque.recipe import Recipe

from . import toys

RECIPE = {
    "title": "toys",
    "seed": 7,
    "steps": {
        "a": {"do": "toy/make", "of": {"source": "x"}, "with": {"times": 2}},
        "b": {"do": "toy/make", "of": {"source": "y"}, "with": {"seed": 1}},
        "c": {"do": "toy/join", "of": {"notes": ["a", "b"], "extra": "a"}, "with": {"how": "dash"}},
    },
}


@pytest.fixture(autouse=True)
def toy_methods(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, **toys.METHODS})
    toys.CALLS.clear()


def changed(**steps):
    return {**RECIPE, "steps": {**RECIPE["steps"], **steps}}


def test_steps_pass_their_output_on_and_the_recipe_seed_is_a_default(tmp_path):
    out = runner.run(Recipe.parse(RECIPE, "r"), tmp_path / "out")
    assert (out / "steps/c/note.txt").read_text() == "xx7-y1-xx7"
    manifest = json.loads((out / "steps/a/manifest.json").read_text())
    assert manifest["with"] == {"times": 2, "seed": 7}
    assert manifest["output"] and manifest["versions"]["torch"]
    assert yaml.safe_load((out / "recipe.yaml").read_text())["steps"] == RECIPE["steps"]
    assert json.loads((out / "run.json").read_text())["title"] == "toys"


def test_finished_steps_are_skipped_and_only_what_depends_on_a_change_is_run_again(tmp_path):
    runner.run(Recipe.parse(RECIPE, "r"), tmp_path / "out")
    toys.CALLS.clear()
    runner.run(Recipe.parse(RECIPE, "r"), tmp_path / "out")
    assert toys.CALLS == []
    step = {"do": "toy/make", "of": {"source": "z"}, "with": {"seed": 1}}
    runner.run(Recipe.parse(changed(b=step), "r"), tmp_path / "out")
    assert toys.CALLS == ["make", "join"]
    assert (tmp_path / "out/steps/c/note.txt").read_text() == "xx7-z1-xx7"


def test_a_changed_input_file_is_noticed(tmp_path):
    note = toys.Note("first")
    note.save(tmp_path / "given")
    recipe = {"steps": {"a": {"do": "toy/join", "of": {"notes": [str(tmp_path / "given")]}}}}
    runner.run(Recipe.parse(recipe, "r"), tmp_path / "out")
    (tmp_path / "given/note.txt").write_text("second")
    runner.run(Recipe.parse(recipe, "r"), tmp_path / "out")
    assert (tmp_path / "out/steps/a/note.txt").read_text() == "second"


def test_a_stopped_step_resumes_from_its_scratch_folder_and_leaves_nothing_behind(tmp_path):
    step = {"do": "toy/slow", "of": {"note": "a", "named": {"first": "a", "second": "b"}}}
    recipe = Recipe.parse(changed(d=step), "r")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            runner.run(recipe, tmp_path / "out")
        assert not (tmp_path / "out/steps/d").exists()
    runner.run(recipe, tmp_path / "out")
    assert (tmp_path / "out/steps/d/note.txt").read_text() == "xx7:3:first,second"
    assert sorted(p.name for p in (tmp_path / "out/steps").iterdir()) == ["a", "b", "c", "d"]


def test_a_damaged_manifest_means_running_the_step_again(tmp_path):
    runner.run(Recipe.parse(RECIPE, "r"), tmp_path / "out")
    (tmp_path / "out/steps/b/manifest.json").write_text('{"key": ')
    toys.CALLS.clear()
    runner.run(Recipe.parse(RECIPE, "r"), tmp_path / "out")
    assert toys.CALLS == ["make"]


def test_an_output_folder_with_something_else_in_it_is_refused_untouched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists and is no calque run"):
        runner.run(Recipe.parse(RECIPE, "r"), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="exists already"):
        runner.call("toy/make", {"source": "x"}, {}, tmp_path / "out")


def test_one_call_writes_its_result_and_manifest(tmp_path):
    out = runner.call("toy/make", {"source": "x"}, {"times": 3}, tmp_path / "note")
    assert (out / "note.txt").read_text() == "xxx0"
    assert json.loads((out / "manifest.json").read_text())["do"] == "toy/make"
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


def test_a_refused_call_leaves_nothing_and_names_no_step(tmp_path):
    with pytest.raises(ConfigError) as error:
        runner.call("toy/make", {"source": "x"}, {"times": 10}, tmp_path / "note")
    assert str(error.value).startswith("toy/make: setting 'times' = 10:")
    with pytest.raises(ConfigError, match="no Note at"):
        runner.call("toy/join", {"notes": [str(tmp_path / "none")]}, {}, tmp_path / "note")
    assert list(tmp_path.iterdir()) == []


def test_a_call_refused_for_another_one_leaves_the_other_ones_folder(tmp_path):
    with runner.alone(tmp_path / ".note.run"):
        with pytest.raises(ConfigError, match="another process is running"):
            runner.call("toy/make", {"source": "x"}, {}, tmp_path / "note")
        assert (tmp_path / ".note.run/.calque").is_file()
    runner.call("toy/make", {"source": "x"}, {}, tmp_path / "note")
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


def test_a_failed_call_speaks_of_the_output_and_keeps_what_was_saved(tmp_path, monkeypatch):
    def fail(note: toys.Note, *, work: Path):
        (work / "state").write_text("hours")
        raise DataError(f"{work.parents[1]}/slow: diverged")

    monkeypatch.setattr(toys, "slow", fail)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/note.txt").write_text("a")
    with pytest.raises(DataError) as error:
        runner.call("toy/slow", {"note": str(tmp_path / "a")}, {}, tmp_path / "note")
    assert str(error.value) == f"{tmp_path}/note: diverged"
    assert (tmp_path / ".note.run/steps/.slow.work" / "work" / "state").read_text() == "hours"


def test_a_stopped_training_is_not_thrown_away_for_changed_settings(tmp_path, monkeypatch):
    def stop(note: toys.Note, *, work: Path, limit: int = 3):
        (work / "state-1").mkdir(exist_ok=True)
        (work / "state-1/weights").write_text("hours")
        raise KeyboardInterrupt

    monkeypatch.setattr(toys, "slow", stop)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/note.txt").write_text("a")
    given, out = {"note": str(tmp_path / "a")}, tmp_path / "note"
    with pytest.raises(KeyboardInterrupt):
        runner.call("toy/slow", given, {"limit": 3}, out)
    with pytest.raises(ConfigError, match="limit was 3, now 2; give the old settings to go on"):
        runner.call("toy/slow", given, {"limit": 2}, out)
    (tmp_path / "a/note.txt").write_text("b")
    with pytest.raises(ConfigError, match=r"holds a stopped training with other settings: .*/a was"):
        runner.call("toy/slow", given, {"limit": 3}, out)
    assert (tmp_path / ".note.run/steps/.slow.work" / "work" / "state-1").is_dir()


def step(do="toy/make", of=None, **settings):
    return {"do": do, "of": of or {"source": "x"}, "with": settings}


WRONG = [
    ({}, "needs 'steps'"),
    ({"steps": []}, "needs 'steps'"),
    ({"steps": {"a": {}}}, "needs 'do: family/method'"),
    ({"steps": {"a b": step()}}, "letters, digits"),
    ({"steps": {"a": step("toy/mak")}}, "no method 'toy/mak', did you mean 'toy/make'"),
    ({"steps": {"a": step("nothing")}}, "no method 'nothing'"),
    ({"steps": {"a": step(tims=1)}}, "no setting 'tims', did you mean 'times'"),
    ({"steps": {"a": step(times=0)}}, "setting 'times' = 0"),
    ({"steps": {"a": step(times=10)}}, "less than or equal to 9"),
    ({"steps": {"a": step(times="many")}}, "setting 'times' = 'many'"),
    ({"steps": {"a": step("toy/join", {"notes": ["x"]}, how="comma")}}, "setting 'how' = 'comma'"),
    ({"steps": {"a": step("toy/join", {"note": ["x"]})}}, "no material 'note', did you mean 'notes'"),
    ({"steps": {"a": step("toy/join", {"extra": "x"})}}, "material 'notes' is missing"),
    ({"steps": {"a": step("toy/join", {"notes": ["b"]}), "b": step()}}, "uses step 'b', which comes later"),
    ({"steps": {"a": step("toy/join", {"notes": ["a"]})}}, "comes later"),
    ({"steps": {"a": step()}, "product": "b"}, "product 'b' is not a step"),
    ({"steps": {"a": step()}, "stepps": {}}, "unknown 'stepps', did you mean 'steps'"),
    ({"steps": {"a": {**step(), "wiht": {}}}}, "unknown 'wiht', did you mean 'with'"),
]


@pytest.mark.parametrize(("raw", "message"), WRONG)
def test_a_wrong_recipe_is_refused_before_anything_is_run(raw, message):
    with pytest.raises(ConfigError) as error:
        Recipe.parse(raw, "r.yaml")
    assert message in str(error.value)
    assert toys.CALLS == []


def test_recipes_are_read_safely_and_changed_from_the_command_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    recipe = Recipe.read(path, ["steps.a.with.times=4", "seed=2"])
    assert recipe.steps[0].settings == {"times": 4} and recipe.seed == 2
    with pytest.raises(ConfigError, match="no 'stops'"):
        Recipe.read(path, ["stops.a.with.times=4"])
    path.write_text("steps: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not valid YAML"):
        Recipe.read(path)
    with pytest.raises(ConfigError, match="no recipe"):
        Recipe.read(tmp_path / "none.yaml")


def test_two_processes_do_not_share_a_run(tmp_path):
    with (
        runner.alone(tmp_path / "out"),
        pytest.raises(ConfigError, match="another process"),
        runner.alone(tmp_path / "out"),
    ):
        pass
