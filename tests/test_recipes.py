"""The recipes in recipes/: each is valid as it stands, explained, and runs on a tiny model."""

from pathlib import Path

import pytest
import yaml

from calque import assets, runner
from calque.evaluate.table import Table
from calque.recipe import Recipe, references
from calque.report.html import write_report

from . import tiny

FOLDER = Path(__file__).parents[1] / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
TEXTS = {"bible-nya": tiny.CHICHEWA, "kolibri:nya_Latn": tiny.CHICHEWA}
TEXTS |= {"bible-eng": tiny.ENGLISH, "kolibri:eng_Latn": tiny.ENGLISH}
SMALL = {
    "train/lm": {"steps": 2, "batch_tokens": 64, "length": 32},
    "merge/layerswap_search": {"evaluations": 3, "transition": 0, "max_bytes": 400},
    "merge/recurse": {"rank": 2},
    "evaluate/lm": {"max_bytes": 400},
}


def names(files):
    return [file.stem for file in files]


def test_there_are_recipes():
    assert {"merge_experts", "layerswap_search", "upcycle", "recurse"} <= set(names(FILES))


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_it_is_valid_and_says_how_to_run_it(file):
    recipe = Recipe.read(file)  # checks methods, materials, settings and the order of steps
    assert recipe.title and recipe.product in {step.name for step in recipe.steps}
    text = file.read_text(encoding="utf-8")
    assert f"calque run recipes/{file.name} -o out/" in text
    assert sum(line.lstrip().startswith("#") for line in text.splitlines()) >= 10
    used = {ref for step in recipe.steps for ref in references(step.of)}
    steps = {step.name for step in recipe.steps}
    final = {recipe.product, *(step.name for step in recipe.steps if step.do.startswith("evaluate/"))}
    assert steps <= used | final, "a step that nothing uses"
    for outside in used - steps:
        assert assets.pinned(outside), f"{outside} is neither a step nor an open asset"


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_what_is_scored_was_not_trained_on(file):
    """Every text that a training or a search reads is another part of its source than the scored ones."""
    recipe = Recipe.read(file)
    by_name = {step.name: step for step in recipe.steps}

    def parts(family, key):
        for step in recipe.steps:
            if step.do.startswith(family):
                for name in references(step.of.get(key, ())):
                    text = by_name[name]
                    yield text.of["source"], text.settings.get("part", "all"), text.settings.get("seed", 0)

    scored = set(parts("evaluate/", "texts"))
    read = {*parts("train/", "text"), *parts("train/", "replay"), *parts("merge/", "texts")}
    assert scored and read and not scored & read
    whole = {source for source, part, _ in scored if part == "all"}
    assert not whole & {source for source, _, _ in read}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_it_runs_on_a_tiny_model(file, tmp_path):
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    model = tiny.model(tmp_path / "model", "llama-tied", num_hidden_layers=4)
    places = {"smollm2-135m": str(model)}
    for name, lines in TEXTS.items():
        folder = tmp_path / name.replace(":", "-")
        folder.mkdir()
        for document in range(24):
            said = "\n".join(f"{line} {document}" for line in lines)
            (folder / f"{document}.txt").write_text(said, encoding="utf-8")
        places[name] = str(folder)
    for step in raw["steps"].values():
        step["of"] = renamed(step["of"], places)
        step["with"] = {**(step.get("with") or {}), **SMALL.get(step["do"], {})}
    out = runner.run(Recipe.parse(raw, file.name), tmp_path / "out")
    table = Table.load(out / "steps" / "scores" / "table.parquet")
    (scores,) = [step for step in raw["steps"].values() if step["do"] == "evaluate/lm"]
    assert set(table.values("system")) == set(scores["of"]["systems"])
    assert (out / "model" / "config.json").is_file()
    page = write_report(out, out / "report.html").read_text(encoding="utf-8")
    assert ("What the search tried" in page) == any("search" in s["do"] for s in raw["steps"].values())


def renamed(value, places):
    if isinstance(value, dict):
        return {key: renamed(inner, places) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, places) for inner in value]
    return places.get(value, value)
